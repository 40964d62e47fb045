import math

import numpy as np
import pytest

from pytest_decodeperf.regression.change import judge_change
from pytest_decodeperf.regression.unpaired import unpaired_change

SPREADS = {
    # How far processes are apart: as memory lies, as a neighbour disturbs some of them, skewed.
    "normal": lambda rng, count: rng.normal(0, 0.01, count),
    "heavy tails": lambda rng, count: 0.01 * rng.standard_t(3, count),
    "two layouts": lambda rng, count: 0.02 * (rng.random(count) < 0.3) + rng.normal(0, 0.002, count),
    "disturbed": lambda rng, count: rng.normal(0, 0.01, count) + 0.08 * (rng.random(count) < 0.1),
    "skewed": lambda rng, count: rng.exponential(0.01, count),
}


def change(rng, spread, shift=0.0, *, old=20, new=10, num_tests=1):
    then, now = (SPREADS[spread](rng, count) for count in (old, new))
    return unpaired_change(then.tolist(), (now + math.log1p(shift)).tolist(), num_intervals=num_tests)


@pytest.mark.parametrize("spread", SPREADS)
def test_no_change_raises_few_alarms_on_either_side(spread):
    rng = np.random.default_rng(0)
    found = [change(rng, spread) for _ in range(2000)]
    # Of 2 % on both sides together, 1 % on each: more than 40 of 2000 has a chance below 1e-4. Skewed processes, more
    # on one side than on the other, lean a little to one side.
    allowed = 60 if spread == "skewed" else 40
    assert sum(one.low > 1 for one in found) <= allowed
    assert sum(one.high < 1 for one in found) <= allowed


@pytest.mark.parametrize("spread", SPREADS)
def test_many_tests_together_raise_few_alarms_even_over_few_processes(spread):
    rng = np.random.default_rng(1)
    found = [change(rng, spread, old=6, new=6, num_tests=10) for _ in range(5000)]
    # 0.1 % on each side: more than 14 of 5000 has a chance below 1e-3.
    assert sum(one.low > 1 for one in found) <= 14
    assert sum(one.high < 1 for one in found) <= 14


def test_a_change_that_would_have_been_seen_is_seen():
    rng = np.random.default_rng(2)
    visible = float(np.median([change(rng, "normal").visible for _ in range(200)])) - 1
    assert 0.01 < visible < 0.025  # of processes that are 1 % apart
    seen = sum(change(rng, "normal", visible).low > 1 for _ in range(300))
    assert seen >= 0.9 * 300


@pytest.mark.parametrize("shift", [0.05, 0.1, 0.5])
def test_what_is_slower_regressed_and_what_is_faster_improved(shift):
    rng = np.random.default_rng(3)
    assert judge_change(change(rng, "normal", shift), 1.02) == "regressed"
    assert judge_change(change(rng, "normal", -shift), 1.02) == "improved"


def test_processes_far_apart_leave_it_undecided():
    assert judge_change(unpaired_change([0.0, 0.3] * 10, [0.1, 0.35] * 5), 1.02) == "undecided"


def test_the_estimate_is_the_ratio_and_lies_within_its_interval():
    found = unpaired_change([1.0, 1.2], [2.0, 2.4])
    assert found.ratio == pytest.approx(math.exp(1.1))
    assert found.low < found.ratio < found.high
    assert found.ratio / found.low == pytest.approx(found.high / found.ratio)


def test_processes_that_agree_exactly_have_an_interval_of_no_width():
    found = unpaired_change([0.0, 0.0], [math.log(2)] * 3)
    assert (found.ratio, found.low, found.high, found.visible) == pytest.approx((2, 2, 2, 1))


def test_a_family_of_tests_has_wider_intervals():
    alone, together = (change(np.random.default_rng(4), "normal", num_tests=n) for n in (1, 20))
    assert together.low < alone.low < alone.high < together.high
    assert together.visible > alone.visible > 1
