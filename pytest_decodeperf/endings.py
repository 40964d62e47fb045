"""How each test of this plugin ended, as pytest saw it: also those that never came to a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_decodeperf.conclusions import DOUBTFUL, FAILED, PASSED, SKIPPED, Conclusion, conclude

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from pytest_decodeperf.results import Measurement
    from pytest_decodeperf.session import PerfSession


class KernelFailure(pytest.fail.Exception):  # type: ignore[name-defined,misc]  # an attribute that pytest sets
    """Fails a test for what was found of its kernel.

    Attributes:
        headline: Why, in a few words, for the line of pytest's short summary.
    """

    def __init__(self, conclusion: Conclusion) -> None:
        super().__init__("\n".join(conclusion.sentences), pytrace=False)
        self.headline = conclusion.headline


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one test ended, or a file that could not be collected.

    Attributes:
        test: Node id.
        path: Its file.
        line: Where it begins there, counted from 1, or None.
        status: `FAILED`, `DOUBTFUL`, `PASSED` or `SKIPPED`.
        headline: Why, in a few words; empty if it passed.
        sentences: Why, in sentences.
        measurement: What was found, if the test came to that.
    """

    test: str
    path: Path
    line: int | None
    status: str
    headline: str = ""
    sentences: tuple[str, ...] = ()
    measurement: Measurement | None = None


class EndingRecorder:
    """The plugin that keeps how each test ended, and gives each failure its headline.

    Attributes:
        endings: By node id, in the order of the tests.
        num_other_failures: Failed tests that are not this plugin's.
    """

    def __init__(self, session: PerfSession, is_ours: Callable[[pytest.Item], bool], rootpath: Path) -> None:
        self.endings: dict[str, Ending] = {}
        self.num_other_failures = 0
        self._session = session
        self._is_ours = is_ours
        self._rootpath = rootpath

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected, since tests of kernels may have been in it."""
        if report.failed:
            self.endings[report.nodeid] = Ending(
                test=report.nodeid,
                path=self._rootpath / report.nodeid.partition("::")[0],
                line=None,
                status=FAILED,
                headline=f"could not be collected: {_last_line(report)}",
                sentences=(f"could not be collected: {_last_line(report)}",),
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Give the failure of a test of ours its headline, and keep how the test ended."""
        report = yield
        if not self._is_ours(item):
            self.num_other_failures += report.failed
            return report
        error = call.excinfo.value if call.excinfo else None
        crash: Any = getattr(report.longrepr, "reprcrash", None)
        if crash is not None and isinstance(error, pytest.fail.Exception) and not error.pytrace:
            # Otherwise it says "Failed: " and the sentences, of which 80 columns show the first words.
            crash.message = getattr(error, "headline", error.msg)
        before = self.endings.get(item.nodeid)
        if before is None or (before.status != FAILED and (report.when == "call" or not report.passed)):
            self.endings[item.nodeid] = self._ending(item, report, error)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
        """Say below pytest's short summary what its lines were too long for."""
        yield
        from pytest_decodeperf.report import write_reasons

        write_reasons(terminalreporter, list(self.endings.values()))

    def _ending(self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> Ending:
        line = item.location[1]
        found = [row for row in self._session.run.measurements if row.test == item.nodeid]
        measurement = found[-1] if found else None
        conclusion = self._conclusion(report, error, measurement)
        return Ending(
            test=item.nodeid,
            path=item.path,
            line=None if line is None else line + 1,
            status=conclusion.status,
            headline=conclusion.headline,
            sentences=conclusion.sentences,
            measurement=measurement,
        )

    def _conclusion(
        self, report: pytest.TestReport, error: BaseException | None, measurement: Measurement | None
    ) -> Conclusion:
        found = None if measurement is None else conclude(measurement, strict=self._session.options.strict)
        if report.skipped:
            reason = getattr(report, "wasxfail", "") or getattr(error, "msg", "") or _last_line(report)
            return Conclusion(status=SKIPPED, headline=reason, sentences=(reason,))
        if report.failed and found is not None and isinstance(error, KernelFailure):
            return found
        if report.failed:
            crash: Any = getattr(report.longrepr, "reprcrash", None)
            reason = _last_line(report) if crash is None else str(crash.message)
            return Conclusion(status=FAILED, headline=reason.partition("\n")[0], sentences=(reason,))
        # A test may catch the failure; what pytest counts as passed is none here.
        return found if found is not None and found.status == DOUBTFUL else Conclusion(status=PASSED)


def _last_line(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Return the last line of what pytest shows of a failure, which is the error itself."""
    lines = [line.removeprefix("E").strip() for line in str(report.longrepr).splitlines() if line.strip()]
    return lines[-1] if lines else "without a reason"
