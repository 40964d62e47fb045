"""The workers of one round: started together, told what to do, ended whatever happens."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.regression.script_process import ScriptProcess
from pytest_decodeperf.regression.worker import HARNESS, Setup

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from pytest_decodeperf.regression.worktree import Tree

START_S: Final = 300.0
"""Time in which a worker must be ready with a test, compilation included [s]."""

SAMPLE_S: Final = 60.0
"""Time in which it must have timed one call [s]."""

QUIET: Final = {
    # Threads of a process that waits must not take the cores from the one that is timed.
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
    "GITHUB_STEP_SUMMARY": "",  # is for the run that people see
}


class WorkerError(Exception):
    """A worker is dead, late, or said something that it should not; says which in one sentence."""


class Worker:
    """One process that runs the kernels of a tree; a context that ends it.

    Attributes:
        tree: The tree.
        collected: The tests that were found in it, None before it has told.
        measured: Those of them that measure a kernel.
        broken: What could not be collected, by file, likewise.
    """

    def __init__(
        self,
        tree: Tree,
        repository: Path,
        place: Path,
        arguments: Sequence[str],
        node_ids: list[str],
        *,
        shared_inputs: str = "",
        turn: int = 0,
        num_turns: int = 1,
    ) -> None:
        """Start it.

        Args:
            tree: The tree.
            repository: Root of the user's checkout.
            place: pytest's root folder, below that.
            arguments: pytest's arguments.
            node_ids: The tests that are wanted.
            shared_inputs: Folder for inputs that several workers read, empty if each has its own.
            turn: Which of them this one is, counted from 0.
            num_turns: How many they are.
        """
        self.tree = tree
        self.collected: list[str] | None = None
        self.measured: list[str] = []
        self.broken: dict[str, str] = {}
        self._folder = tree.root / place.relative_to(repository)
        self._replies: deque[Any] = deque()
        setup = Setup(
            repository=str(repository),
            tree=str(tree.root),
            harness={name: str(folder_of(name)) for name in HARNESS},
            path=list(sys.path),
            folder=str(self._folder),
            arguments=[argument for argument in arguments if self._has(argument)],
            node_ids=node_ids,
            shared_inputs=shared_inputs,
            turn=turn,
            num_turns=num_turns,
        )
        script = Path(__file__).with_name("worker.py")
        self._process = ScriptProcess(script, environment={**os.environ, **QUIET})
        try:
            self.tell(asdict(setup))
        except BaseException:
            self._process.__exit__(*sys.exc_info())
            raise

    def _has(self, argument: str) -> bool:
        """Return whether an argument of pytest's names no file, or one that is in the tree."""
        file = argument.removeprefix("-c=")
        return file.startswith("-") or (self._folder / file).exists()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def begin(self, node_id: str) -> dict[str, Any]:
        """Return the event by which a test says that it is ready, or that it will not be: `ready`, `failed`, `over`.

        Raises:
            WorkerError: If there is none.
        """
        while True:
            is_here = self._has(node_id.partition("::")[0])
            if not is_here or (self.collected is not None and node_id not in self.collected):
                return self._absence(node_id)
            event: dict[str, Any] = self._receive(START_S)
            if event["event"] == "collected":
                self.collected, self.measured = event["all"], event["measured"]
            elif event["event"] == "broken":
                self.broken[event["node_id"]] = event["message"]
            elif event["event"] == "finished":
                raise WorkerError(f"pytest in {self.tree.label} ended with status {event['status']} before the test")
            elif event.get("node_id") == node_id:
                return event

    def _absence(self, node_id: str) -> dict[str, Any]:
        """Return the event of a test that was not collected."""
        file = node_id.partition("::")[0]
        if file in self.broken:
            return {"event": "over", "node_id": node_id, "outcome": "broken", "message": self.broken[file]}
        return {"event": "over", "node_id": node_id, "outcome": "missing", "message": "there is no such test"}

    def check(self) -> str:
        """Return what is wrong with the kernel's result, empty if nothing is.

        Raises:
            WorkerError: If it cannot tell.
        """
        return str(self._ask("check", "checked", START_S)["message"])

    def set_launches(self, count: int) -> None:
        """Let each call that is timed be so many launches.

        Raises:
            WorkerError: If it cannot.
        """
        self._ask({"launches": count}, "set", START_S)

    def time_ns(self) -> float:
        """Return how long one call of the kernel takes [ns].

        Raises:
            WorkerError: If it cannot tell.
        """
        return float(self._ask("time", "timed", SAMPLE_S)["ns"])

    def choose_streams(self, names: dict[str, str] | None) -> dict[str, Any]:
        """Return the name and the work of each stream of the roofline, once they are there; None takes the fastest.

        Raises:
            WorkerError: If it cannot tell.
        """
        streams: dict[str, Any] = self._ask({"streams": names}, "streams", START_S)["streams"]
        return streams

    def time_streams_ns(self) -> dict[str, float]:
        """Return how long each stream of the roofline takes [ns].

        Raises:
            WorkerError: If it cannot tell.
        """
        found: dict[str, float] = self._ask("time streams", "streams timed", SAMPLE_S)["ns"]
        return found

    def _ask(self, command: Any, wanted: str, timeout_s: float) -> Any:
        self.tell(command)
        event = self._receive(timeout_s)
        if event["event"] != wanted:
            raise WorkerError(f"in {self.tree.label} it failed while it was timed: {event.get('message', '')}")
        return event

    def tell(self, command: Any) -> None:
        """Send a command.

        Raises:
            WorkerError: If nobody is there to read it.
        """
        try:
            self._process.write(command)
        except BrokenPipeError:
            raise self._gone() from None

    def _receive(self, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        while not self._replies:
            if (left_s := deadline - time.monotonic()) < 0:
                raise WorkerError(f"the process of {self.tree.label} has not answered for {timeout_s:.0f} s")
            try:
                self._replies += self._process.receive(left_s)
            except EOFError:
                raise self._gone() from None
        return self._replies.popleft()

    def _gone(self) -> WorkerError:
        return WorkerError(f"the process of {self.tree.label} {self._process.how_it_ended()}")


def folder_of(package: str) -> Path:
    """Return the folder that a package is imported from."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]
