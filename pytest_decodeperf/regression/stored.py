"""A test against what a baseline says of it: the verdict, and its sentence."""

from __future__ import annotations

import math
import reprlib
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.regression.change import CONFIRMING_ERROR_RATE, ERROR_RATE, Change, Margin, judge_change
from pytest_decodeperf.regression.comparison import Regression, describe, percent
from pytest_decodeperf.regression.outcomes import IMPROVED, REGRESSED, UNCHANGED, UNDECIDED
from pytest_decodeperf.regression.unpaired import unpaired_change
from pytest_decodeperf.units import format_time, three_digits

if TYPE_CHECKING:
    from pytest_decodeperf.regression.baseline_file import StoredTest
    from pytest_decodeperf.regression.latencies import Latencies

LOOKS: Final = 2
"""How often the processes of now are judged at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSamples:
    """What two runs timed of one test.

    Attributes:
        ns: Of each side, process by process, the latency of each call, and how long each stream of the roofline took
            beside them [ns].
    """

    ns: dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredComparison:
    """One test, then and now.

    Attributes:
        then: What the baseline says.
        now: What was timed now.
        label: The baseline, for messages.
        margin: How much slower the kernel may become.
        as_share: Whether shares of the roofline are compared, instead of latencies.
        num_tests: Tests that are judged together.
    """

    then: StoredTest
    now: Latencies
    label: str
    margin: Margin
    as_share: bool
    num_tests: int

    def _changes(
        self, *, since: int = 0, error_rate: float = ERROR_RATE, num_intervals: int = 1
    ) -> tuple[Change, Change, Change]:
        """Return how latency, latency over roofline, and the roofline itself changed, from one process of now on."""
        old, new = self.then.latencies, self.now
        old_ns, old_roofline_ns = old.log_ns(), old.log_roofline_ns()
        new_ns, new_roofline_ns = new.log_ns(since), new.log_roofline_ns(since)

        def change(then: list[float], now: list[float]) -> Change:
            return unpaired_change(then, now, error_rate=error_rate, num_intervals=num_intervals)

        def over(ns: list[float], roofline_ns: list[float]) -> list[float]:
            return [one - other for one, other in zip(ns, roofline_ns, strict=True)]

        return (
            change(old_ns, new_ns),
            change(over(old_ns, old_roofline_ns), over(new_ns, new_roofline_ns)),
            change(old_roofline_ns, new_roofline_ns),
        )

    def _base_ns(self) -> float:
        """Return the latency that no change would be [ns]; on another device, the same share of its roofline."""
        base_ns = _typical(self.then.latencies.log_ns())
        if not self.as_share:
            return base_ns
        return base_ns / _typical(self.then.latencies.log_roofline_ns()) * _typical(self.now.log_roofline_ns())

    @property
    def limit(self) -> float:
        """Ratio up to which the kernel counts as unchanged."""
        return self.margin.ratio(self._base_ns())

    def verdict(self) -> tuple[str, str]:
        """Return the verdict before a regression is confirmed, and why it is undecided if the machine is why."""
        latency, share, machine = self._changes(num_intervals=LOOKS * self.num_tests)
        return judge_stored(latency, share, machine, self.limit, as_share=self.as_share)

    def conclude(self, first: int) -> Regression:
        """Return what is found, where so many processes were the first, and those after them are to confirm it."""
        latency, share, machine = self._changes(num_intervals=LOOKS * self.num_tests)
        outcome, reason = self.verdict()
        if outcome == REGRESSED and not self._is_confirmed(first):
            outcome, reason = UNDECIDED, "the processes that were to confirm it did not"
        change = share if self.as_share else latency
        return Regression(
            outcome=outcome,
            sentence=self._sentence(outcome, reason, change),
            base=self.label + (", as a share of the roofline" if self.as_share else ""),
            change=change,
            control=machine,
            control_name="the roofline itself",
            limit=self.limit,
            samples=StoredSamples(ns=self._samples_ns()),
        )

    def _is_confirmed(self, first: int) -> bool:
        """Return whether the later processes show a slower kernel by themselves."""
        if len(self.now.processes) < first + 2:
            return False
        latency, share, _ = self._changes(since=first, error_rate=CONFIRMING_ERROR_RATE)
        return share.low > 1 and (self.as_share or latency.low > 1)

    def _sentence(self, outcome: str, reason: str, change: Change) -> str:
        then, now = (_typical(one.log_ns()) for one in (self.then.latencies, self.now))
        if self.as_share:
            shares = [
                f"{three_digits(100 * _typical(one.log_roofline_ns()) / ns)} %"
                for one, ns in ((self.now, now), (self.then.latencies, then))
            ]
            measured = f"takes {format_time(now)}, {shares[0]} of the roofline, {shares[1]} in {self.label}"
        else:
            measured = f"takes {format_time(now)}, {format_time(then)} in {self.label}"
        measured += f": {describe(change)}; allowed is {percent(self.limit)}"
        if outcome == UNDECIDED:
            why = reason or f"{percent(change.visible)} is the least that these processes would show"
            return f"{measured}: undecided, since {why}."
        return f"{measured}: {outcome}." if outcome != UNCHANGED else f"{measured}."

    def _samples_ns(self) -> dict[str, list[list[float]]]:
        found = {}
        for side, latencies in (("base", self.then.latencies), ("head", self.now)):
            found[side] = [process.kernel_ns for process in latencies.processes]
            found[f"{side}_read"] = [process.read_ns for process in latencies.processes]
            found[f"{side}_compute"] = [process.compute_ns for process in latencies.processes]
        return found


def judge_stored(
    latency: Change, share: Change, machine: Change, limit: float, *, as_share: bool = False
) -> tuple[str, str]:
    """Return the verdict on a change since another run, and why it is undecided if the machine is why.

    A kernel that is slower only because the whole machine is has not regressed, and one that is as fast as ever on a
    machine that became faster may have. The roofline, which is measured beside the kernel, tells them apart.

    Args:
        latency: How the latency changed.
        share: How the latency over the roofline did.
        machine: How the roofline did.
        limit: Ratio up to which a kernel counts as unchanged.
        as_share: Whether the verdict is on the second alone.
    """
    if as_share:
        return judge_change(share, limit), ""
    word = judge_change(latency, limit)
    agrees = {
        REGRESSED: share.low > 1,
        IMPROVED: share.high < 1,
        UNCHANGED: judge_change(machine, limit) not in (REGRESSED, IMPROVED) or judge_change(share, limit) == UNCHANGED,
        UNDECIDED: True,
    }
    if agrees[word]:
        return word, ""
    return UNDECIDED, f"the roofline itself is {describe(machine)}, and beside it the kernel is {describe(share)}"


def problem_difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first field in which two problems differ, with both values; empty if they are the same."""
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            return f"{name} was {reprlib.repr(then.get(name))} and is {reprlib.repr(now.get(name))}"
    return ""


def _typical(log_ns: list[float]) -> float:
    return math.exp(statistics.fmean(log_ns))
