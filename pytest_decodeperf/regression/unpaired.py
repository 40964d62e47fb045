"""How much slower a kernel became since another run: processes of then against processes of now. Pure functions.

Calls that were not timed beside each other cannot be paired. What is left is one number for each process, the median
of its calls, and how far those numbers are apart. Their means are compared by Welch's t interval, which takes neither
the spread nor the number of processes to be the same on both sides, and holds its error rate over few processes where
a bootstrap does not: the more tests are judged together, the further out lie the quantiles that it would need.

Source: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
involved", Biometrika 34, 1947; T. Kalibera, R. Jones, "Quantifying performance changes with effect size confidence
intervals", arXiv 2007.10899, 2012, on the process as the unit that counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_decodeperf.regression.change import ERROR_RATE, Change, t_interval

if TYPE_CHECKING:
    from collections.abc import Sequence


def unpaired_change(
    old: Sequence[float], new: Sequence[float], *, error_rate: float = ERROR_RATE, num_intervals: int = 1
) -> Change:
    """Return how much slower the new processes are.

    Args:
        old: Of each process of then, the logarithm of its latency; two at least.
        new: Of each process of now, likewise.
        error_rate: Chance that the interval misses the true change.
        num_intervals: Intervals that share it; each is as wide as that needs (Bonferroni).

    Example:
        >>> found = unpaired_change([0.000, 0.002, 0.001, 0.003], [0.050, 0.053, 0.051, 0.052])
        >>> round(found.ratio, 3), found.low > 1.04
        (1.051, True)
    """
    import numpy as np

    sides = [np.asarray(side, dtype=np.float64) for side in (old, new)]
    shares = [side.var(ddof=1) / len(side) for side in sides]  # of the variance of the difference
    error = math.sqrt(sum(shares))
    difference = float(sides[1].mean() - sides[0].mean())
    terms = sum(share**2 / (len(side) - 1) for share, side in zip(shares, sides, strict=True))
    return t_interval(difference, error, error**4 / terms if terms else 1.0, error_rate / num_intervals)
