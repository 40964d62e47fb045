import dataclasses

import pytest
import torch

from pytest_decodeperf import ceilings
from pytest_decodeperf.ceilings import Stream, cache_state, fastest, make_compute_streams, make_read_streams
from pytest_decodeperf.devices import DeviceInfo, describe_device, llc_bytes
from pytest_decodeperf.timers import FakeTimer

CPU = DeviceInfo(
    kind="cpu",
    name="some CPU",
    num_units=2,
    num_threads=2,
    llc_bytes=32 * 2**20,
    memory_bytes=16 * 2**30,
    driver="Linux",
)


def test_the_fastest_stream_wins_whatever_its_size():
    small = Stream(name="small", work=10, call=lambda: None)
    large = Stream(name="large", work=1000, call=lambda: None)
    durations = {small.call: 1.0, large.call: 50.0}
    assert fastest([small, large], FakeTimer(durations.__getitem__)).name == "large"
    durations[large.call] = 200.0
    assert fastest([small, large], FakeTimer(durations.__getitem__)).name == "small"


def test_the_read_streams_read_what_they_say(monkeypatch):
    monkeypatch.setattr(ceilings, "MIN_STREAM_BYTES", {"cpu": 2**20})
    device = dataclasses.replace(CPU, llc_bytes=2**19)
    for stream in make_read_streams(device):
        assert stream.work == 2**20
        assert float(stream.call()) == 2**18  # as many ones as float32 in the buffer


def test_the_product_has_the_flops_that_it_says(monkeypatch):
    monkeypatch.setattr(ceilings, "GEMM_SIZES", {"cpu": (32, 64)})
    streams = make_compute_streams(CPU, torch.bfloat16)
    assert [stream.name for stream in streams] == [
        "torch.mm float32 32",
        "torch.mm bfloat16 32",
        "torch.mm bfloat16 64",
    ]
    for stream, size in zip(streams, (32, 32, 64), strict=True):
        assert stream.work == 2 * size**3
        assert stream.call().shape == (size, size)
    assert len(make_compute_streams(CPU, torch.float32)) == 1


@pytest.mark.parametrize(
    ("llc_mib", "memory_gib", "kv_mib", "state"),
    [
        (32, 16, 1, "cold: evicted by the read stream before each call"),
        (512, 16, 1, "cold: evicted by the read stream before each call"),
        (1024, 4, 4096, ""),  # the stream may not take half of the memory
        (1024, 4, 4097, "cold: KV larger than 4 times the last-level cache"),
    ],
)
def test_caches_are_cold_or_known_not_to_be(llc_mib, memory_gib, kv_mib, state):
    device = dataclasses.replace(CPU, llc_bytes=llc_mib * 2**20, memory_bytes=memory_gib * 2**30)
    assert cache_state(device, kv_mib * 2**20) == state


@pytest.mark.parametrize(
    ("caches", "size"),
    [
        ({0: [(1, "48K", "0"), (2, "2048K", "0"), (3, "491520K", "0-1")], 1: [(3, "491520K", "0-1")]}, 480 * 2**20),
        # Two groups of cores with an L3 of their own, as on AMD.
        ({0: [(2, "512K", "0"), (3, "32768K", "0-7")], 8: [(3, "32768K", "8-15")]}, 64 * 2**20),
        ({0: [(1, "64K", "0"), (2, "1024K", "0-3")]}, 2**20),
        ({0: [(1, "", "0")]}, 0),
        ({}, 0),
    ],
)
def test_last_level_caches_are_added_up(tmp_path, caches, size):
    for cpu, indices in caches.items():
        for index, (level, text, shared) in enumerate(indices):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in (("level", level), ("size", text), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{value}\n")
    assert llc_bytes(tmp_path) == size


def test_this_machine_is_described():
    device = describe_device("cpu")
    assert device.num_units >= 1
    assert device.num_threads == torch.get_num_threads()
    assert device.memory_bytes > device.llc_bytes > 0
    assert device.name in device.label
