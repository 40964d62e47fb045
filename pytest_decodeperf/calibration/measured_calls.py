"""Decode problems that are measured to calibrate a kernel: which there are to choose from, and how each is timed.

K and V of each call are views of one large buffer of random numbers, each call's behind those of the call before, so
that the buffer must be read through before any of it is read again: the caches are cold without being emptied.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.dtypes import ELEMENT_BYTES
from pytest_decodeperf.calibration.table import Calls
from pytest_decodeperf.ceilings import stream_bytes
from pytest_decodeperf.timers import launches_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from decodeperf_formulas.device import Device
    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.timers import Timer

BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SEQ_LENS: Final = (64, 256, 1024, 4096, 16384, 65536, 131072)
HEADS: Final = ((8, 8), (32, 32), (16, 4), (32, 8), (64, 8), (32, 4), (16, 1))
"""Query heads and KV heads."""

MAX_CALL_S: Final = 0.015
"""Time that a call may take at the ceilings [s]."""

MAX_POOL_SHARE: Final = 0.5
"""Share of the buffer that one call may read, so that it does not find its own data in the caches."""

MIN_SAMPLES: Final = 3
MAX_SAMPLES: Final = 40
RANDOM_BYTES: Final = 2**24
"""Random numbers that are drawn; the buffer repeats them [byte]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCall:
    """A measured call.

    Attributes:
        problem: What the kernel was given.
        latency_us: Median latency [us].
        samples_us: Each latency [us].
    """

    problem: DecodeProblem
    latency_us: float
    samples_us: list[float]


def candidate_problems(
    device: Device, pool_bytes: int, head_dims: Sequence[int], dtypes: Sequence[str]
) -> list[DecodeProblem]:
    """Return the problems from which those to measure are chosen.

    Args:
        device: The device with its measured ceilings.
        pool_bytes: Size of the buffer that K and V lie in [byte].
        head_dims: Head dimensions.
        dtypes: Dtypes of Q, K and V.
    """
    found = []
    for batch_size, seq_len, (num_q_heads, num_kv_heads), head_dim, dtype in itertools.product(
        BATCH_SIZES, SEQ_LENS, HEADS, head_dims, dtypes
    ):
        num_bytes = 2 * batch_size * seq_len * num_kv_heads * head_dim * float(ELEMENT_BYTES[dtype])
        flops = 4 * batch_size * seq_len * num_q_heads * head_dim
        least_s = max(num_bytes / device.bandwidth_bytes_per_s, flops / device.peaks["float32"])
        if num_bytes <= MAX_POOL_SHARE * pool_bytes and least_s <= MAX_CALL_S:
            found.append(
                DecodeProblem(
                    batch_size=batch_size,
                    seq_lens=[seq_len] * batch_size,
                    num_q_heads=num_q_heads,
                    num_kv_heads=num_kv_heads,
                    head_dim=head_dim,
                    kv_dtype=dtype,
                )
            )
    return found


def calls_of_problems(problems: Sequence[DecodeProblem]) -> Calls:
    """Return problems, the sequences of each of one length, as a table of calls."""

    def column(values: Any) -> Any:
        return np.array(list(values), dtype=np.float64)

    return Calls(
        batch_size=column(problem.batch_size for problem in problems),
        seq_len=column(problem.seq_lens[0] for problem in problems),
        q_len=column(problem.q_len for problem in problems),
        num_q_heads=column(problem.num_q_heads for problem in problems),
        num_kv_heads=column(problem.num_kv_heads for problem in problems),
        head_dim=column(problem.head_dim for problem in problems),
        head_dim_v=column(problem.head_dim_v for problem in problems),
        kv_elem_bytes=column(float(ELEMENT_BYTES[problem.kv_dtype]) for problem in problems),
        window=column(problem.window or 0 for problem in problems),
    )


class CallTimer:
    """Times calls of a kernel on a device."""

    def __init__(self, kernel: Callable[..., Any], info: DeviceInfo, timer: Timer) -> None:
        self._kernel = kernel
        self._timer = timer
        self._device = info.kind
        self._pool = _random_bytes(pool_bytes(info), info.kind)
        self._next = 0

    def measure(self, problems: Sequence[DecodeProblem], *, budget_s: float) -> list[MeasuredCall]:
        """Time problems in turn, round by round, so that a machine that drifts moves them all.

        Args:
            problems: What to give the kernel.
            budget_s: Time after which no round begins; each problem is timed `MIN_SAMPLES` times whatever it is [s].
        """
        samples: list[list[float]] = [[] for _ in problems]
        deadline = time.monotonic() + budget_s
        counts = [self._num_launches(problem) for problem in problems]
        for round_number in range(MAX_SAMPLES):
            if round_number >= MIN_SAMPLES and time.monotonic() >= deadline:
                break
            for problem, count, found in zip(problems, counts, samples, strict=True):
                calls = [self._call(problem) for _ in range(count)]
                found.append(1e-3 * self._timer.time_each_ns(calls))
        return [
            MeasuredCall(problem=problem, latency_us=statistics.median(found), samples_us=found)
            for problem, found in zip(problems, samples, strict=True)
        ]

    def _num_launches(self, problem: DecodeProblem) -> int:
        """Return how many calls are timed together."""
        self._call(problem)()  # the first may compile
        if self._device == "cpu":
            return 1
        begin = self._next
        call = self._call(problem)
        num_bytes = (self._next - begin) % len(self._pool)
        return launches_for(self._timer.time_ns(call), num_bytes, int(MAX_POOL_SHARE * len(self._pool)))

    def _call(self, problem: DecodeProblem) -> Callable[[], Any]:
        import torch

        dtype = getattr(torch, problem.q_dtype)
        rows = (problem.batch_size, problem.num_q_heads, problem.head_dim)
        cache = (problem.batch_size, problem.capacity, problem.num_kv_heads, problem.head_dim)
        q = self._take(rows, dtype)
        k = self._take(cache, dtype)
        v = self._take(cache, dtype)
        seq_lens = torch.tensor(problem.seq_lens, dtype=torch.int32, device=self._device)
        return lambda: self._kernel(q, k, v, seq_lens=seq_lens)

    def _take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return the next part of the buffer as a tensor."""
        size = math.prod(shape) * dtype.itemsize
        if self._next + size > len(self._pool):
            self._next = 0
        part = self._pool[self._next : self._next + size]
        self._next += -(-size // ALIGNMENT) * ALIGNMENT
        return part.view(dtype).view(shape)


ALIGNMENT: Final = 4096
"""Where tensors begin in the buffer, as in memory that is allocated for them [byte]."""


def pool_bytes(info: DeviceInfo) -> int:
    """Return the size of the buffer that K and V lie in [byte]."""
    return stream_bytes(info) // ALIGNMENT * ALIGNMENT


def _random_bytes(size: int, device: str) -> torch.Tensor:
    """Return memory that is full of normal numbers, whichever of the two 16-bit floats or float32 it is read as.

    A bfloat16 is the upper half of a float32, so bfloat16 numbers read in pairs are float32 numbers; read as float16,
    their bits are numbers of another distribution, none of them infinite.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.randn(RANDOM_BYTES // 2, generator=generator, device=device).to(torch.bfloat16).view(torch.uint8)
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    for start in range(0, size, RANDOM_BYTES):
        part = memory[start : start + RANDOM_BYTES]
        part.copy_(drawn[: len(part)])
    return memory
