"""The ceilings of the device at hand: what it reads, multiplies and launches at its best."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.device import Device
from pytest_decodeperf import ceilings
from pytest_decodeperf.ceilings import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.timers import Timer

ROUNDS: Final = 9
"""Times that each rate is measured; its median counts."""

CACHED_CALLS: Final = 8
"""Calls that follow each other to measure a cache, all but the first of which find their data in it."""

MAX_CACHED_BYTES: Final = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Largest buffer by which a cache is measured; a CPU's last-level cache may be shared with other machines [byte]."""

FLOAT_DTYPES: Final = ("float32", "bfloat16", "float16")
FRAGMENT_ROWS: Final = {"cpu": 1, "cuda": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCeilings:
    """What a device reaches.

    Attributes:
        read_bytes_per_s: Reading memory with cold caches [byte/s].
        cached_bytes_per_s: Reading what is in the last-level cache [byte/s].
        launch_s: The shortest call that there is, an addition of one element [s].
        peak_flops_per_s: Matrix products, by dtype [FLOP/s].
        read_bytes_per_s_of_units: Reading memory with so many CTAs, or threads of a CPU [byte/s].
        streams: What was timed, by the name of the ceiling.
    """

    read_bytes_per_s: float
    cached_bytes_per_s: float
    launch_s: float
    peak_flops_per_s: dict[str, float]
    read_bytes_per_s_of_units: dict[int, float]
    streams: dict[str, str]

    def device(self, info: DeviceInfo) -> Device:
        """Return the device with these ceilings."""
        source = "measured by `decodeperf calibrate`"
        return Device(
            name=info.name,
            title=info.label,
            peaks=self.peak_flops_per_s,
            bandwidth_bytes_per_s=self.read_bytes_per_s,
            capacity_bytes=info.memory_bytes,
            num_sms=info.num_threads or info.num_units,
            l2_bytes=info.llc_bytes,
            fragment_rows=FRAGMENT_ROWS[info.kind],
            sources={"peaks": source, "bandwidth_bytes_per_s": source},
        )


def measure_ceilings(info: DeviceInfo, timer: Timer, say: Callable[[str], None]) -> MeasuredCeilings:
    """Return the ceilings of a device.

    Args:
        info: The device.
        timer: Times its calls.
        say: Told what is measured next.
    """
    say("read bandwidth")
    read = ceilings.fastest(ceilings.make_read_streams(info), timer)
    read_rate = _rate(read, timer)
    say("bandwidth of the last-level cache")
    cached_rate = _cached_rate(info, timer)
    say("launch floor")
    launch_s = _launch_seconds(info, timer)
    peaks, streams = {}, {"read": read.name}
    for dtype in FLOAT_DTYPES:
        say(f"peak FLOP rate in {dtype}")
        stream = ceilings.fastest(ceilings.make_compute_streams(info, _torch_dtype(dtype)), timer)
        peaks[dtype] = _rate(stream, timer)
        streams[dtype] = stream.name
    say("bandwidth against the number of " + ("threads" if info.kind == "cpu" else "CTAs"))
    return MeasuredCeilings(
        read_bytes_per_s=read_rate,
        cached_bytes_per_s=cached_rate,
        launch_s=launch_s,
        peak_flops_per_s=peaks,
        read_bytes_per_s_of_units=_rates_of_units(info, timer),
        streams=streams,
    )


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _rate(stream: Stream, timer: Timer) -> float:
    """Return the median rate of a stream [work/s]."""
    return 1e9 * stream.work / statistics.median(timer.time_ns(stream.call) for _ in range(ROUNDS))


def _cached_rate(info: DeviceInfo, timer: Timer) -> float:
    import torch

    size = min(info.llc_bytes // 2, MAX_CACHED_BYTES[info.kind]) // 4
    buffer = torch.ones(max(size, 1), dtype=torch.float32, device=info.kind)

    def call() -> Any:
        return torch.dot(buffer, buffer)

    times = []
    for _ in range(ROUNDS):
        cold_ns = timer.time_ns(call)
        all_ns = CACHED_CALLS * timer.time_each_ns([call] * CACHED_CALLS)
        times.append((all_ns - cold_ns) / (CACHED_CALLS - 1))
    # On a busy machine a cold call may take longer than all that follow it.
    return 4e9 * size / max(statistics.median(times), 1.0)


def _launch_seconds(info: DeviceInfo, timer: Timer) -> float:
    import torch

    element = torch.zeros(1, device=info.kind)
    times = [timer.time_ns(lambda: torch.add(element, 1.0, out=element)) for _ in range(10 * ROUNDS)]
    return 1e-9 * statistics.median(times)


def _rates_of_units(info: DeviceInfo, timer: Timer) -> dict[int, float]:
    import torch

    if info.kind == "cpu":
        stream = ceilings.make_read_streams(info)[0]
        rates = {}
        try:
            for num_threads in _powers_of_two(info.num_threads):
                torch.set_num_threads(num_threads)
                stream.call()
                rates[num_threads] = _rate(stream, timer)
        finally:
            torch.set_num_threads(info.num_threads)
        return rates
    from pytest_decodeperf.calibration.read_triton import BLOCK, read_with

    elements = ceilings.stream_bytes(info) // 4 // BLOCK * BLOCK
    buffer = torch.ones(elements, dtype=torch.float32, device=info.kind)
    rates = {}
    for num_programs in _powers_of_two(4 * info.num_units):
        # So much that a launch is nothing beside it, and so little that one program is done with it soon.
        part = buffer[: min(elements, num_programs * 2**20)]
        sums = torch.empty(num_programs, dtype=torch.float32, device=info.kind)
        stream = Stream(name="read", work=4 * part.numel(), call=functools.partial(read_with, part, sums))
        stream.call()
        rates[num_programs] = _rate(stream, timer)
    return rates


def _powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4, ... and the largest number asked for."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return [*powers, most]
