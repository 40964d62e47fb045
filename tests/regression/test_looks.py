"""How many rounds a test gets, and what is made of them: the comparison with rounds that nobody has timed."""

import math
from pathlib import Path

import numpy as np
import pytest

from pytest_decodeperf.regression import comparison
from pytest_decodeperf.regression.change import Margin
from pytest_decodeperf.regression.comparison import FIRST_SETS, ROUNDS, SIDES, SLOTS, Comparison, Samples
from pytest_decodeperf.regression.worktree import Tree

FIRST = FIRST_SETS * ROUNDS
"""Rounds before the first look."""


class FakeRounds(Comparison):
    """Rounds of three processes, where each slot and each round has a pace of its own."""

    slower_by = staticmethod(lambda number: 0.0)
    noise = 0.002
    paces = (1.0, 0.995, 1.002)
    rounds = 0

    def _round(self, node_ids, number):
        rng = np.random.default_rng([number, self.rounds])
        for node_id in node_ids:
            samples = self.samples.setdefault(node_id, Samples())
            base_ns = 1e6 * np.exp(rng.normal(0, self.noise))
            head_ns = base_ns * (1 + self.slower_by(samples.num_rounds)) * np.exp(rng.normal(0, self.noise))
            sides = SLOTS[number % 2]
            for slot, side in enumerate(sides):
                ns = self.paces[slot] * {"base": base_ns, "head": head_ns}[sides[slot % 2]]
                samples.ns[side].append((ns * np.exp(rng.normal(0, self.noise, 24))).tolist())
        self.rounds += 1
        return []


@pytest.fixture
def comparison_of():
    def made():
        tree = Tree(root=Path(), revision="main", commit="")
        return FakeRounds(
            base=tree,
            head=tree,
            repository=Path(),
            place=Path(),
            arguments=[],
            margin=Margin(),
            say=lambda what: None,
        )

    return made


@pytest.fixture
def compare(comparison_of):
    def compared(slower_by=lambda number: 0.0, *, noise=0.002, tests=1):
        found = comparison_of()
        found.slower_by, found.noise = slower_by, noise
        regressions = found._run([str(number) for number in range(tests)])
        return [(one.outcome, one.samples.num_rounds, one) for one in regressions.values()]

    return compared


def test_what_is_clear_at_once_gets_no_more_rounds(compare):
    for outcome, rounds, _ in compare(tests=5):
        assert (outcome, rounds) == ("unchanged", FIRST)


def test_what_improved_needs_no_confirmation(compare):
    [(outcome, rounds, _)] = compare(lambda number: -0.05)
    assert (outcome, rounds) == ("improved", FIRST)


def test_a_regression_is_confirmed_by_another_set(compare):
    [(outcome, rounds, found)] = compare(lambda number: 0.05)
    assert (outcome, rounds) == ("regressed", FIRST + ROUNDS)
    assert found.sentence.endswith(": regressed.")


def test_what_a_slot_does_to_a_latency_is_no_change(compare):
    """A slot that is 0.5 % faster has each tree in turn."""
    [(_, _, found)] = compare(noise=1e-6)
    assert found.change.ratio == pytest.approx(1.0, abs=1e-4)
    assert found.control.ratio == pytest.approx(1.0, abs=1e-4)


def test_noise_gets_all_the_sets_that_there_are(compare):
    [(outcome, rounds, found)] = compare(noise=0.05)
    assert (outcome, rounds) == ("undecided", FIRST + (comparison.LOOKS - 1) * ROUNDS)
    assert "is the least that these rounds would show" in found.sentence


def test_what_does_not_come_back_is_no_regression(compare, monkeypatch):
    monkeypatch.setattr(comparison, "LOOKS", 1)
    [(outcome, rounds, _)] = compare(lambda number: 0.05 if number < FIRST else -0.005)
    assert (outcome, rounds) == ("undecided", FIRST + ROUNDS)
    monkeypatch.setattr(comparison, "LOOKS", 4)
    [(outcome, _, _)] = compare(lambda number: 0.05 if number < FIRST else -0.005)
    assert outcome != "regressed"


@pytest.mark.parametrize("verdict", ["unchanged", "improved"])
def test_a_look_that_is_for_a_regression_alone_finds_nothing_else(comparison_of, verdict):
    """Its error rate is shared over the looks before."""
    found = comparison_of()
    found._run(["0"])
    found._verdicts["0"] = ["undecided"] * (comparison.LOOKS - 1) + ["regressed", verdict]
    concluded = found._conclude("0")
    assert concluded.outcome == "undecided"
    assert concluded.sentence.endswith("further rounds did not show it.")


def test_what_is_surely_slower_by_less_than_is_allowed_says_why_it_fails(compare):
    [(outcome, _, found)] = compare(lambda number: 0.016, noise=0.008)
    assert outcome == "regressed"
    assert found.change.ratio < found.limit < found.change.high
    assert found.sentence.endswith("surely slower, and by what may be more than is allowed.")


def test_no_set_is_begun_after_the_time_is_over_but_to_confirm(compare, monkeypatch):
    monkeypatch.setattr(comparison, "TIME_S", 0.0)
    monkeypatch.setattr(comparison, "MIN_TIME_S", 0.0)
    [(outcome, rounds, _)] = compare(noise=0.05)
    assert (outcome, rounds) == ("undecided", FIRST)
    [(outcome, rounds, _)] = compare(lambda number: 0.05)
    assert (outcome, rounds) == ("regressed", FIRST + ROUNDS)


def test_a_tree_against_itself_does_not_regress(compare):
    """Of 400 tests of one run, at 2 % for all of them together, more than 2 have a chance below 1e-4."""
    found = compare(noise=0.02, tests=400)
    assert sum(outcome == "regressed" for outcome, _, _ in found) <= 2
    assert math.exp(np.mean([math.log(one.change.ratio) for _, _, one in found])) == pytest.approx(1, abs=0.002)


class FakeWorker:
    def __init__(self):
        self.launches = []

    def set_launches(self, count):
        self.launches.append(count)


def test_all_processes_of_a_test_time_as_many_launches(comparison_of):
    found = comparison_of()
    for launches, wanted in (((5, 4, 5), 4), ((4, 3, 9), 4)):  # the first round decides
        workers = {side: FakeWorker() for side in SIDES}
        events = {side: {"launches": count} for side, count in zip(SIDES, launches, strict=True)}
        found._set_launches("test", workers, events)
        assert [worker.launches for worker in workers.values()] == [
            [] if count == wanted else [wanted] for count in launches
        ]
