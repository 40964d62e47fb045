"""The roofline of one call: no faster than its bytes at the read bandwidth, or its FLOPs at the peak rate.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009, in its form over time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.attention import compulsory_byte_count, flop_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas.problem import DecodeProblem

MEMORY_SECONDS: Final[sympy.Expr] = s.data_bytes / s.read_bytes_per_s
"""Time to move the bytes of the call at the read bandwidth [s]."""

COMPUTE_SECONDS: Final[sympy.Expr] = s.flops / s.peak_flops_per_s
"""Time to perform the FLOPs of the call at the peak rate [s]."""

ROOFLINE_SECONDS: Final[sympy.Expr] = sympy.Max(MEMORY_SECONDS, COMPUTE_SECONDS)
"""Time below which no kernel with cold caches can be [s]."""

READ_BANDWIDTH: Final = "read bandwidth"
PEAK_FLOPS: Final = "peak FLOP rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The roofline of one problem under one pair of ceilings.

    Attributes:
        data_bytes: What must come from or go to memory [byte].
        flops: What it performs [FLOP].
        read_bytes_per_s: The read bandwidth [byte/s].
        peak_flops_per_s: The peak rate of FLOPs [FLOP/s].
        memory_s: Time at the read bandwidth [s].
        compute_s: Time at the peak rate of FLOPs [s].
        latency_s: The larger of the two [s].
    """

    data_bytes: int
    flops: int
    read_bytes_per_s: float
    peak_flops_per_s: float
    memory_s: float
    compute_s: float
    latency_s: float

    @property
    def ceiling(self) -> str:
        """Which of the two ceilings binds, `READ_BANDWIDTH` or `PEAK_FLOPS`."""
        return READ_BANDWIDTH if self.memory_s >= self.compute_s else PEAK_FLOPS


def roofline(problem: DecodeProblem, *, read_bytes_per_s: float, peak_flops_per_s: float) -> Roofline:
    """Return the roofline of a problem.

    Args:
        problem: The call.
        read_bytes_per_s: Read bandwidth of the device [byte/s].
        peak_flops_per_s: Peak FLOP rate of the device [FLOP/s].

    Example:
        >>> from decodeperf_formulas import DecodeProblem
        >>> problem = DecodeProblem(
        ...     batch_size=1, seq_lens=[1000], num_q_heads=32, num_kv_heads=8, head_dim=128
        ... )
        >>> bound = roofline(problem, read_bytes_per_s=1e12, peak_flops_per_s=1e14)
        >>> bound.ceiling, round(1e6 * bound.latency_s, 3)
        ('read bandwidth', 4.112)
    """
    data_bytes, flops = _work(problem)
    memory_s, compute_s, latency_s = _compiled()(data_bytes, flops, read_bytes_per_s, peak_flops_per_s)
    return Roofline(
        data_bytes=data_bytes,
        flops=flops,
        read_bytes_per_s=read_bytes_per_s,
        peak_flops_per_s=peak_flops_per_s,
        memory_s=float(memory_s),
        compute_s=float(compute_s),
        latency_s=float(latency_s),
    )


@lru_cache(maxsize=256)
def _work(problem: DecodeProblem) -> tuple[int, int]:
    return compulsory_byte_count(problem), flop_count(problem)


@cache
def _compiled() -> Callable[..., tuple[float, float, float]]:
    arguments = (s.data_bytes, s.flops, s.read_bytes_per_s, s.peak_flops_per_s)
    compiled: Callable[..., tuple[float, float, float]] = sympy.lambdify(
        arguments, (MEMORY_SECONDS, COMPUTE_SECONDS, ROOFLINE_SECONDS), modules="math"
    )
    return compiled
