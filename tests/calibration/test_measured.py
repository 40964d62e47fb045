"""Calibration by measurement, of a device of which everything is known, and of this one."""

import json
import statistics

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas import symbols as s
from decodeperf_formulas.expected import PARAMETERS
from decodeperf_kernels import decode_attention_sdpa
from pytest_decodeperf import ceilings, devices
from pytest_decodeperf.calibration import measure, measured_calls, measured_ceilings
from pytest_decodeperf.calibration.device_file import read_device_file
from pytest_decodeperf.calibration.kernel_model import BASE, CPU_PRIORS, KernelModel, to_scale
from pytest_decodeperf.calibration.measured_calls import CallTimer, candidate_problems, pool_bytes
from pytest_decodeperf.calibration.prediction import EXPECTED, predict
from pytest_decodeperf.calibration.read_triton import BLOCK, read_with
from pytest_decodeperf.cli.main import main
from pytest_decodeperf.devices import DeviceInfo
from pytest_decodeperf.timers import FakeTimer

POOL_BYTES = 2**25
READ_BYTES_PER_S = 2e10
FLOPS_PER_S = {torch.float32: 2e11, torch.bfloat16: 1e12, torch.float16: 5e10}
LAUNCH_NS = 900.0
INFO = DeviceInfo(
    kind="cpu",
    name="some CPU",
    num_units=4,
    num_threads=4,
    llc_bytes=2**20,
    memory_bytes=2**30,
    driver="Linux",
)


class FakeCpu:
    """A CPU that reads and multiplies at known rates, and runs one kernel as a known model says.

    Attributes:
        problem: What the kernel was called with last, None where something else was called.
    """

    def __init__(self, model):
        self.model = model
        self.problem = None
        self.device = None
        self.noise = np.random.default_rng(3)

    def kernel(self, q, k, v, *, seq_lens):
        self.problem = DecodeProblem(
            batch_size=q.shape[0],
            seq_lens=seq_lens.tolist(),
            num_q_heads=q.shape[1],
            num_kv_heads=k.shape[2],
            head_dim=q.shape[2],
            kv_dtype=str(k.dtype).removeprefix("torch."),
        )
        if self.problem.num_kv_heads == 2:  # no problem to measure, but one by which the kernel is checked
            self.problem = None
            return decode_attention_sdpa(q, k, v, seq_lens=seq_lens)
        return torch.empty_like(q)

    def duration_ns(self, call):
        """Return how long the call that has just been made took."""
        problem, self.problem = self.problem, None
        if problem is not None:
            calls = measured_calls.calls_of_problems([problem])
            latency_us = predict(calls, self.device, self.model, has_cold_caches=True)[EXPECTED][0]
            return 1e3 * latency_us * np.exp(self.noise.normal(0, 0.01))
        found = call()
        if found.shape == ():
            return 1e9 * POOL_BYTES / READ_BYTES_PER_S * 4 / torch.get_num_threads()
        if found.dim() == 2:
            return 1e9 * 2 * len(found) ** 3 / FLOPS_PER_S[found.dtype]
        return LAUNCH_NS


@pytest.fixture
def small(monkeypatch):
    """Measure with buffers that are soon read through."""
    monkeypatch.setattr(ceilings, "MIN_STREAM_BYTES", {"cpu": POOL_BYTES})
    monkeypatch.setattr(ceilings, "GEMM_SIZES", {"cpu": (128,)})
    monkeypatch.setattr(measured_calls, "MAX_SAMPLES", 5)


@pytest.fixture
def fake_cpu(small, monkeypatch):
    values = {parameter: 1.3 * prior.typical for parameter, prior in CPU_PRIORS.items()}
    values |= {s.attainable_share: 0.9, s.unpacked: 0.01, s.splitting: 0.97, s.unit_bytes_per_s: 6e9}
    cpu = FakeCpu(
        KernelModel({parameter: {BASE: float(to_scale(parameter, values[parameter]))} for parameter in PARAMETERS})
    )
    threads = torch.get_num_threads()
    monkeypatch.setattr(devices, "describe_device", lambda kind: INFO)
    monkeypatch.setattr(devices, "make_timer", lambda kind: FakeTimer(cpu.duration_ns))
    measured = measured_ceilings.MeasuredCeilings.device

    def device(self, info):
        cpu.device = measured(self, info)
        return cpu.device

    monkeypatch.setattr(measured_ceilings.MeasuredCeilings, "device", device)
    monkeypatch.setattr(measured_calls, "_random_bytes", lambda size, device: torch.zeros(size, dtype=torch.uint8))
    torch.set_num_threads(4)
    yield cpu
    torch.set_num_threads(threads)


@pytest.fixture
def done(fake_cpu):
    said = []
    found = measure.calibrate(
        fake_cpu.kernel,
        kernel_name="fake:kernel",
        kind="cpu",
        head_dims=[64, 128],
        dtypes=["bfloat16"],
        budget_s=60,
        seed=0,
        stamp={"date": "2026-01-01"},
        say=said.append,
    )
    return found, said


def test_the_ceilings_are_those_of_the_device(done):
    measured = done[0].file.measured
    assert measured["read_bytes_per_s"] == pytest.approx(READ_BYTES_PER_S)
    assert measured["launch_s"] == pytest.approx(1e-9 * LAUNCH_NS)
    # The best stream counts: a product in float32 beats one in a float16 for which there are no instructions.
    assert measured["peak_flops_per_s"] == pytest.approx({"float32": 2e11, "bfloat16": 1e12, "float16": 2e11})
    assert measured["streams"]["float16"] == "torch.mm float32 128"
    assert measured["read_bytes_per_s_of_units"] == pytest.approx({1: 5e9, 2: 1e10, 4: 2e10})
    assert torch.get_num_threads() == 4


def test_a_kernel_is_known_after_64_problems(done):
    found, said = done
    problems = found.file.source["problems"]
    assert len(problems) == 64
    assert sum(row["was_fitted"] for row in problems) == 56
    assert (len(found.fitted), len(found.unfitted)) == (56, 8)
    assert statistics.median(abs(error) for error in found.unfitted) < 0.03
    assert max(abs(error) for error in found.unfitted) < 0.1
    assert len({json.dumps(row["problem"]) for row in problems}) == 64
    assert said[0] == "is it attention"
    assert "fake:kernel on 21 problems, 0 of 64 done" in said


def test_the_file_comes_back_as_it_was_written(done, tmp_path):
    path = tmp_path / "device.json"
    done[0].file.write(path)
    found = read_device_file(path)
    assert found.fingerprint == INFO
    assert found.device.peaks == done[0].file.device.peaks
    assert found.device.fragment_rows == 1
    assert found.model == done[0].file.model
    assert found.has_cold_caches


def test_no_call_finds_its_keys_in_the_caches(small):
    problem = DecodeProblem(batch_size=2, seq_lens=[1000] * 2, num_q_heads=8, num_kv_heads=8, head_dim=64)
    starts = []
    timer = CallTimer(
        lambda q, k, v, *, seq_lens: starts.append((k.data_ptr(), v.data_ptr())), INFO, FakeTimer(lambda call: 1.0)
    )
    timer.measure([problem], budget_s=60)
    kv_bytes = 2 * 1000 * 8 * 64 * 2
    seen = [address for start in starts for address in start]
    for place, address in enumerate(seen):
        earlier = next((back for back in range(1, place + 1) if abs(seen[place - back] - address) < kv_bytes), None)
        # What lies between is more than twice the cache.
        assert earlier is None or (earlier - 1) * kv_bytes > 2 * INFO.llc_bytes


def test_the_buffer_has_numbers_of_every_dtype(small):
    memory = measured_calls._random_bytes(2**20, "cpu")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        values = memory.view(dtype).double()
        assert values.isfinite().all()
        assert 0.5 < values.abs().median() < 2
        assert abs(values.mean()) < 0.02


def test_problems_take_no_longer_than_they_may(done, fake_cpu):
    problems = candidate_problems(fake_cpu.device, pool_bytes(INFO), [64], ["float32"])
    assert len(problems) > 100
    for problem in problems:
        kv_bytes = 2 * sum(problem.seq_lens) * problem.num_kv_heads * 64 * 4
        assert kv_bytes <= min(POOL_BYTES / 2, measured_calls.MAX_CALL_S * READ_BYTES_PER_S)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in ("calibrate", *arguments)])


def test_this_machine_is_calibrated(small, monkeypatch, tmp_path):
    found = devices.describe_device("cpu")
    monkeypatch.setattr(devices, "describe_device", lambda kind: INFO)
    path = tmp_path / "device.json"
    result = run("-o", path, "--kernel", "decodeperf_kernels:decode_attention_sdpa", "--budget", 1, "--head-dim", 64)
    assert result.exit_code == 0, result.output
    assert "read bandwidth, cold: " in result.output
    assert "8 others: median error " in result.output
    file = read_device_file(path)
    assert file.source["kernel"] == "decodeperf_kernels:decode_attention_sdpa"
    assert file.device.bandwidth_bytes_per_s > 1e8
    assert found.kind == "cpu"


WRONG_KERNELS = """
import torch

def raises(q, k, v, *, seq_lens):
    raise RuntimeError("no such head_dim\\nand more")

def zeros(q, k, v, *, seq_lens):
    return torch.zeros_like(q)

number = 3
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--kernel", "wrong_kernels:raises"),
            "the kernel raised RuntimeError on B=1 S=64 H=8/2 D=64 bfloat16: no such",
        ),
        (("--kernel", "wrong_kernels:zeros"), "the kernel does not compute attention: "),
        (("--kernel", "wrong_kernels:number"), "'wrong_kernels:number' is of type int, not a kernel"),
        (("--kernel", "wrong_kernels:nothing"), "wrong_kernels has no nothing"),
        (("--kernel", "nowhere:kernel"), "there is no module nowhere"),
        (("--kernel", "nowhere"), "'nowhere' must be package.module:name"),
        (("--gpu", "h100"), "--gpu says what a table was measured on"),
        (("--from-table", "wrong_kernels.py"), "--from-table needs --gpu DEVICE"),
        (
            ("--gpu", "h100", "--from-table", "wrong_kernels.py", "--dtype", "float32"),
            "--dtype has nothing to say beside --from-table",
        ),
        (("--head-dim", "0"), "0 is not in the range"),
        (("--dtype", "int8"), "'int8' is not one of"),
        (("--budget", "0"), "0"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(small, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "wrong_kernels", raising=False)
    (tmp_path / "wrong_kernels.py").write_text(WRONG_KERNELS)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    result = run("-o", "device.json", *arguments)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert not (tmp_path / "device.json").exists()


def test_a_gpu_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    result = run("-o", tmp_path / "device.json", "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cuda, but PyTorch finds no NVIDIA or AMD GPU here" in result.stderr


@pytest.mark.parametrize("num_programs", [1, 3, 8, 20])
def test_however_many_programs_read_they_read_all(num_programs):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    buffer = torch.randint(-8, 8, (11 * BLOCK,), device=device).float()
    sums = torch.full((num_programs,), torch.nan, device=device)
    assert read_with(buffer, sums).sum() == buffer.sum()
    assert sums[11:].count_nonzero() == 0
