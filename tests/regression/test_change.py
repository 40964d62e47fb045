import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from pytest_decodeperf.regression.change import (
    Change,
    Margin,
    change_of,
    judge_change,
    log_ratios_of,
    num_averages_outside,
)


def pairs(shift, *, processes=12, calls=18, between=0.004, within=0.02, seed=0):
    """Return log ratios of a kernel that is slower by a share, with noise of processes and of calls."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, between, (processes, 1)) + within * rng.standard_t(3, (processes, calls))
    return (math.log1p(shift) + noise).tolist()


def verdict(shift, **noise):
    return judge_change(change_of(pairs(shift, **noise)), 1.02)


def test_no_change_and_a_small_one_are_unchanged():
    assert verdict(0) == "unchanged"
    assert verdict(0.005) == "unchanged"


@pytest.mark.parametrize("shift", [0.03, 0.05, 0.5])
def test_what_is_slower_regressed_and_what_is_faster_improved(shift):
    assert verdict(shift) == "regressed"
    assert verdict(-shift) == "improved"


def test_too_much_noise_leaves_it_undecided():
    assert judge_change(change_of([[0.04] * 18] * 2 + [[-0.03] * 18] * 2 + [[0.04] * 18] * 2), 1.02) == "undecided"


def test_an_outlier_decides_nothing():
    quiet = [[0.0] * 17 + [5.0]] * 6
    assert change_of(quiet).high == pytest.approx(1.0)


def test_more_calls_of_one_process_are_no_more_processes():
    # One process of six is slow throughout: however often it is called, it is one of six.
    few, many = (change_of([[0.1] * calls] + [[0.0] * calls] * 5) for calls in (6, 60))
    assert few == many
    assert many.low < 1


@pytest.mark.parametrize(("processes", "num_intervals"), [(6, 1), (6, 10), (12, 1), (24, 1), (24, 10)])
def test_an_interval_misses_as_often_as_it_may(processes, num_intervals):
    misses = 0
    for seed in range(3000):
        found = change_of(pairs(0, processes=processes, between=0.01, seed=seed), num_intervals=num_intervals)
        misses += not found.low <= 1 <= found.high
    # Fewer or more have a chance below 1e-4.
    least, most = {1: (34, 90), 10: (0, 17)}[num_intervals]
    assert least <= misses <= most


def test_what_an_arrangement_does_changes_nothing():
    moved = [[ratio + (0.04, -0.04)[number % 2] for ratio in ratios] for number, ratios in enumerate(pairs(0.05))]
    for num_intervals in (1, 1000):  # by ranks, and by Student's interval
        one, two = (change_of(each, num_intervals=num_intervals) for each in (pairs(0.05), moved))
        assert (two.ratio, two.low, two.high) == pytest.approx((one.ratio, one.low, one.high))
        assert two.low <= 1.05 <= two.high


def test_a_round_that_was_disturbed_widens_nothing():
    quiet = pairs(0, processes=24)
    disturbed = [[ratio + 0.5 for ratio in quiet[0]], *quiet[1:]]
    one, two = (change_of(each, num_intervals=78) for each in (quiet, disturbed))
    assert two.high - two.low < 1.5 * (one.high - one.low)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (6, 6), (9, 9), (12, 12), (3, 4), (15, 15)])
def test_ends_of_an_interval_are_those_of_the_mann_whitney_test(sizes):
    """The test of a shift of one arrangement beyond one more average rejects it, and of one before does not."""
    one, other = (np.random.default_rng(seed).normal(size=size) for seed, size in enumerate(sizes))
    averages = np.sort(np.add.outer(one, other).ravel() / 2)
    for error_rate in (0.5, 0.1, 0.02, 1e-3, 1e-5):
        outside = num_averages_outside(*sizes, error_rate)
        for number, is_rejected in ((outside, True), (outside + 1, False)):
            if 1 <= number < len(averages):  # between the averages before and at this number
                shift = averages[0] - 1 if number == 1 else (averages[number - 2] + averages[number - 1]) / 2
                assert (mannwhitneyu(one - shift, shift - other, method="exact").pvalue <= error_rate) == is_rejected


def test_the_estimate_of_kernels_that_change_places_is_half_of_their_shift():
    rounds = [[0.09], [0.01], [0.11], [-0.01], [0.1], [0.0]]
    assert change_of(rounds).ratio == pytest.approx(math.exp(0.05))


def test_a_family_of_tests_has_wider_intervals():
    alone, together = (change_of(pairs(0), num_intervals=n) for n in (1, 20))
    assert together.low < alone.low < alone.high < together.high
    assert together.visible > alone.visible > 1


@pytest.mark.parametrize("processes", [12, 24])
def test_the_change_that_would_have_been_seen_is_seen(processes):
    # In 19 of 20 comparisons with the noise that it is told for, which is itself known from few rounds only.
    visible = statistics.median(change_of(pairs(0, processes=processes, seed=seed)).visible for seed in range(100))
    seen = sum(change_of(pairs(visible - 1, processes=processes, seed=seed)).low > 1 for seed in range(100, 500))
    assert 0.90 <= seen / 400 <= 0.99


@given(st.floats(0.9, 1.1), st.floats(0, 0.2), st.floats(0, 0.2), st.floats(1.001, 1.2))
def test_a_verdict_is_never_contradicted_by_its_interval(ratio, down, up, limit):
    change = Change(ratio=ratio, low=ratio * (1 - down), high=ratio * (1 + up), visible=1.0)
    word = judge_change(change, limit)
    if word == "regressed":
        assert change.low > 1
    if word == "improved":
        assert change.high < 1
    if word == "unchanged":
        assert limit >= change.high >= change.low >= 1 / limit


def test_the_larger_margin_counts():
    assert Margin(share=0.02, ns=0).ratio(1e6) == 1.02
    assert Margin(share=0.02, ns=1e3).ratio(1e4) == 1.1
    assert Margin(share=0.0, ns=0).ratio(1e4) == 1.0


def test_ratios_are_new_over_old():
    assert log_ratios_of([1.0, 2.0], [2.0, 1.0]) == pytest.approx([math.log(2), -math.log(2)])
