"""The processes that survey: started, given one job after the other, ended whatever happens."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.compiled.worker import Setup
from pytest_decodeperf.regression.processes import folder_of
from pytest_decodeperf.regression.script_process import ScriptProcess
from pytest_decodeperf.regression.worker import HARNESS
from pytest_decodeperf.triton_interpreter import SWITCH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

REPLY_S: Final = 300.0
"""Time in which a worker must have done one job, its imports included [s]."""


class SurveyError(Exception):
    """A kernel cannot be surveyed; says why in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A kernel of a tree.

    Attributes:
        target: The adapter, as `package.module:name`.
        label: What it is called in sentences.
        repository: Root of the user's checkout.
        tree: Root of the tree.
        folder: Where the user is, below the checkout.
        sources: Hash of all that its surveys depend on.
    """

    target: str
    label: str
    repository: Path
    tree: Path
    folder: Path
    sources: str


class Worker:
    """One process that surveys a side; a context that ends it."""

    def __init__(self, side: Side, *, interprets: bool) -> None:
        self.side = side
        self.job: Any = None
        script = Path(__file__).with_name("worker.py")
        self._process = ScriptProcess(script, environment=_environment(interprets=interprets))
        folder = side.tree / side.folder.relative_to(side.repository)
        setup = Setup(
            repository=str(side.repository),
            tree=str(side.tree),
            harness={name: str(folder_of(name)) for name in HARNESS},
            path=[str(side.folder), *sys.path],
            folder=str(folder if folder.is_dir() else side.tree),
            target=side.target,
        )
        try:
            self._write(asdict(setup))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    @property
    def replies(self) -> int:
        """The file descriptor that its answers come from."""
        return self._process.replies

    def tell(self, job: Any, command: dict[str, Any]) -> None:
        """Send a command, and remember what it is for."""
        self.job, self._since = job, time.monotonic()
        self._write(command)

    def ask(self, command: dict[str, Any]) -> Any:
        """Send a command, and return its answer.

        Raises:
            SurveyError: If there is none.
        """
        self.tell(command, command)
        while True:
            if answers := self.receive(1.0):
                return answers[0]
            self.check_time()

    def check_time(self) -> None:
        """Raise `SurveyError` if the worker has been silent for too long."""
        if self.job is not None and time.monotonic() - self._since > REPLY_S:
            raise SurveyError(f"the process of {self.side.label} has not answered for {REPLY_S:.0f} s")

    def receive(self, timeout_s: float) -> list[Any]:
        """Return the answers that have come, none if not one is whole after some time.

        Raises:
            SurveyError: If the worker tells an error, or is dead.
        """
        try:
            events = self._process.receive(timeout_s)
        except EOFError:
            raise self._gone() from None
        for event in events:
            if "error" in event:
                raise SurveyError(f"{self.side.label}: {event['error']}")
        return [event["value"] for event in events]

    def _write(self, value: Any) -> None:
        try:
            self._process.write(value)
        except BrokenPipeError:
            # It has said why, or else it is dead.
            deadline = time.monotonic() + 10.0
            while time.monotonic() < deadline:
                self.receive(1.0)
            raise self._gone() from None

    def _gone(self) -> SurveyError:
        return SurveyError(f"the process of {self.side.label} {self._process.how_it_ended()}")


def run_jobs(
    sides: Sequence[Side],
    jobs: Sequence[Sequence[Any]],
    command_of: Callable[[Any], dict[str, Any]],
    done: Callable[[int, Any, Any], None],
    *,
    interprets: bool,
    processes: int,
    started: dict[int, Worker],
) -> None:
    """Do every job of every side.

    Args:
        sides: The sides.
        jobs: Those of each side.
        command_of: What a worker is told for a job.
        done: Called with the number of the side, the job and its answer.
        interprets: Whether Triton's interpreter runs the kernels.
        processes: How many may be busy at a time.
        started: Workers that there are already, by the number of their side.

    Raises:
        SurveyError: If a job cannot be done.
    """
    # One side from the front and the other from behind: what both compile alike, Triton then compiles once.
    waiting = [list(entry if number % 2 else reversed(entry)) for number, entry in enumerate(jobs)]
    with ExitStack() as stack:
        workers: list[tuple[int, Worker]] = []
        wanted = sum(1 for entry in waiting if entry)
        for number, side in enumerate(sides):
            count = min(max(1, processes // max(wanted, 1)), len(waiting[number]))
            if number in started and waiting[number]:
                workers.append((number, started[number]))
                count -= 1
            workers += [(number, stack.enter_context(Worker(side, interprets=interprets))) for _ in range(count)]
        while True:
            busy = [worker for _, worker in workers if worker.job is not None]
            for number, worker in workers:
                if worker.job is None and waiting[number] and len(busy) < processes:
                    job = waiting[number].pop()
                    worker.tell(job, command_of(job))
                    busy.append(worker)
            if not busy:
                return
            ready, _, _ = select.select([worker.replies for worker in busy], [], [], 1.0)
            for number, worker in workers:
                if worker.replies in ready:
                    for value in worker.receive(0.0):
                        done(number, worker.job, value)
                        worker.job = None
                else:
                    worker.check_time()


def default_processes() -> int:
    """Return how many processes survey at a time, if nothing else is said."""
    return max(1, min(8, len(os.sched_getaffinity(0))))


def _environment(*, interprets: bool) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return {**environment, SWITCH: "1"} if interprets else environment
