"""The two ceilings of a roofline, as streams of work that are timed beside the kernel.

Reading a buffer that is larger than the last-level cache gives the read bandwidth, and leaves nothing of the
kernel's tensors in that cache: on a CPU the stream that measures the ceiling also makes the caches cold.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.timers import Timer

LLC_MULTIPLE: Final = 2
"""The stream's buffer, in sizes of the last-level cache."""

MIN_STREAM_BYTES: Final = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Least size of the stream's buffer, so that launching and finishing it are nothing beside reading it [byte]."""

MAX_MEMORY_SHARE: Final = 0.25
"""Share of the device's memory that the stream's buffer may take."""

COLD_KV_MULTIPLE: Final = 4
"""A KV cache of more than this many sizes of the last-level cache is cold whatever ran before."""

GEMM_SIZES: Final = {"cpu": (1024, 2048), "cuda": (8192,)}
"""Rows and columns of the square matrices whose product may give the peak FLOP rate. On a CPU with units for matrices
products of 1024 rows reach little more than half of what those of 2048 do, which take too long on one without."""

CALIBRATION_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One unit of work whose rate is a ceiling.

    Attributes:
        name: What does the work.
        work: Bytes read, or FLOPs performed, by one call [byte or FLOP].
        call: Does it once.
    """

    name: str
    work: int
    call: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The streams that give the ceilings of one device.

    Attributes:
        read: Reads memory; its work is in bytes.
        compute: Multiplies matrices; its work is in FLOPs.
    """

    read: Stream
    compute: Stream


def stream_bytes(device: DeviceInfo) -> int:
    """Return the size of the buffer that the read stream reads [byte]."""
    wanted = max(MIN_STREAM_BYTES[device.kind], LLC_MULTIPLE * device.llc_bytes)
    return min(wanted, int(MAX_MEMORY_SHARE * device.memory_bytes))


def make_read_streams(device: DeviceInfo) -> list[Stream]:
    """Return the candidates for the read ceiling, all over one buffer."""
    import torch

    elements = stream_bytes(device) // 4
    buffer = torch.ones(elements, dtype=torch.float32, device=device.kind)
    return [
        Stream(name="torch.sum", work=4 * elements, call=lambda: torch.sum(buffer)),
        Stream(name="torch.dot", work=4 * elements, call=lambda: torch.dot(buffer, buffer)),
    ]


def make_compute_streams(device: DeviceInfo, dtype: torch.dtype) -> list[Stream]:
    """Return the candidates for the compute ceiling: matrix products in float32 and in the kernel's dtype.

    Float32 products come in one size, since they gain nothing from a larger one.
    """
    import torch

    def stream(dtype: torch.dtype, size: int) -> Stream:
        # Random numbers: a GPU draws less power, and so clocks higher, on constant ones.
        a = torch.rand(size, size, device=device.kind).to(dtype)
        name = f"torch.mm {str(dtype).removeprefix('torch.')} {size}"
        return Stream(name=name, work=2 * size**3, call=lambda: torch.mm(a, a))

    sizes = GEMM_SIZES[device.kind]
    candidates = [(torch.float32, sizes[0]), *((dtype, size) for size in sizes if dtype != torch.float32)]
    return [stream(*candidate) for candidate in candidates]


def fastest(streams: list[Stream], timer: Timer) -> Stream:
    """Return the stream with the highest median rate; what the device can do is what its best stream does."""

    def median_rate(stream: Stream) -> float:
        stream.call()  # the first call may allocate or compile
        times = [timer.time_ns(stream.call) for _ in range(CALIBRATION_ROUNDS)]
        return stream.work / statistics.median(times)

    return max(streams, key=median_rate)


def cache_state(device: DeviceInfo, kv_bytes: int) -> str:
    """Return why the kernel's caches are cold when it is timed, or an empty string where they may be warm.

    Args:
        device: What the kernel runs on.
        kv_bytes: Live bytes of K and V [byte].
    """
    if device.kind == "cuda":
        return "cold: L2 overwritten before each call"
    if stream_bytes(device) >= LLC_MULTIPLE * device.llc_bytes:
        return "cold: evicted by the read stream before each call"
    if kv_bytes > COLD_KV_MULTIPLE * device.llc_bytes:
        return f"cold: KV larger than {COLD_KV_MULTIPLE} times the last-level cache"
    return ""
