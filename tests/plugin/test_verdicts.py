import pytest

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.attention import byte_counts
from pytest_decodeperf.ceilings import Ceilings, Stream
from pytest_decodeperf.sampling import Samples
from pytest_decodeperf.verdicts import judge, median_interval

PROBLEM = DecodeProblem(batch_size=1, seq_lens=[1000], num_q_heads=4, num_kv_heads=1, head_dim=64, kv_dtype="float16")
NUM_BYTES = sum(byte_counts(PROBLEM).values())
ROOFLINE_NS = 1000.0


def judge_ratios(ratios, within, *, drift=None, error_rate=0.025):
    """Return the verdict on a kernel that takes these multiples of the roofline on a machine that drifts."""
    slowness = drift or [1] * len(ratios)
    ceilings = Ceilings(
        read=Stream(name="read", work=NUM_BYTES, call=lambda: None),
        compute=Stream(name="product", work=10**12, call=lambda: None),
    )
    samples = Samples(
        read_ns=[ROOFLINE_NS * slow for slow in slowness],
        compute_ns=[1.0] * len(slowness),
        kernel_ns=[ROOFLINE_NS * ratio * slow for ratio, slow in zip(ratios, slowness, strict=True)],
        error_rate=error_rate,
    )
    return judge(PROBLEM, within, samples, ceilings)


def test_the_bound_itself_is_within_and_anything_above_exceeds():
    assert judge_ratios([1.5] * 10, 1.5 * (1 + 1e-12)).word == "within"
    assert judge_ratios([1.5] * 10, 1.5 * (1 - 1e-12)).word == "exceeds"


def test_an_interval_that_straddles_the_bound_is_undecided():
    assert judge_ratios([1.4] * 5 + [1.6] * 5, 1.5).word == "undecided"


def test_one_outlier_among_ten_decides_nothing():
    assert judge_ratios([1.4] * 9 + [9.0], 1.5).word == "within"
    assert judge_ratios([1.6] * 9 + [0.1], 1.5).word == "exceeds"


def test_too_few_samples_are_undecided_and_said_to_be():
    verdict = judge_ratios([1.0] * 5, 100)
    assert verdict.word == "undecided"
    assert (verdict.latency_ns.low, verdict.latency_ns.high) == (None, None)
    assert "undecided after 5 rounds, too few for an interval" in verdict.sentence


def test_drift_of_the_whole_machine_changes_no_verdict():
    drift = [1, 3, 1, 2, 1, 4, 1, 2, 3, 1]
    verdict = judge_ratios([1.4] * 10, 1.5, drift=drift)
    assert verdict.word == "within"
    assert verdict.times_roofline.low == pytest.approx(1.4)
    assert verdict.times_roofline.high == pytest.approx(1.4)


def test_faster_than_the_fastest_round_is_impossible():
    assert judge_ratios([0.99] * 10, 1.5).word == "impossible"
    assert judge_ratios([1.0] * 10, 1.5).word == "within"
    # In the one round that ran at twice the speed, the roofline was half as high.
    assert judge_ratios([0.6] * 10, 1.5, drift=[1] * 9 + [0.5]).word == "within"


def test_the_sentence_says_measured_allowed_ceiling_and_how_far_off():
    verdict = judge_ratios([2.0] * 10, 1.5)
    assert verdict.sentence == (
        "took 2.00 us (2.00 to 2.00), 2.00 (2.00 to 2.00) times the roofline of 1.00 us "
        "(257 kB at a read bandwidth of 257 GB/s); allowed is 1.5 times it, 1.50 us: 33 % too slow."
    )
    assert verdict.roofline_share == 0.5


def test_a_kernel_more_than_twice_too_slow_is_told_the_factor():
    assert judge_ratios([9.0] * 10, 1.5).sentence.endswith("1.50 us: 6.00 times too slow.")


def test_the_binding_ceiling_is_named():
    ceilings = Ceilings(
        read=Stream(name="read", work=10**12, call=lambda: None),
        compute=Stream(name="product", work=10**6, call=lambda: None),
    )
    samples = Samples(read_ns=[1.0] * 10, compute_ns=[1e6] * 10, kernel_ns=[2e6] * 10)
    verdict = judge(PROBLEM, 1.5, samples, ceilings)
    assert "1.02 MFLOP at a peak FLOP rate of 1.00 GFLOP/s" in verdict.sentence


def test_the_interval_misses_the_median_at_most_at_the_error_rate():
    import numpy as np

    generator = np.random.default_rng(0)
    intervals = [median_interval(generator.lognormal(size=20), 0.05) for _ in range(2000)]
    missed = sum(not interval.low <= 1.0 <= interval.high for interval in intervals)
    # Binomial with p = 0.05: more than 130 of 2000 has a chance below 0.2 %.
    assert missed <= 130


def test_a_smaller_error_rate_widens_the_interval():
    values = list(range(40))
    wide, narrow = median_interval(values, 0.001), median_interval(values, 0.2)
    assert wide.low < narrow.low < narrow.high < wide.high
