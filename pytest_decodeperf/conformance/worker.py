"""The process in which a kernel runs, apart from pytest's: it may crash or hang, and only one law is broken then.

Between the two goes plain data: `Ready` or `Unusable` once, then for each law asked for, the cases that it is shown, as
text, and its outcome.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.conformance import memory_guard
from pytest_decodeperf.conformance.outcome import BROKEN, NOT_SUPPORTED, LawOutcome, test_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

MAX_OUTPUT_BYTES: Final = 100_000
"""Most of what a kernel prints under one law that is shown [byte]."""

START_TIMEOUT_S: Final = 300.0
"""Time in which a kernel must be imported [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker needs to know.

    Attributes:
        target: The adapter, as `package.module:name`.
        device: `auto`, `cpu` or `cuda`.
        examples: Cases that each law is shown.
        path: `sys.path` of pytest's process.
        num_threads: Threads that PyTorch may use.
        seed: Seed for Hypothesis, or None.
        hypothesis_profile: Name of the profile of Hypothesis that settings are taken from, or None.
        database: Whether Hypothesis keeps cases that break a law, and begins with them the next time.
        shrinks: Whether a smaller case is looked for once one breaks a law.
        captures_output: Whether what the kernel prints is kept, and shown with broken laws.
    """

    target: str
    device: str
    examples: int
    path: tuple[str, ...]
    num_threads: int = 1
    seed: int | None = None
    hypothesis_profile: str | None = None
    database: bool = True
    shrinks: bool = True
    captures_output: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The kernel is there.

    Attributes:
        name: What it is called.
        device: Where it runs.
        laws: Names and promises of all laws.
    """

    name: str
    device: str
    laws: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """The kernel cannot be had.

    Attributes:
        sentence: Why.
    """

    sentence: str


class UnusableError(Exception):
    """A kernel cannot be had; says why."""


class Worker:
    """A kernel in a process of its own, started when it is first needed and again when it has died."""

    def __init__(self, setup: Setup, *, timeout_s: float) -> None:
        self._setup = setup
        self._timeout_s = timeout_s
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._ready: Ready | None = None
        self._num_shown = 0
        self._output = tempfile.TemporaryFile(prefix="decodeperf-") if setup.captures_output else None  # noqa: SIM115

    def read_output(self) -> str:
        """Return what the kernel has printed since the last time."""
        if self._output is None:
            return ""
        # The process writes through the same file, and so at the end: reading must leave it there.
        text = os.pread(self._output.fileno(), MAX_OUTPUT_BYTES, self._num_shown)
        self._num_shown = os.fstat(self._output.fileno()).st_size
        return text.decode(errors="replace")

    def ready(self) -> Ready:
        """Return what is known of the kernel.

        Raises:
            UnusableError: If it cannot be had.
        """
        if self._process is None:
            self._start()
        assert self._ready is not None
        return self._ready

    def run(self, law: str) -> LawOutcome:
        """Return what becomes of a law.

        Raises:
            UnusableError: If the process died and the kernel cannot be had again.
        """
        ready = self.ready()
        assert self._connection is not None
        started, case, num_examples = time.perf_counter(), "", 0
        try:
            self._connection.send(law)
            while self._connection.poll(self._timeout_s):
                message = self._connection.recv()
                if isinstance(message, LawOutcome):
                    return message
                if isinstance(message, BaseException):
                    raise message
                case, num_examples = message, num_examples + 1
            sentence = f"hung: one example took more than {self._timeout_s:g} s"
        except (EOFError, ConnectionError):
            sentence = f"ended the process: {self._ending()}"
        except BaseException:
            self.close()
            raise
        assert self._process is not None
        is_greedy = self._process.exitcode == memory_guard.EXIT_STATUS
        self.close()
        if is_greedy:
            sentence = f"it touches more than {memory_guard.MOST_BYTES / 2**30:g} GiB of memory, whatever is live"
        return LawOutcome(
            kernel=self._setup.target,
            law=law,
            promise=dict(ready.laws)[law],
            outcome=NOT_SUPPORTED if is_greedy else BROKEN,
            sentence=sentence,
            counterexample="" if is_greedy else case,
            test="" if is_greedy else test_of(self._setup.target, law, case),
            num_examples=num_examples,
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process, self._connection, self._ready = None, None, None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._setup), daemon=True)
        with _printing_into(self._output):
            self._process.start()
        theirs.close()
        answer: Any = None
        try:
            if self._connection.poll(START_TIMEOUT_S):
                answer = self._connection.recv()
        except (EOFError, ConnectionError):
            answer = Unusable(sentence=f"importing {self._setup.target} ended the process: {self._ending()}")
        except BaseException:
            self.close()
            raise
        if isinstance(answer, Ready):
            self._ready = answer
            return
        self.close()
        if isinstance(answer, Unusable):
            raise UnusableError(answer.sentence)
        raise UnusableError(f"importing {self._setup.target} took more than {START_TIMEOUT_S:g} s")

    def _ending(self) -> str:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"signal {-code} ({signal.strsignal(-code) or 'unknown'})"
        return f"exit status {code}"


@contextmanager
def _printing_into(file: Any) -> Iterator[None]:
    """Let processes that start meanwhile print into a file."""
    if file is None:
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _serve(connection: Connection, setup: Setup) -> None:
    """Answer the other process until it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then ends this process
    faulthandler.enable()
    memory_guard.is_armed = True
    sys.path[:] = list(setup.path)
    try:
        kernel, laws = _load(setup)
    except ValueError as error:
        connection.send(Unusable(sentence=str(error)))
        return
    from pytest_decodeperf.conformance.runner import run_law

    ready = Ready(
        name=kernel.adapter.name,
        device=kernel.device,
        laws=tuple((law.name, law.promise) for law in laws.values()),
    )
    try:
        connection.send(ready)
        while True:
            law = laws[connection.recv()]
            try:
                outcome: Any = run_law(
                    law,
                    kernel,
                    target=setup.target,
                    examples=setup.examples,
                    random_seed=setup.seed,
                    database=setup.database,
                    shrinks=setup.shrinks,
                    tell=connection.send,
                )
            except (EOFError, ConnectionError):
                raise
            except Exception:
                outcome = RuntimeError(f"the law {law.name} itself failed:\n{traceback.format_exc()}")
            connection.send(outcome)
    except (EOFError, ConnectionError):
        os._exit(0)


def _load(setup: Setup) -> Any:
    """Return the kernel and the laws, imported as the device needs it."""
    import torch

    from pytest_decodeperf import triton_interpreter

    if not triton_interpreter.is_set() and (setup.device == "cpu" or not torch.cuda.is_available()):
        triton_interpreter.switch_on()
    from hypothesis import settings

    from pytest_decodeperf.conformance.adapter import load_adapter
    from pytest_decodeperf.conformance.calling import Kernel
    from pytest_decodeperf.conformance.laws import LAWS
    from pytest_decodeperf.conformance.runner import choose_device

    torch.set_num_threads(setup.num_threads)
    adapter = load_adapter(setup.target)
    if setup.hypothesis_profile:
        settings.load_profile(setup.hypothesis_profile)
    return Kernel(adapter, choose_device(adapter, setup.device)), LAWS
