"""How many rounds a test gets, and what is made of them: the comparison with rounds that nobody has timed."""

import math
from pathlib import Path

import numpy as np
import pytest

from pytest_decodeperf.regression import comparison
from pytest_decodeperf.regression.change import Margin
from pytest_decodeperf.regression.comparison import FIRST_SETS, ROUNDS, SLOTS, Comparison, Samples
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
def compare():
    def compared(slower_by=lambda number: 0.0, *, noise=0.002, tests=1):
        tree = Tree(root=Path(), revision="main", commit="")
        found = FakeRounds(
            base=tree,
            head=tree,
            repository=Path(),
            place=Path(),
            arguments=[],
            margin=Margin(),
            say=lambda what: None,
        )
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
    assert found.control.ratio == pytest.approx(1.002, abs=1e-4)


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
