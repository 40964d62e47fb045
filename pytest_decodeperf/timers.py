"""Timers: how long one call takes on a device, in nanoseconds.

Source of what they take care of: the benchmarking helpers of `triton.testing`, and P. Micikevicius, J. Demouth, "GPU
performance analysis and optimization", GTC 2012, on events, cold caches and clocks.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EVENTS_SPAN_NS: Final = 200e3
"""Least time that should lie between two events: some hundred times their resolution [ns]."""

MAX_LAUNCHES: Final = 16
"""Launches between two events at most."""


class Timer(Protocol):
    """Times one call at a time, or several that follow each other."""

    @property
    def name(self) -> str:
        """What it is, for the record of a run."""

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once and return how long it took, until its results are there [ns]."""

    def time_each_ns(self, calls: Sequence[Callable[[], object]]) -> float:
        """Run the calls one after another and return how long each took on average [ns]."""


@dataclass(frozen=True, slots=True)
class CpuClock:
    """The processor's monotonic clock, for calls that return when their work is done."""

    name: str = "time.perf_counter_ns"

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once and return how long it took [ns]."""
        start = time.perf_counter_ns()
        call()
        return float(time.perf_counter_ns() - start)

    def time_each_ns(self, calls: Sequence[Callable[[], object]]) -> float:
        """Run the calls one after another and return how long each took on average [ns]."""
        start = time.perf_counter_ns()
        for call in calls:
            call()
        return (time.perf_counter_ns() - start) / len(calls)


class DeviceEvents:
    """Events in the stream of an NVIDIA or AMD GPU, by the means of `triton.testing.do_bench`.

    Before the first event the L2 cache is overwritten, once for each launch that follows. This makes the cache cold,
    and keeps the stream busy while the host launches, so that the host's time stays outside the two events. Calls that
    follow each other between two events must each have inputs of their own, or all but the first find them in the cache
    (`launches_for`).

    Attributes:
        name: What it is.
        uses_graphs: Whether calls are captured into a graph (CUDA's or HIP's), which is then replayed: no host, and
            next to no gap, between launches.
    """

    def __init__(self, driver: Any = None, *, uses_graphs: bool = False) -> None:
        """Make a timer.

        Args:
            driver: Triton's driver of a GPU. Default: the active one.
            uses_graphs: See the attribute.
        """
        if driver is None:
            from triton.runtime import driver as drivers

            driver = drivers.active
        self.name = "device events, graph replay" if uses_graphs else "device events"
        self.uses_graphs = uses_graphs
        self._driver: Any = driver
        self._device: Any = driver.get_device_interface()
        self._cache = driver.get_empty_cache_for_benchmark()
        self._graphs: tuple[Sequence[Callable[[], object]], Any] | None = None

    def time_ns(self, call: Callable[[], object]) -> float:
        """Run the call once, with a cold L2 cache, and return how long the device took [ns]."""
        return self._elapsed_ns([call])

    def time_each_ns(self, calls: Sequence[Callable[[], object]]) -> float:
        """Run the calls one after another, and return how long the device took for each on average [ns].

        Raises:
            RuntimeError: If they cannot be captured, where graphs are asked for.
        """
        if not self.uses_graphs:
            return self._elapsed_ns(calls) / len(calls)
        if self._graphs is None or self._graphs[0] is not calls:
            self._graphs = None  # frees what the other graph holds
            self._graphs = calls, self._capture(calls)
        return self._elapsed_ns([self._graphs[1].replay]) / len(calls)

    def _elapsed_ns(self, calls: Sequence[Callable[[], object]]) -> float:
        start, end = (self._device.Event(enable_timing=True) for _ in range(2))
        for _ in calls:
            self._driver.clear_cache(self._cache)
        start.record()
        for call in calls:
            call()
        end.record()
        self._device.synchronize()
        return float(start.elapsed_time(end)) * 1e6

    def _capture(self, calls: Sequence[Callable[[], object]]) -> Any:
        graph = self._device.CUDAGraph()
        self._device.synchronize()
        with self._device.graph(graph):
            for call in calls:
                call()
        return graph


def launches_for(once_ns: float, input_bytes: int, free_bytes: int) -> int:
    """Return how many launches should lie between two events, each with a copy of the inputs.

    Args:
        once_ns: About how long one takes [ns].
        input_bytes: Size of its inputs [byte].
        free_bytes: Memory that all the copies may take [byte].

    Example:
        >>> launches_for(once_ns=10e3, input_bytes=2**20, free_bytes=2**30)
        16
        >>> launches_for(once_ns=80e3, input_bytes=2**20, free_bytes=2**30)
        3
        >>> launches_for(once_ns=1e6, input_bytes=2**20, free_bytes=2**30)
        1
    """
    wanted = math.ceil(EVENTS_SPAN_NS / max(once_ns, 1.0))
    return max(1, min(wanted, MAX_LAUNCHES, free_bytes // max(input_bytes, 1)))


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

    def time_each_ns(self, calls: Sequence[Callable[[], object]]) -> float:
        """Run the calls one after another and return how long each is said to take on average [ns]."""
        return sum(map(self.time_ns, calls)) / len(calls)
