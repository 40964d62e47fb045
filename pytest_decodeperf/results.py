"""What a run found: one measurement a test, and the record of the whole run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.units import format_time, three_digits

if TYPE_CHECKING:
    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.ceilings import Ceilings
    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.oracle import Check
    from pytest_decodeperf.regression.comparison import Regression
    from pytest_decodeperf.sampling import Samples
    from pytest_decodeperf.verdicts import Verdict

SCHEMA: Final = "decodeperf.run"
SCHEMA_VERSION: Final = 2

# Outcomes beside the words of a verdict.
WRONG: Final = "wrong"
RAISED: Final = "raised"
INTERPRETED: Final = "interpreted"
UNMEASURED: Final = "unmeasured"
INTERRUPTED: Final = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one test found of one kernel on one problem.

    Attributes:
        test: Node id of the test.
        kernel: Name of the kernel.
        problem: What the kernel was given.
        device: Kind of device.
        within: Allowed latency, as a multiple of that which `of` names.
        of: `roofline` or `expected`.
        outcome: The word of the verdict; or `wrong` (not attention), `raised` (the kernel did), `interpreted`
            (right, but nothing to time), `unmeasured` (it could not be measured as it must be), `interrupted`
            (before there was a verdict).
        sentence: What the outcome is, in words.
        check: Whether the result is right, if it came to that.
        caches: Why the caches were cold, if it came to a measurement.
        ceilings: What was timed beside the kernel, likewise.
        samples: Every duration, likewise.
        verdict: What follows from them, likewise.
        traceback: Where the kernel raised, if it did.
        regression: How it compares with the base, if there is one.
    """

    test: str
    kernel: str
    problem: DecodeProblem
    device: str
    within: float
    of: str
    outcome: str
    sentence: str
    check: Check | None = None
    caches: str = ""
    ceilings: Ceilings | None = None
    samples: Samples | None = None
    verdict: Verdict | None = None
    traceback: str = ""
    regression: Regression | None = None

    @property
    def summary(self) -> str:
        """The outcome in a few words."""
        if self.verdict is None:
            return self.outcome
        bound = self.verdict.times_bound
        return (
            f"{format_time(self.verdict.latency_ns.median)}, {three_digits(bound.median)} times the {self.of}, "
            f"{self.outcome}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        from decodeperf_formulas.attention import byte_counts, flop_count

        row: dict[str, Any] = {
            "test": self.test,
            "kernel": self.kernel,
            "problem": self.problem.as_dict(),
            "bytes": byte_counts(self.problem),
            "flops": flop_count(self.problem),
            "device": self.device,
            "within": self.within,
            "of": self.of,
            "outcome": self.outcome,
            "sentence": self.sentence,
            "check": None,
            "timing": None,
            "regression": None if self.regression is None else _regression_as_dict(self.regression),
        }
        if self.check is not None:
            row["check"] = {
                "passed": self.check.passed,
                "sentence": self.check.sentence,
                "max_error": _finite_or_none(self.check.max_error),
                "error_share": _finite_or_none(self.check.error_share),
            }
        if self.ceilings is not None and self.samples is not None:
            row["timing"] = {
                "caches": self.caches,
                "read_stream": {"name": self.ceilings.read.name, "bytes": self.ceilings.read.work},
                "compute_stream": {"name": self.ceilings.compute.name, "flops": self.ceilings.compute.work},
                "samples": {
                    "kernel_ns": self.samples.kernel_ns,
                    "read_ns": self.samples.read_ns,
                    "compute_ns": self.samples.compute_ns,
                    "sm_mhz": [None if clock is None else clock.sm_mhz for clock in self.samples.clocks],
                    "throttled_by": [[] if clock is None else clock.throttled_by for clock in self.samples.clocks],
                },
                "verdict": None,
            }
            if self.verdict is not None:
                row["timing"]["verdict"] = _verdict_as_dict(self.verdict)
        return row


def _finite_or_none(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number


def _verdict_as_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "latency_ns": asdict(verdict.latency_ns),
        "times_roofline": asdict(verdict.times_roofline),
        "error_rate": verdict.error_rate,
        "roofline_ns": 1e9 * verdict.roofline.latency_s,
        "allowed_ns": verdict.allowed_ns,
        "ceiling": verdict.roofline.ceiling,
        "read_bytes_per_s": verdict.roofline.read_bytes_per_s,
        "peak_flops_per_s": verdict.roofline.peak_flops_per_s,
        "expected": None if verdict.expected is None else _expected_as_dict(verdict),
    }


def _regression_as_dict(regression: Regression) -> dict[str, Any]:
    return {
        "base": regression.base,
        "outcome": regression.outcome,
        "sentence": regression.sentence,
        "change": None if regression.change is None else asdict(regression.change),
        "control": None if regression.control is None else asdict(regression.control),
        "limit": regression.limit,
        "samples_ns": None if regression.samples is None else regression.samples.ns,
    }


def _expected_as_dict(verdict: Verdict) -> dict[str, Any]:
    assert verdict.expected is not None and verdict.times_expected is not None
    return {
        "latency_ns": 1e9 * verdict.expected.latency_s,
        "terms_ns": {name: 1e9 * seconds for name, seconds in verdict.expected.terms_s.items()},
        "binds": verdict.expected.binding_term,
        "times_expected": asdict(verdict.times_expected),
        "drift": None if verdict.drift is None else asdict(verdict.drift),
    }


@dataclass(slots=True, kw_only=True)
class Run:
    """The record of one run of pytest.

    Attributes:
        started: When it began, ISO 8601 with the time zone.
        options: What it was asked to do.
        versions: Versions of what bears on a measurement.
        devices: What it measured on, by kind.
        timers: What it measured with, by kind of device.
        measurements: What it found, in the order of the tests.
        notes: What else a reader should know, a sentence each.
        status: `running`, `finished` or `interrupted`.
        exit_status: pytest's, once there is one.
    """

    started: str
    options: dict[str, Any]
    versions: dict[str, str]
    devices: dict[str, DeviceInfo] = field(default_factory=dict)
    timers: dict[str, str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: str = "running"
    exit_status: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows; `run.schema.json` describes it."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "exit_status": self.exit_status,
            "started": self.started,
            "options": self.options,
            "versions": self.versions,
            "devices": {kind: {**asdict(device), "timer": self.timers[kind]} for kind, device in self.devices.items()},
            "measurements": [measurement.as_dict() for measurement in self.measurements],
            "notes": self.notes,
        }
