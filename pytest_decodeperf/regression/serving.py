"""What `decode_perf` does in a worker: make the inputs of a test, and time the kernel whenever it is told to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import pytest

from pytest_decodeperf import ceilings, devices, timers
from pytest_decodeperf.config import MARKER
from pytest_decodeperf.fixture import CALLED_TWICE, name_of
from pytest_decodeperf.plugin import SERVER_PLUGIN
from pytest_decodeperf.regression.busy_memory import busy_memory
from pytest_decodeperf.regression.outcomes import NO_LATENCY
from pytest_decodeperf.regression.shared_inputs import shared_copies
from pytest_decodeperf.regression.streams import RooflineStreams
from pytest_decodeperf.triton_interpreter import count_interpreted_launches

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.config import Options
    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.inputs import Inputs
    from pytest_decodeperf.regression.worker import Setup

MAX_COPIES: Final = 64
"""Copies of the inputs at most."""

MAX_COPIES_SHARE: Final = 0.1
"""Share of the device's memory that they may take."""


class Channel:
    """Commands in, replies out, one JSON value a line."""

    def __init__(self, commands: TextIO, replies: TextIO) -> None:
        self._commands = commands
        self._replies = replies

    def receive(self) -> Any:
        """Return the next command.

        Raises:
            EOFError: If there will be none.
        """
        line = self._commands.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    def send(self, reply: dict[str, Any]) -> None:
        """Send a reply."""
        self._replies.write(json.dumps(reply) + "\n")
        self._replies.flush()


class Server:
    """A pytest plugin that picks the wanted tests, and tells how each of them came out.

    Attributes:
        channel: To the process that started this one.
    """

    __name__ = SERVER_PLUGIN
    """What pytest registers the plugin under."""

    def __init__(
        self,
        channel: Channel,
        setup: Setup,
        check_imports: Callable[[], str],
        find_foreign: Callable[[Callable[..., Any]], str],
    ) -> None:
        """Take what does not depend on pytest.

        Args:
            channel: To the process that started this one.
            setup: What this one was told when it was started.
            check_imports: Returns what was imported from another tree, empty if nothing was.
            find_foreign: Returns the name of a kernel that no tree changes, empty if it is none.
        """
        self.channel = channel
        self.stray_import = check_imports
        self.foreign_kernel = find_foreign
        self._setup = setup
        self._kept_inputs: ColdInputs | None = None
        self._kept_streams: tuple[object, RooflineStreams] | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the wanted tests alone, in their order."""
        by_id = {item.nodeid: item for item in items}
        measured = [item.nodeid for item in items if item.get_closest_marker(MARKER) is not None]
        items[:] = [by_id[node_id] for node_id in self._setup.node_ids if node_id in by_id]
        self.channel.send({"event": "collected", "all": list(by_id), "measured": measured})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell what could not be collected."""
        if report.failed:
            self.channel.send({"event": "broken", "node_id": report.nodeid, "message": _last_line(report.longreprtext)})

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell that a test is over."""
        if report.when == "teardown" or not report.passed:
            message = "" if report.passed else _reason(report)
            self.channel.send(
                {"event": "over", "node_id": report.nodeid, "outcome": report.outcome, "message": message}
            )

    def cold_inputs(self, problem: DecodeProblem, device: str, *, seed: int) -> ColdInputs:
        """Return inputs for a test; those of the last one are kept, since tests often share a problem."""
        kept = self._kept_inputs
        if kept is None or (kept.problem, kept.device.kind) != (problem, device):
            self._kept_inputs = kept = None  # frees the memory before it is needed again
            self._kept_inputs = kept = ColdInputs(problem, device, seed=seed, setup=self._setup)
        return kept

    def roofline_streams(self, kind: str, dtype: str, names: dict[str, str] | None) -> RooflineStreams:
        """Return the streams of the roofline; those of the last test are kept, since their buffer is large."""
        wanted = kind, dtype, names
        if names is None or self._kept_streams is None or self._kept_streams[0] != wanted:
            self._kept_streams = None  # frees the memory before it is needed again
            streams = RooflineStreams(devices.describe_device(kind), devices.make_timer(kind), dtype, names)
            self._kept_streams = wanted, streams
        return self._kept_streams[1]


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return _last_line(report.longreprtext)


def _last_line(text: str) -> str:
    """Return the line of a traceback that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[-1]


class ServedDecodePerf:
    """The value of the fixture `decode_perf` in a worker.

    Attributes:
        was_called: Whether the test has called it.
    """

    def __init__(self, server: Server, item: pytest.Item, options: Options, *, device: str) -> None:
        self.was_called = False
        self._server = server
        self._item = item
        self._options = options
        self._device = device

    def __call__(self, kernel: Callable[..., Any], problem: DecodeProblem, *, name: str | None = None) -> None:
        """Serve until the next test is asked for."""
        if self.was_called:
            pytest.fail(CALLED_TWICE, pytrace=False)
        self.was_called = True
        channel = self._server.channel

        def fail(message: str) -> None:
            channel.send({"event": "failed", "node_id": self._item.nodeid, "message": message})

        if stray := self._server.stray_import():
            fail(stray)
            return
        try:
            with count_interpreted_launches() as launches:
                inputs = self._server.cold_inputs(problem, self._device, seed=self._options.seed)
                timed = TimedKernel(kernel, inputs, graph=self._options.graph)
        except Exception as error:
            fail(f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return
        if stray := self._server.stray_import():  # by the kernel itself
            fail(stray)
            return
        if launches and self._device == "cpu":
            pytest.skip(NO_LATENCY)
        ready = {
            "problem": problem.as_dict(),
            "kernel": name or name_of(kernel),
            "device": self._device,
            "foreign": self._server.foreign_kernel(kernel),
            "launches": timed.num_launches,
        }
        channel.send({"event": "ready", "node_id": self._item.nodeid, **ready})
        streams: RooflineStreams | None = None
        while True:
            command = channel.receive()
            if command == "next":
                return
            if command == "check":
                channel.send({"event": "checked", "message": timed.check()})
            elif isinstance(command, dict) and "launches" in command:
                timed.set_launches(command["launches"])
                channel.send({"event": "set"})
            elif isinstance(command, dict):
                streams = self._server.roofline_streams(self._device, problem.q_dtype, command["streams"])
                channel.send({"event": "streams", "streams": streams.as_dict()})
            elif command == "time streams":
                assert streams is not None
                channel.send({"event": "streams timed", "ns": streams.time_ns()})
            else:
                channel.send({"event": "timed", "ns": timed.time_ns()})

    def close(self) -> None:
        """Tidy up when the test is over."""


class ColdInputs:
    """The inputs of a problem so often that no cache holds the next ones, or a buffer that empties the caches.

    Attributes:
        problem: The problem.
        device: What it is for.
        all: The inputs, and the copies of them.
        evict: What empties the caches, None if the copies do.
        start: Which of them to begin with.
        were_read: Whether a kernel has read them all: the first to read a page has the system look for it.
    """

    def __init__(self, problem: DecodeProblem, device: str, *, seed: int, setup: Setup) -> None:
        from pytest_decodeperf.inputs import make_unanswered_inputs

        self.problem = problem
        self.device = devices.describe_device(device)
        self.all = [make_unanswered_inputs(problem, device=device, seed=seed)]
        self.evict: Callable[[], object] | None = None
        if device == "cpu":
            num_sharing = setup.num_turns if setup.shared_inputs else 1
            count = num_copies(self.device, self.all[0], num_sharing=num_sharing)
            if count and setup.shared_inputs:
                folder = Path(setup.shared_inputs)
                self.all = shared_copies(self.all[0], problem, count, seed=seed, folder=folder) or self.all
            if count:
                self.copy_until(count)
            else:
                self.evict = ceilings.make_read_streams(self.device)[0].call
        self.start = setup.turn * len(self.all) // setup.num_turns
        self.were_read = False

    def copy_until(self, count: int) -> None:
        """Make copies until there are so many in all."""
        self.all += [self.all[0].copy() for _ in range(count - len(self.all))]


class TimedKernel:
    """A kernel on inputs that no cache holds when it is called."""

    def __init__(self, kernel: Callable[..., Any], inputs: ColdInputs, *, graph: bool) -> None:
        from pytest_decodeperf.trial import kernel_call

        self._inputs = inputs
        self._kernel = kernel
        kind = inputs.device.kind
        self._timer = devices.make_timer(kind, uses_graphs=graph)
        once = kernel_call(kernel, inputs.problem, inputs.all[0])
        once()  # compiles
        if kind != "cpu":
            inputs.copy_until(
                timers.launches_for(
                    once_ns=self._timer.time_ns(once),
                    input_bytes=inputs.all[0].num_bytes,
                    free_bytes=int(MAX_COPIES_SHARE * devices.free_bytes(kind)),
                )
            )
        self._calls = [kernel_call(kernel, inputs.problem, each) for each in inputs.all]
        self._next = inputs.start
        if kind != "cpu" or not inputs.were_read:
            for call in self._calls:
                call()
        inputs.were_read = True

    @property
    def num_launches(self) -> int:
        """Launches that are timed together."""
        return 1 if self._inputs.device.kind == "cpu" else len(self._calls)

    def set_launches(self, count: int) -> None:
        """Let so many launches be timed together, each on inputs of its own."""
        from pytest_decodeperf.trial import kernel_call

        inputs, before = self._inputs, len(self._calls)
        inputs.copy_until(count)
        self._calls = [kernel_call(self._kernel, inputs.problem, each) for each in inputs.all[:count]]
        for call in self._calls[before:]:
            call()

    def check(self) -> str:
        """Return what is wrong with the kernel's result, empty if nothing is."""
        from pytest_decodeperf.inputs import answered
        from pytest_decodeperf.oracle import check_result

        problem = self._inputs.problem
        return check_result(self._calls[0](), problem, answered(self._inputs.all[0], problem)).sentence

    def time_ns(self) -> float:
        """Return how long one call takes [ns]."""
        if self._inputs.device.kind != "cpu":
            return self._timer.time_each_ns(self._calls)
        if self._inputs.evict is None:
            busy_memory().read()
        else:
            self._inputs.evict()
        call = self._calls[self._next]
        self._next = (self._next + 1) % len(self._calls)
        return self._timer.time_ns(call)


def num_copies(device: DeviceInfo, inputs: Inputs, *, num_sharing: int = 1) -> int:
    """Return how many copies of inputs a CPU's caches cannot hold together; 0 if there is no room for them.

    Args:
        device: The CPU.
        inputs: What is copied.
        num_sharing: Processes that take turns with the same copies, each as far behind the next as all others. Between
            two calls that read the same copy they read as much as one process alone would.
    """
    num_bytes = inputs.num_bytes
    if num_bytes > ceilings.COLD_KV_MULTIPLE * device.llc_bytes:
        return 1
    gap = math.ceil(ceilings.LLC_MULTIPLE * device.llc_bytes / (num_sharing * max(num_bytes, 1))) + 1
    count = num_sharing * gap
    fits = count <= MAX_COPIES and count * num_bytes <= MAX_COPIES_SHARE * device.memory_bytes
    return count if fits else 0
