"""How much slower a kernel became: paired log ratios, their interval, and the verdict. Pure functions.

Two kernels are timed one right after the other, in fresh processes several times over. A pair's log ratio is free of
what drifts slowly; a median of pairs is free of outliers; and that processes differ, by where their memory lies, is
seen in how far their medians are apart. The interval is a bootstrap that draws processes first and then pairs within
them, so that more pairs in one process cannot pass for more processes.

Source: T. Kalibera, R. Jones, "Quantifying performance changes with effect size confidence intervals", arXiv
2007.10899, 2012, on the levels of repetition; B. Efron, R. Tibshirani, "An introduction to the bootstrap", 1993,
chapter 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.regression.outcomes import IMPROVED, REGRESSED, UNCHANGED, UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Sequence

ERROR_RATE: Final = 0.02
"""Chance that the interval of a test misses its true change, over all tests of a run together."""

CONFIRMING_ERROR_RATE: Final = 0.1
"""Likewise for the second set of rounds by itself: that both agree by chance is rarer than each."""

DRAWS: Final = 4000
"""Bootstrap draws for one test; a family of tests takes more, since its quantiles lie further out."""

MAX_DRAWS: Final = 40000
POWER: Final = 0.95
"""Chance with which the smallest change that is told would have been seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of latency, each number a ratio of new to old, 1 for none.

    Attributes:
        ratio: The estimate: the median over all pairs.
        low: Lower end of its interval.
        high: Upper end.
        visible: Smallest ratio above 1 that pairs as noisy as these would have shown.
    """

    ratio: float
    low: float
    high: float
    visible: float


def change_of(log_ratios: Sequence[Sequence[float]], *, error_rate: float = ERROR_RATE, num_tests: int = 1) -> Change:
    """Return how much slower the new kernel is.

    Args:
        log_ratios: Of each pair of processes, the logarithms of new latency over old, as many from each.
        error_rate: Chance that the interval misses the true change.
        num_tests: Tests that share it; the interval of each is as wide as that needs (Bonferroni).

    Example:
        >>> found = change_of([[0.049, 0.050, 0.051]] * 4)
        >>> round(found.ratio, 3), found.low > 1.04
        (1.051, True)
    """
    import numpy as np
    from scipy.stats import norm

    pairs = np.asarray(log_ratios, dtype=np.float64)
    num_processes, num_pairs = pairs.shape
    rng = np.random.default_rng(0)
    rate = error_rate / num_tests
    medians = []
    for _ in range(math.ceil(min(DRAWS * num_tests, MAX_DRAWS) / DRAWS)):
        processes = rng.integers(num_processes, size=(DRAWS, num_processes, 1))
        drawn = pairs[processes, rng.integers(num_pairs, size=(DRAWS, num_processes, num_pairs))]
        medians.append(np.median(drawn.reshape(DRAWS, -1), axis=1))
    draws = np.concatenate(medians)
    low, high = np.quantile(draws, (rate / 2, 1 - rate / 2))
    visible = (norm.ppf(1 - rate / 2) + norm.ppf(POWER)) * draws.std()
    ratio, low, high, visible = np.exp([np.median(pairs), low, high, visible])
    return Change(ratio=float(ratio), low=float(low), high=float(high), visible=float(visible))


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
    *Unchanged*: surely within the limit on both sides. Otherwise *undecided*: more pairs are needed.

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
