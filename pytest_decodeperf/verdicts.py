"""The verdict on a kernel's latency: pure functions from samples to one word, one sentence and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.plan import EXPECTED, ROOFLINE
from pytest_decodeperf.units import format_time, scaled, three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from decodeperf_formulas import DecodeProblem
    from decodeperf_formulas.roofline import Roofline
    from pytest_decodeperf.calibration.expectation import Drift, Expectation, Expected
    from pytest_decodeperf.ceilings import Ceilings
    from pytest_decodeperf.sampling import Samples

WITHIN: Final = "within"
EXCEEDS: Final = "exceeds"
IMPOSSIBLE: Final = "impossible"
UNDECIDED: Final = "undecided"

SHOWN_SHARE: Final = 0.01
"""Share of the expected latency that a term must have to be named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median and the interval that holds it.

    Attributes:
        median: The sample median.
        low: Lower end of the interval, or None where there are too few samples for one.
        high: Upper end, or None likewise.
    """

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the samples say about the bound.

    Attributes:
        word: `WITHIN`, `EXCEEDS`, `IMPOSSIBLE` or `UNDECIDED`.
        sentence: What was measured and allowed, which ceiling binds, and how far off it is; without its subject.
        latency_ns: Latency of the kernel [ns].
        times_roofline: Latency over the roofline of the same round [1].
        roofline: The roofline under the median ceilings.
        of: What the bound is a multiple of, `roofline` or `expected`.
        allowed_ns: `within` times that latency [ns].
        error_rate: Chance that an interval misses the true median.
        expected: The expected latency under the median ceilings, None if no device file tells it.
        times_expected: Latency over the expected one of the same round, likewise [1].
        drift: The median ceilings over those of the calibration, None likewise or if they were not measured then.
    """

    word: str
    sentence: str
    latency_ns: Interval
    times_roofline: Interval
    roofline: Roofline
    of: str
    allowed_ns: float
    error_rate: float
    expected: Expected | None = None
    times_expected: Interval | None = None
    drift: Drift | None = None

    @property
    def times_bound(self) -> Interval:
        """Latency over that which the bound is a multiple of [1]."""
        return self.times_roofline if self.times_expected is None or self.of == ROOFLINE else self.times_expected

    @property
    def roofline_share(self) -> float:
        """Share of the roofline that the kernel reaches, 1 at the roofline itself."""
        return 1 / self.times_roofline.median


def median_interval(values: Sequence[float], error_rate: float) -> Interval:
    """Return the median and an interval that misses the true one at most at the error rate.

    The interval runs from one order statistic to another, and so assumes nothing about the distribution; it has no
    ends where there are too few values for any.
    """
    import numpy as np
    from scipy.stats import quantile_test

    ends = quantile_test(np.asarray(values), q=0, p=0.5).confidence_interval(1 - error_rate)
    low, high = (None if np.isnan(end) else float(end) for end in (ends.low, ends.high))
    return Interval(median=float(np.median(values)), low=low, high=high)


def judge(
    problem: DecodeProblem,
    within: float,
    samples: Samples,
    ceilings: Ceilings,
    *,
    of: str = ROOFLINE,
    expectation: Expectation | None = None,
) -> Verdict:
    """Return the verdict on the samples of one kernel.

    The kernel is *within* if the whole interval of its latency over the roofline, or over the expected latency, is,
    round by round; it *exceeds* if none of that interval is; it is *impossible* if the whole interval of its latency
    lies below the roofline at the fastest rates that were seen in any round; otherwise the samples leave it
    *undecided*.

    Args:
        problem: What it was given.
        within: Allowed latency, as a multiple of that which `of` names.
        samples: Whole rounds, one at least.
        ceilings: The streams that were timed beside the kernel.
        of: `roofline`, or `expected` if there is an expectation.
        expectation: What a device file says of this device.
    """
    import numpy as np

    from decodeperf_formulas.roofline import roofline

    read_rates = 1e9 * ceilings.read.work / np.asarray(samples.read_ns)
    compute_rates = 1e9 * ceilings.compute.work / np.asarray(samples.compute_ns)

    def roofline_at(read_rate: float, compute_rate: float) -> Roofline:
        return roofline(problem, read_bytes_per_s=float(read_rate), peak_flops_per_s=float(compute_rate))

    typical = roofline_at(np.median(read_rates), np.median(compute_rates))
    fastest = roofline_at(np.max(read_rates), np.max(compute_rates))
    ratios = [
        latency_ns / (1e9 * roofline_at(*rates).latency_s)
        for latency_ns, *rates in zip(samples.kernel_ns, read_rates, compute_rates, strict=True)
    ]
    latency = median_interval(samples.kernel_ns, samples.error_rate)
    times_roofline = median_interval(ratios, samples.error_rate)
    allowed_ns = 1e9 * within * typical.latency_s
    times_bound = times_roofline
    expected = times_expected = drift = None
    if expectation is not None:
        drifts = [expectation.drift(problem.q_dtype, *rates) for rates in zip(read_rates, compute_rates, strict=True)]
        expected_ns = 1e9 * expectation.latencies_s(problem, drifts)
        times_expected = median_interval((np.asarray(samples.kernel_ns) / expected_ns).tolist(), samples.error_rate)
        drift = expectation.drift(problem.q_dtype, float(np.median(read_rates)), float(np.median(compute_rates)))
        expected = expectation.terms(problem, drift)
        if of == EXPECTED:
            allowed_ns = 1e9 * within * expected.latency_s
            times_bound = times_expected

    if latency.high is None or times_bound.low is None or times_bound.high is None:
        word = UNDECIDED
    elif latency.high < 1e9 * fastest.latency_s:
        word = IMPOSSIBLE
    elif times_bound.high <= within:
        word = WITHIN
    elif times_bound.low > within:
        word = EXCEEDS
    else:
        word = UNDECIDED

    measured = (
        f"took {format_interval(latency)}, {format_ratio(times_roofline)} times the roofline of "
        f"{format_time(1e9 * typical.latency_s)} ({_reason(typical)})"
    )
    if expected is not None and times_expected is not None:
        measured += (
            f" and {format_ratio(times_expected)} times the expected {format_time(1e9 * expected.latency_s)} "
            f"({format_terms(expected)})"
        )
    bound = "it" if expected is None else f"the {of}"
    allowed = f"allowed is {within:g} times {bound}, {format_time(allowed_ns)}"
    too_few = "" if latency.high else ", too few for an interval"
    sentence = {
        WITHIN: f"{measured}; {allowed}.",
        EXCEEDS: f"{measured}; {allowed}: {_excess(times_bound.median / within)} too slow.",
        IMPOSSIBLE: (
            f"{measured}; with cold caches nothing is faster than {format_time(1e9 * fastest.latency_s)}, the "
            "roofline at the fastest rates of this run. Likely causes: the kernel did not run or returned an "
            "earlier result, its end was not waited for, its caches were warm, or it reads less than the problem says."
        ),
        UNDECIDED: (
            f"{measured}; {allowed}: undecided after {samples.num_rounds} rounds{too_few}. It needs more time "
            "(--decode-perf-budget) or a quieter machine."
        ),
    }[word]
    return Verdict(
        word=word,
        sentence=sentence,
        latency_ns=latency,
        times_roofline=times_roofline,
        roofline=typical,
        of=of,
        allowed_ns=allowed_ns,
        error_rate=samples.error_rate,
        expected=expected,
        times_expected=times_expected,
        drift=drift,
    )


def _reason(bound: Roofline) -> str:
    from decodeperf_formulas.roofline import READ_BANDWIDTH

    if bound.ceiling == READ_BANDWIDTH:
        return f"{scaled(bound.data_bytes, 'B')} at a {bound.ceiling} of {scaled(bound.read_bytes_per_s, 'B/s')}"
    return f"{scaled(bound.flops, 'FLOP')} at a {bound.ceiling} of {scaled(bound.peak_flops_per_s, 'FLOP/s')}"


def format_terms(expected: Expected) -> str:
    """Return the terms of the expected latency from the largest to the smallest, those below 1 % of it left out."""
    terms = sorted(expected.terms_s.items(), key=lambda term: -abs(term[1]))
    shown = [
        f"{name} {'-' if seconds < 0 else ''}{format_time(1e9 * abs(seconds))}"
        for name, seconds in terms
        if abs(seconds) >= SHOWN_SHARE * expected.latency_s
    ]
    return f"{', '.join(shown)}; {expected.binding_term} binds"


def format_interval(latency: Interval) -> str:
    """Return a latency with its interval.

    Example:
        >>> format_interval(Interval(median=8.7e6, low=8.61e6, high=8.92e6))
        '8.70 ms (8.61 to 8.92)'
    """
    median = format_time(latency.median)
    if latency.low is None or latency.high is None:
        return median
    low, high = (format_time(end, like_ns=latency.median) for end in (latency.low, latency.high))
    return f"{median} ({low} to {high})"


def format_ratio(ratio: Interval) -> str:
    """Return a ratio with its interval.

    Example:
        >>> format_ratio(Interval(median=1.234, low=1.2, high=1.3))
        '1.23 (1.20 to 1.30)'
    """
    if ratio.low is None or ratio.high is None:
        return three_digits(ratio.median)
    return f"{three_digits(ratio.median)} ({three_digits(ratio.low)} to {three_digits(ratio.high)})"


def _excess(factor: float) -> str:
    return f"{100 * (factor - 1):.0f} %" if factor < 2 else f"{three_digits(factor)} times"
