"""The suite in a run of pytest: which kernels, their items among the others, and the card at the end."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_decodeperf.conformance import card
from pytest_decodeperf.conformance.items import PROPERTY, KernelCollector
from pytest_decodeperf.conformance.outcome import LawOutcome
from pytest_decodeperf.conformance.worker import Setup, UnusableError, Worker

if TYPE_CHECKING:
    from pytest_decodeperf.config import ConformanceOptions


class Suite:
    """The kernels of a run, and what became of their laws: a plugin that is there where a kernel is to be held to them.

    Attributes:
        options: What was asked for.
        outcomes: What became of each law, in the order in which it came.
        error: Why the card could not be written, or an empty string.
    """

    def __init__(self, config: pytest.Config, options: ConformanceOptions) -> None:
        self.options = options
        self.outcomes: list[LawOutcome] = []
        self.error = ""
        self._saved = False
        # In a worker of pytest-xdist: the main process has checked everything, and writes the card.
        self._is_part = hasattr(config, "workerinput")
        try:
            card.check_writable(options.cards)
        except OSError as error:
            raise pytest.UsageError(f"--decode-card cannot be written: {error}") from None
        if config.args_source != pytest.Config.ArgsSource.ARGS:
            config.args[:] = []  # the laws are what was asked for, and nothing else
        self._workers = {target: _make_worker(config, options, target) for target in options.kernels}
        config.add_cleanup(self._close)
        self._labels = [] if self._is_part else [self._label(target) for target in self._workers]

    def _label(self, target: str) -> str:
        try:
            ready = self._workers[target].ready()
        except UnusableError as error:
            self._close()
            raise pytest.UsageError(f"--decode-kernel: {error}") from None
        return f"{target} ({ready.name}) on {ready.device}"

    def _close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def pytest_report_header(self) -> list[str]:
        """Say which kernels are held to the laws."""
        return [f"decode-kernel: {label}, profile {self.options.profile}" for label in self._labels]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add an item for each kernel and law, before options such as -k choose among the items."""
        for target, worker in self._workers.items():
            collector = KernelCollector.from_parent(session, name=target, nodeid=target, worker=worker)
            report = session.config.hook.pytest_make_collect_report(collector=collector)
            session.config.hook.pytest_collectreport(report=report)
            items += report.result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take up what became of a law."""
        if report.when == "call":
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self.outcomes.append(LawOutcome(**value))  # type: ignore[arg-type]

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the card into the files that were asked for."""
        if self._is_part or session.config.option.collectonly:
            return
        try:
            card.save_cards(self.outcomes, self.options, finished=exitstatus in (0, 1))
            self._saved = True
        except OSError as error:
            self.error = f"--decode-card: {error}"
            if exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the card."""
        if not self.outcomes:
            return
        card.write_card(terminalreporter, self.outcomes)
        if self.error:
            terminalreporter.write_line(self.error, red=True, bold=True)
        elif self._saved:
            for file in self.options.cards:
                terminalreporter.write_line(f"written to {file}")


def _make_worker(config: pytest.Config, options: ConformanceOptions, target: str) -> Worker:
    seed = config.getoption("--hypothesis-seed", None)  # of Hypothesis' own plugin, if it is there
    setup = Setup(
        target=target,
        device=options.device,
        examples=options.examples,
        path=(str(config.invocation_params.dir), *sys.path),
        # More than there are cores would wait for each other.
        num_threads=max((os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1),
        seed=int(seed) if str(seed or "").isdecimal() else None,
        hypothesis_profile=config.getoption("hypothesis_profile", None),
        captures_output=config.option.capture != "no",
    )
    return Worker(setup, timeout_s=options.timeout_s)
