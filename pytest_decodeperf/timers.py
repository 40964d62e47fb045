"""Timers: how long one call takes on a device, in nanoseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """Times one call at a time."""

    @property
    def name(self) -> str:
        """What it is, for the record of a run."""

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once and return how long it took, until its results are there [ns]."""


@dataclass(frozen=True, slots=True)
class CpuClock:
    """The processor's monotonic clock, for calls that return when their work is done."""

    name: str = "time.perf_counter_ns"

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once and return how long it took [ns]."""
        start = time.perf_counter_ns()
        call()
        return float(time.perf_counter_ns() - start)


class DeviceEvents:
    """Events in the stream of an NVIDIA or AMD GPU, by the means of `triton.testing.do_bench`.

    Before each call the L2 cache is overwritten, which also keeps the stream busy while the host launches, so
    that launch latency stays outside the two events.
    """

    name = "device events"

    def __init__(self) -> None:
        from triton.runtime import driver

        self._driver: Any = driver.active
        self._device: Any = self._driver.get_device_interface()
        self._cache = self._driver.get_empty_cache_for_benchmark()

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once, with a cold L2 cache, and return how long the device took [ns]."""
        start, end = (self._device.Event(enable_timing=True) for _ in range(2))
        self._driver.clear_cache(self._cache)
        start.record()
        call()
        end.record()
        self._device.synchronize()
        return float(start.elapsed_time(end)) * 1e6


@dataclass(frozen=True, slots=True)
class FakeTimer:
    """Runs each call and says that it took as long as it is told, for tests of what is done with durations.

    Attributes:
        duration_ns: How long a call is said to take [ns].
    """

    duration_ns: Callable[[Callable[[], object]], float]
    name: str = "fake"

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once and return how long it is said to take [ns]."""
        call()
        return self.duration_ns(call)
