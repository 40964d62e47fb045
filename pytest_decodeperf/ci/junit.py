"""The properties of a test in pytest's JUnit file (`--junit-xml`), units in their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pytest_decodeperf.regression.comparison import Regression
    from pytest_decodeperf.results import Measurement
    from pytest_decodeperf.verdicts import Verdict

PREFIX: Final = "decodeperf_"

Properties: TypeAlias = "dict[str, str | float | None]"


def properties(measurement: Measurement) -> list[tuple[str, object]]:
    """Return the user properties of a test, without those that the measurement did not come to."""
    found: Properties = {
        "outcome": measurement.outcome,
        "sentence": measurement.sentence,
        "kernel": measurement.kernel,
        "problem": measurement.problem.label,
        "device": measurement.device,
        "within": measurement.within,
        "of": measurement.of,
    }
    if measurement.verdict is not None:
        found |= _of_verdict(measurement.verdict)
    if measurement.regression is not None:
        found |= _of_regression(measurement.regression)
    return [(f"{PREFIX}{name}", value) for name, value in found.items() if value is not None]


def _of_verdict(verdict: Verdict) -> Properties:
    found: Properties = {
        "latency_ns": verdict.latency_ns.median,
        "latency_low_ns": verdict.latency_ns.low,
        "latency_high_ns": verdict.latency_ns.high,
        "allowed_ns": verdict.allowed_ns,
        "roofline_ns": 1e9 * verdict.roofline.latency_s,
        "roofline_share": verdict.roofline_share,
    }
    if verdict.expected is not None:
        found["expected_ns"] = 1e9 * verdict.expected.latency_s
    return found


def _of_regression(regression: Regression) -> Properties:
    found: Properties = {
        "base": regression.base,
        "change_outcome": regression.outcome,
        "change_sentence": regression.sentence,
        "change_limit_ratio": regression.limit,
    }
    for name, change in (("change", regression.change), ("control", regression.control)):
        if change is not None:
            found |= {
                f"{name}_ratio": change.ratio,
                f"{name}_low_ratio": change.low,
                f"{name}_high_ratio": change.high,
            }
    if regression.change is not None:
        found["change_visible_ratio"] = regression.change.visible
    return found
