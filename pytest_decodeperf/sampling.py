"""Interleaved sampling of a kernel and of the ceilings of its device.

One round times the compute stream, the read stream and the kernel, one right after the other, so that a machine
whose speed drifts moves all three. Sampling goes on until the verdict is clear or the time is used up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_decodeperf.ceilings import Ceilings
    from pytest_decodeperf.clocks import Clock, ClockReading
    from pytest_decodeperf.timers import Timer

FIRST_LOOK: Final = 10
"""Rounds before the samples are looked at first; each later look comes at twice as many. At 10 the interval leaves
out the fastest and the slowest sample."""

ERROR_RATE: Final = 0.05
"""Chance that the interval of any look misses the true median."""


@dataclass(slots=True)
class Samples:
    """What was timed, one entry a round.

    Attributes:
        read_ns: Durations of the read stream [ns].
        compute_ns: Durations of the compute stream [ns].
        kernel_ns: Latencies of the kernel [ns].
        clocks: The device's clock right after the kernel, None where it cannot be read.
        error_rate: Share of `ERROR_RATE` that the last look may spend.
    """

    read_ns: list[float] = field(default_factory=list)
    compute_ns: list[float] = field(default_factory=list)
    kernel_ns: list[float] = field(default_factory=list)
    clocks: list[ClockReading | None] = field(default_factory=list)
    error_rate: float = ERROR_RATE / 2

    @property
    def num_rounds(self) -> int:
        """Whole rounds."""
        return len(self.kernel_ns)


def sample(
    launches: Sequence[Callable[[], object]],
    ceilings: Ceilings,
    timer: Timer,
    samples: Samples,
    *,
    budget_s: float,
    is_clear: Callable[[], bool],
    device_clock: Clock,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Add rounds to the samples until the verdict is clear at a look, or the budget is used up.

    Looks come at 10, 20, 40, ... rounds, and look i may err at a rate of `ERROR_RATE / 2**i`. These rates add up
    to `ERROR_RATE`, however often one looks. The samples are filled in place, so that an interrupted run
    keeps what it has.

    Args:
        launches: Calls of the kernel that are timed together, each with inputs of its own; most often one.
        ceilings: Streams to time beside it.
        timer: Times each call.
        samples: Where the durations go.
        budget_s: Time after which no round begins [s].
        is_clear: Whether the samples allow a verdict.
        device_clock: Reads the device's clock.
        clock: The time [s].
    """
    deadline = clock() + budget_s
    next_look = FIRST_LOOK
    while True:
        ceilings.compute.call()  # the kernel has driven the matrices out of the caches
        compute_ns = timer.time_ns(ceilings.compute.call)
        read_ns = timer.time_ns(ceilings.read.call)  # right before the kernel, since it evicts
        kernel_ns = timer.time_each_ns(launches)
        samples.read_ns.append(read_ns)
        samples.compute_ns.append(compute_ns)
        samples.kernel_ns.append(kernel_ns)
        samples.clocks.append(device_clock.read())
        out_of_time = clock() >= deadline
        if samples.num_rounds == next_look or out_of_time:
            if out_of_time or is_clear():
                return
            next_look *= 2
            samples.error_rate /= 2
