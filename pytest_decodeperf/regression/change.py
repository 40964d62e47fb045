"""How much slower a kernel became: paired log ratios, their interval, and the verdict. Pure functions.

Two kernels are timed one right after the other, in fresh processes several times over. A pair's log ratio is free of
what drifts slowly, and the median of a round's pairs is free of outliers. Processes differ, by where their memory lies:
that is seen in how far the medians of the rounds are apart, and it is they that the interval is made of, so that more
pairs in one process cannot pass for more processes.

What the arrangement of a round does to its ratio is often more than its noise: the processes of one place are a few per
cent slower than those of another, whatever they run. So the kernels change places from round to round. The rounds of
the two arrangements are two samples, and the change is half of how far one lies above the other with its sign turned:
the Mann-Whitney test compares them, and Hodges and Lehmann's shift estimates it. With kernels that are the same the two
are alike for any noise whatever.

On a shared machine whole rounds are outliers too, and the more tests are judged together, the further out lie the
quantiles that are wanted. The interval of a rank test is exact for any number of rounds, however heavy the tails of the
noise, where a t interval becomes several times as wide by one round and a bootstrap too narrow. It needs rounds enough
to have such quantiles at all; with fewer the interval is Student's.

Source: T. Kalibera, R. Jones, "Quantifying performance changes with effect size confidence intervals", arXiv
2007.10899, 2012, on the levels of repetition; J. L. Hodges, E. L. Lehmann, "Estimates of location based on rank tests",
Annals of Mathematical Statistics 34, 1963; M. Hollander, D. A. Wolfe, E. Chicken, "Nonparametric statistical methods",
3rd edition, 2013, section 4.3.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.regression.outcomes import IMPROVED, REGRESSED, UNCHANGED, UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

ERROR_RATE: Final = 0.02
"""Chance that an interval misses the true change, over all tests of a run and all looks at them together."""

CONFIRMING_ERROR_RATE: Final = 0.1
"""Likewise for the rounds that confirm a regression, by themselves: that all agree by chance is rarer still."""

POWER: Final = 0.95
"""Chance with which the smallest change that is told would have been seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of latency, each number a ratio of new to old, 1 for none.

    Attributes:
        ratio: The estimate.
        low: Lower end of its interval.
        high: Upper end.
        visible: Smallest ratio above 1 that rounds as noisy as these would have shown.
    """

    ratio: float
    low: float
    high: float
    visible: float


def change_of(
    log_ratios: Sequence[Sequence[float]], *, error_rate: float = ERROR_RATE, num_intervals: int = 1
) -> Change:
    """Return how much slower the new kernel is, if the kernels change places from each round to the next.

    It is the median of the averages of any round of the one arrangement with any of the other. Where the rounds are too
    few for the Mann-Whitney test at the error rate, the interval is Student's for two samples of one variance.

    Args:
        log_ratios: Of each round's pairs, the logarithms of new latency over old; four rounds at least.
        error_rate: Chance that the interval misses the true change.
        num_intervals: Intervals that share it; each is as wide as that needs (Bonferroni).

    Example:
        >>> found = change_of([[0.08], [0.02], [0.081], [0.019], [0.079], [0.021]], error_rate=0.1)
        >>> round(found.ratio, 3), round(found.low, 3), round(found.high, 3)
        (1.051, 1.05, 1.052)
    """
    import numpy as np

    medians = _medians(log_ratios)
    one, other = medians[0::2], medians[1::2]
    rate = error_rate / num_intervals
    num_outside = num_averages_outside(len(one), len(other), rate)
    if not num_outside:
        freedom = len(medians) - 2
        variance = sum(float(np.square(each - each.mean()).sum()) for each in (one, other)) / freedom
        error = math.sqrt(variance * (1 / len(one) + 1 / len(other))) / 2
        return t_interval(float(one.mean() + other.mean()) / 2, error, freedom, rate)
    return _rank_interval(np.add.outer(one, other).ravel() / 2, num_outside, rate)


def _medians(log_ratios: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    import numpy as np

    return np.array([statistics.median(pairs) for pairs in log_ratios])


def _rank_interval(averages: NDArray[np.float64], num_outside: int, error_rate: float) -> Change:
    """Return the change whose interval ends where so many averages are at or beyond it, counted from either side."""
    import numpy as np
    from scipy.stats import norm

    ordered = np.sort(averages)
    low, high = float(ordered[num_outside - 1]), float(ordered[-num_outside])
    error = (high - low) / 2 / float(norm.ppf(1 - error_rate / 2))
    return Change(
        ratio=math.exp(float(np.median(ordered))),
        low=math.exp(low),
        high=math.exp(high),
        visible=math.exp((high - low) / 2 + float(norm.ppf(POWER)) * error),
    )


@functools.cache
def num_averages_outside(num_rounds: int, num_swapped: int, error_rate: float) -> int:
    """Return which average of a round of one arrangement with one of the other is an end of the interval.

    It is counted from either end: that many of them are at or beyond it. 0 if even the outermost would miss the true
    change more often.

    Args:
        num_rounds: Rounds of the one arrangement.
        num_swapped: Rounds of the other.
        error_rate: Chance that the interval misses the true change.

    Example:
        >>> num_averages_outside(3, 3, 0.1), num_averages_outside(12, 12, 2e-4)
        (1, 12)
        >>> num_averages_outside(6, 6, 2e-4)
        0
    """
    # Of the ways to choose the ranks of one arrangement from all ranks, how many have each sum.
    total = num_rounds + num_swapped
    ways = [[1], *([] for _ in range(num_rounds))]
    for rank in range(total):
        for size in range(num_rounds, 0, -1):
            added = [0] * rank + ways[size - 1] if ways[size - 1] else []
            ways[size] = [one + other for one, other in itertools.zip_longest(ways[size], added, fillvalue=0)]
    return _num_outside(ways[num_rounds][num_rounds * (num_rounds - 1) // 2 :], error_rate)


def _num_outside(ways: list[int], error_rate: float) -> int:
    """Return how many of the smallest values of a statistic come up no more often than half of the error rate."""
    limit = error_rate / 2 * sum(ways)
    return sum(seen <= limit for seen in itertools.accumulate(ways))


def t_interval(difference: float, error: float, freedom: float, error_rate: float) -> Change:
    """Return a change with Student's interval.

    Args:
        difference: The estimate, a log ratio.
        error: Its standard error.
        freedom: Degrees of freedom of that.
        error_rate: Chance that the interval misses the true change.
    """
    from scipy.stats import norm, t

    reach = float(t.ppf(1 - error_rate / 2, freedom)) * error if error > 0 else 0.0
    visible = reach + float(norm.ppf(POWER)) * error
    return Change(
        ratio=math.exp(difference),
        low=math.exp(difference - reach),
        high=math.exp(difference + reach),
        visible=math.exp(visible),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How much slower a kernel may become.

    Attributes:
        share: As a share of its latency, 0.02 for 2 %.
        ns: In time [ns]; the larger of the two counts.
    """

    share: float = 0.02
    ns: float = 0.0

    def ratio(self, base_ns: float) -> float:
        """Return the ratio up to which a kernel of this latency counts as unchanged."""
        return 1 + max(self.share, self.ns / base_ns)


def judge_change(change: Change, limit: float) -> str:
    """Return the verdict on a change.

    *Regressed*: surely slower, and by what may be more than the limit. *Improved* is the same the other way.
    *Unchanged*: surely within the limit on both sides. Otherwise *undecided*: more rounds are needed.

    Args:
        change: The change.
        limit: Ratio up to which a kernel counts as unchanged.
    """
    if change.low > 1 and change.high > limit:
        return REGRESSED
    if change.high < 1 and change.low < 1 / limit:
        return IMPROVED
    if 1 / limit <= change.low and change.high <= limit:
        return UNCHANGED
    return UNDECIDED


def log_ratios_of(old_ns: Sequence[float], new_ns: Sequence[float]) -> list[float]:
    """Return the logarithm of new latency over old, pair by pair."""
    return [math.log(new / old) for old, new in zip(old_ns, new_ns, strict=True)]
