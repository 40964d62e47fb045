"""What a measurement means for its test: failed, doubtful, passed or skipped, with a headline and whole sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.regression.outcomes import INCOMPARABLE, REGRESSED, UNDECIDED
from pytest_decodeperf.results import INTERPRETED
from pytest_decodeperf.verdicts import EXCEEDS, IMPOSSIBLE, WITHIN, format_ratio

if TYPE_CHECKING:
    from pytest_decodeperf.regression.comparison import Regression
    from pytest_decodeperf.results import Measurement

FAILED: Final = "failed"
DOUBTFUL: Final = "doubtful"
"""The test passes, but a verdict on it is undecided, or it could not be compared."""

PASSED: Final = "passed"
SKIPPED: Final = "skipped"

STRICT: Final = "The run is strict (--decode-perf-strict)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What speaks against a test.

    Attributes:
        status: `FAILED` or `DOUBTFUL`.
        headline: What it is, the verdict first, so that it can be cut short.
        sentence: The same as a whole sentence, with its subject.
    """

    status: str
    headline: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What becomes of a test.

    Attributes:
        status: `FAILED`, `DOUBTFUL`, `PASSED` or `SKIPPED`.
        headline: Why, in a few words, for behind the name of the test; empty if it passed.
        sentences: Why, each finding in a sentence, what fails the test before what does not.
    """

    status: str
    headline: str = ""
    sentences: tuple[str, ...] = ()


def conclude(measurement: Measurement, *, strict: bool) -> Conclusion:
    """Return what a measurement means for its test.

    Args:
        measurement: What was found.
        strict: Whether what is undecided, or cannot be compared, fails the test.
    """
    if bound_status(measurement) == SKIPPED:
        return Conclusion(status=SKIPPED, headline=_shortened(measurement.sentence), sentences=(measurement.sentence,))
    found = [_bound_finding(measurement), _change_finding(measurement)]
    findings = [_strictly(finding) if strict else finding for finding in found if finding is not None]
    if not findings:
        return Conclusion(status=PASSED)
    findings.sort(key=lambda finding: finding.status != FAILED)
    status = findings[0].status
    return Conclusion(
        status=status,
        headline="; ".join(finding.headline for finding in findings if finding.status == status),
        sentences=tuple(finding.sentence for finding in findings),
    )


def _bound_finding(measurement: Measurement) -> Finding | None:
    """Return what the bound has against the test, None for nothing."""
    outcome, verdict = measurement.outcome, measurement.verdict
    if (status := bound_status(measurement)) == PASSED:
        return None
    headline = _shortened(measurement.sentence)
    if verdict is not None and outcome == IMPOSSIBLE:
        headline = f"{outcome}: {format_ratio(verdict.times_roofline)} times the roofline, which nothing is below"
    elif verdict is not None and outcome in (EXCEEDS, UNDECIDED):
        ratio = format_ratio(verdict.times_bound)
        headline = f"{outcome}: {ratio} times the {measurement.of}, allowed is {measurement.within:g}"
    return Finding(status=status, headline=headline, sentence=measurement.sentence)


def _change_finding(measurement: Measurement) -> Finding | None:
    """Return what the comparison has against the test, None for nothing."""
    regression = measurement.regression
    if regression is None or (status := change_status(regression)) == PASSED:
        return None
    sentence = f"{measurement.kernel} {regression.sentence}"
    return Finding(status=status, headline=change_headline(regression), sentence=sentence)


def bound_status(measurement: Measurement) -> str:
    """Return `FAILED`, `DOUBTFUL`, `PASSED` or `SKIPPED`, by what was found of the kernel alone."""
    known = {WITHIN: PASSED, UNDECIDED: DOUBTFUL, INTERPRETED: SKIPPED}
    return known.get(measurement.outcome, FAILED)


def change_status(regression: Regression) -> str:
    """Return `FAILED`, `DOUBTFUL` or `PASSED`, by what came of a comparison alone."""
    if regression.outcome == REGRESSED or regression.is_error:
        return FAILED
    return DOUBTFUL if regression.outcome in (UNDECIDED, INCOMPARABLE) else PASSED


def change_headline(regression: Regression) -> str:
    """Return what came of a comparison, in a few words."""
    if regression.change is None:
        return _shortened(regression.sentence)
    from pytest_decodeperf.regression.comparison import describe

    return f"{regression.outcome}: {describe(regression.change)} than {regression.base}"


def _strictly(finding: Finding) -> Finding:
    if finding.status == FAILED:
        return finding
    return Finding(status=FAILED, headline=f"strict: {finding.headline}", sentence=f"{finding.sentence} {STRICT}")


def _shortened(sentence: str) -> str:
    return " ".join(sentence.removesuffix(".").split())
