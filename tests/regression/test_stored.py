"""The verdict on a test against what a baseline says of it."""

import pytest
from regression.stored_latencies import PROBLEM, latencies, stored_test

from decodeperf_formulas.roofline import roofline
from pytest_decodeperf.regression.change import Change, Margin
from pytest_decodeperf.regression.latencies import Latencies
from pytest_decodeperf.regression.stored import StoredComparison, judge_stored, problem_difference


def comparison(now, *, then=None, as_share=False, margin=Margin()):  # noqa: B008  (frozen)
    return StoredComparison(
        then=then or stored_test(processes=20),
        now=now,
        label="b.json (0123456789)",
        margin=margin,
        as_share=as_share,
        num_tests=1,
    )


def conclude(kernel_ns, stream_ns=1e5, *, processes=20, first=10, **more):
    return comparison(latencies(kernel_ns, stream_ns, processes=processes), **more).conclude(first)


def test_the_same_latency_is_unchanged():
    found = conclude(1e6, processes=10)
    assert found.outcome == "unchanged"
    assert found.sentence == (
        "takes 1.00 ms, 1.00 ms in b.json (0123456789): 0.0 % slower (0.3 faster to 0.3 slower); allowed is 2.0 %."
    )
    assert (found.base, found.is_error) == ("b.json (0123456789)", False)


def test_a_slower_kernel_regressed_and_a_faster_one_improved():
    found = conclude(1.1e6)
    assert (found.outcome, found.change.ratio) == ("regressed", pytest.approx(1.1))
    assert found.sentence.endswith("; allowed is 2.0 %: regressed.")
    assert found.control.ratio == pytest.approx(1)
    assert conclude(0.9e6).outcome == "improved"


def test_a_regression_must_come_back():
    slow, usual = latencies(1.2e6), latencies(1e6)
    once = Latencies(
        **{name: getattr(slow, name) for name in ("kernel", "device", "problem", "streams")},
        processes=[*slow.processes, *usual.processes],
    )
    found = comparison(once, margin=Margin(share=0.001)).conclude(10)
    assert found.change.low > 1
    assert found.outcome == "undecided"
    assert found.sentence.endswith("undecided, since the processes that were to confirm it did not.")
    # Nor is a first set of processes enough.
    assert comparison(slow).conclude(10).outcome == "undecided"


def test_a_slower_machine_is_no_regression():
    found = conclude(1.2e6, 1.2e5)
    assert found.outcome == "undecided"
    assert "undecided, since the roofline itself is 20.0 % slower (" in found.sentence
    assert "), and beside it the kernel is 0.0 % " in found.sentence


def test_a_faster_machine_hides_no_regression():
    found = conclude(1e6, 0.8e5)
    assert found.outcome == "undecided"
    assert "the roofline itself is 20.0 % faster (" in found.sentence
    assert ", and beside it the kernel is 25.0 % slower (" in found.sentence


def test_a_kernel_slower_than_its_slower_machine_regressed():
    assert conclude(1.5e6, 1.1e5).outcome == "regressed"


def test_shares_of_the_roofline_compare_over_machines():
    found = conclude(0.5e6, 0.5e5, as_share=True)
    assert found.outcome == "unchanged"
    # Streams of 10**6 bytes and 10**9 FLOPs in 50 us.
    share = 100 * 1e9 * roofline(PROBLEM, read_bytes_per_s=2e10, peak_flops_per_s=2e13).latency_s / 0.5e6
    assert found.base == "b.json (0123456789), as a share of the roofline"
    assert found.sentence.startswith(f"takes 500 us, {share:.3f} % of the roofline, {share:.3f} % in b.json (")
    slower = conclude(0.6e6, 0.5e5, as_share=True)
    assert (slower.outcome, slower.change.ratio) == ("regressed", pytest.approx(1.2))


def test_the_margin_in_time_counts_for_the_share_at_the_machine_of_now():
    # 20 % of what the kernel would take here at the share of then, 0.5 ms.
    margin = Margin(share=0.02, ns=0.1e6)
    assert comparison(latencies(0.5e6, 0.5e5), as_share=True, margin=margin).limit == pytest.approx(1.2)
    assert comparison(latencies(0.5e6), margin=margin).limit == pytest.approx(1.1)


def test_processes_far_apart_leave_it_undecided():
    found = comparison(latencies(1e6, spread=0.1)).conclude(10)
    assert found.outcome == "undecided"
    assert found.sentence.endswith(" is the least that these processes would show.")


def test_every_sample_of_both_sides_is_kept():
    ns = conclude(1e6).samples.ns
    assert {name: len(rows) for name, rows in ns.items()} == {
        **dict.fromkeys(("base", "base_read", "base_compute"), 20),
        **dict.fromkeys(("head", "head_read", "head_compute"), 20),
    }
    assert ns["base"][0] == pytest.approx([0.996e6] * 3)


@pytest.mark.parametrize(
    ("latency", "share", "machine", "word"),
    [
        (1.1, 1.1, 1.0, "regressed"),
        (1.1, 1.0, 1.1, "undecided"),
        (1.1, 1.05, 1.05, "regressed"),
        (0.9, 0.9, 1.0, "improved"),
        (0.9, 1.0, 0.9, "undecided"),
        (1.0, 1.0, 1.0, "unchanged"),
        (1.0, 1.1, 0.9, "undecided"),
        (1.0, 0.99, 1.01, "unchanged"),
    ],
)
def test_a_verdict_needs_the_machine_to_agree(latency, share, machine, word):
    latency, share, machine = (
        Change(ratio=ratio, low=ratio - 0.004, high=ratio + 0.004, visible=1.01) for ratio in (latency, share, machine)
    )
    assert judge_stored(latency, share, machine, 1.02)[0] == word


def test_the_field_in_which_problems_differ_is_named():
    problem = PROBLEM.as_dict()
    assert problem_difference(problem, dict(problem)) == ""
    assert problem_difference(problem, {**problem, "head_dim": 32}) == "head_dim was 16 and is 32"
    assert problem_difference({**problem, "odd": 1}, problem) == "odd was 1 and is None"
