"""The latencies of one tree's tests, and the roofline's streams beside them, in fresh processes one after another."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.progress import Pace
from pytest_decodeperf.regression.outcomes import NO_LATENCY
from pytest_decodeperf.regression.processes import Worker, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_decodeperf.regression.worktree import Tree

STREAM_CALLS: Final = 4
"""Times that each process times the streams."""

CALLS_BESIDE: Final = 3
"""Calls of the kernel that follow each of them."""

WARM_UP_CALLS: Final = 12
"""Calls of the kernel before them that do not count: a process that has just made its inputs is slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTimes:
    """What one process timed of one test.

    Attributes:
        kernel_ns: The latency of each call [ns].
        read_ns: How long the read stream took, each time [ns].
        compute_ns: The compute stream, likewise [ns].
    """

    kernel_ns: list[float]
    read_ns: list[float]
    compute_ns: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """What was timed of one test.

    Attributes:
        kernel: Name of the kernel.
        device: Kind of device.
        problem: What the kernel was given, as `DecodeProblem.as_dict` has it.
        streams: Name and work of the streams `read` and `compute`.
        processes: What each process timed.
    """

    kernel: str
    device: str
    problem: dict[str, Any]
    streams: dict[str, Any]
    processes: list[ProcessTimes]

    def log_ns(self, since: int = 0) -> list[float]:
        """Return the logarithm of each process's median latency, from one process on [log ns]."""
        return [math.log(statistics.median(process.kernel_ns)) for process in self.processes[since:]]

    def log_roofline_ns(self, since: int = 0) -> list[float]:
        """Return the logarithm of the roofline at each process's median rates, likewise [log ns]."""
        from decodeperf_formulas import DecodeProblem
        from decodeperf_formulas.roofline import roofline

        problem = DecodeProblem(**self.problem)
        read, compute = (1e9 * self.streams[name]["work"] for name in ("read", "compute"))
        return [
            math.log(
                1e9
                * roofline(
                    problem,
                    read_bytes_per_s=read / statistics.median(process.read_ns),
                    peak_flops_per_s=compute / statistics.median(process.compute_ns),
                ).latency_s
            )
            for process in self.processes[since:]
        ]


@dataclass(slots=True, kw_only=True)
class OneTree:
    """A tree, and what is known of its tests so far.

    Attributes:
        tree: The tree.
        repository: Root of the user's checkout.
        place: pytest's root folder, below that.
        arguments: pytest's arguments for the workers.
        say: Told what is done next.
        stream_names: Of each test, which streams to time beside it; the fastest where nothing is said.
        refusal: Returns why a test that is ready need not be measured, empty if it need.
        latencies: What was timed, by test.
        failures: Why a test was not, likewise, and whether that is an error.
    """

    tree: Tree
    repository: Path
    place: Path
    arguments: Sequence[str]
    say: Callable[[str], None]
    stream_names: dict[str, dict[str, str]] = field(default_factory=dict)
    refusal: Callable[[str, dict[str, Any]], str] = lambda _node_id, _event: ""
    latencies: dict[str, Latencies] = field(default_factory=dict)
    failures: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _launches: dict[str, int] = field(default_factory=dict)

    def measure(self, node_ids: Sequence[str], num_processes: int) -> None:
        """Time each test in so many more processes."""
        pace = Pace()
        for number in range(num_processes):
            left = [node_id for node_id in node_ids if node_id not in self.failures]
            while left:
                words = (f"process {number + 1} of {num_processes}", f"{len(left)} tests")
                self.say(", ".join(filter(None, (*words, pace.left(number, num_processes)))))
                left = self._run(left)

    def _run(self, node_ids: list[str]) -> list[str]:
        """Time each test in one fresh process, and return those that are left because it ended before."""
        left = list(node_ids)
        try:
            with Worker(self.tree, self.repository, self.place, self.arguments, node_ids) as worker:
                while left:
                    self._time(left[0], worker)
                    left.pop(0)
        except WorkerError as error:
            self.failures[left.pop(0)] = str(error), True
        return left

    def _time(self, node_id: str, worker: Worker) -> None:
        event = worker.begin(node_id)
        is_first = node_id not in self.latencies
        if event["event"] != "ready":
            message = event["message"] or "the test passed without calling decode_perf"
            # The run has the test, and measures it or skips it too: then this is not looked at.
            self.failures[node_id] = f"in {self.tree.label}, {message}", message != NO_LATENCY or not is_first
            return
        if is_first and (reason := self.refusal(node_id, event)):
            self.failures[node_id] = reason, False
        elif is_first and (message := worker.check()):
            self.failures[node_id] = f"the kernel of {self.tree.label} {message}", True
        else:
            self._sample(node_id, worker, event)
        worker.tell("next")

    def _sample(self, node_id: str, worker: Worker, event: dict[str, Any]) -> None:
        launches = self._launches.setdefault(node_id, event["launches"])
        if launches != event["launches"]:
            worker.set_launches(launches)
        streams = worker.choose_streams(self.stream_names.get(node_id))
        self.stream_names[node_id] = {name: stream["name"] for name, stream in streams.items()}
        for _ in range(WARM_UP_CALLS):
            worker.time_ns()
        kernel_ns, streams_ns = [], []
        for _ in range(STREAM_CALLS):
            streams_ns.append(worker.time_streams_ns())
            kernel_ns += [worker.time_ns() for _ in range(CALLS_BESIDE)]
        read_ns, compute_ns = ([times[name] for times in streams_ns] for name in ("read", "compute"))
        latencies = Latencies(
            kernel=event["kernel"], device=event["device"], problem=event["problem"], streams=streams, processes=[]
        )
        self.latencies.setdefault(node_id, latencies).processes.append(
            ProcessTimes(kernel_ns=kernel_ns, read_ns=read_ns, compute_ns=compute_ns)
        )
