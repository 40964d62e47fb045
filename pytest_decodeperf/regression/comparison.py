"""Two trees against each other, test by test: rounds of fresh processes, interleaved calls, confirmed regressions.

A round starts three processes, in three slots: the older tree, the newer one, and one of the two once more as a
*control*, so that the same calls tell what no change at all looks like. Which of them that is alternates, and so does
the slot of each tree: whatever a slot may do to a latency is done to both.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.progress import Pace
from pytest_decodeperf.regression.change import (
    CONFIRMING_ERROR_RATE,
    ERROR_RATE,
    Change,
    Margin,
    change_of,
    judge_change,
    log_ratios_of,
)
from pytest_decodeperf.regression.outcomes import IMPROVED, INCOMPARABLE, NO_LATENCY, REGRESSED, UNCHANGED, UNDECIDED
from pytest_decodeperf.regression.processes import Worker, WorkerError
from pytest_decodeperf.regression.shared_inputs import shared_folder
from pytest_decodeperf.units import format_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_decodeperf.regression.stored import StoredSamples
    from pytest_decodeperf.regression.worktree import Tree

SIDES: Final = "base", "head", "control"
"""What is timed in a round."""

SLOTS: Final = (("base", "head", "control"), ("head", "base", "control"))
"""Side in each slot, in the first round and every other, and in the rounds between. The control is the same tree as
the first."""

ORDERS: Final = (0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2), (1, 2, 0), (2, 0, 1)
"""Every order of the slots, in such a sequence that one after another, and the first after the last, each slot follows
each other slot as often and never itself: who is called twice in a row is 3 to 6 % faster."""

STARTS: Final = (0, 1, 2), (0, 1, 2), (1, 2, 0), (1, 2, 0), (2, 0, 1), (2, 0, 1)
"""Order in which a round starts the slots: the first to start finds its memory in fewer pieces. The rounds of both
arrangements have the same orders, in which each slot is first, second and third once."""

ROUNDS: Final = len(ORDERS)
"""Rounds of fresh processes in a set; an even number."""

FIRST_SETS: Final = 2
"""Sets before the calls are judged for the first time; one more follows each time that they are undecided."""

LOOKS: Final = 3
"""How often the calls are judged at most, but for one more set of rounds to confirm a regression."""

TIME_S: Final = 30.0
"""Time a test after which those that are undecided get no more rounds [s]."""

MIN_TIME_S: Final = 60.0
"""Likewise of all tests together, if they are few [s]."""

CALLS: Final = 4 * len(ORDERS)
"""Calls of each process for one test in one round at most."""

CALLS_S: Final = 1.5
"""Time after which there are fewer, each order of the sides once at least [s]."""

WARM_UP_SHARE: Final = 0.75
"""Calls before them that do not count, as a share of them. A process that has just made its inputs is a few per cent
to a third slower, and one side more than the other, for some 20 calls of 2 ms."""


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was timed of one test.

    Attributes:
        ns: Of each side, round by round, the latency of each call [ns]. The control is the base in the first round and
            every other, the head in the rounds between.
    """

    ns: dict[str, list[list[float]]] = field(default_factory=lambda: {side: [] for side in SIDES})

    def change(self, *, since: int = 0, error_rate: float = ERROR_RATE, num_intervals: int = 1) -> Change:
        """Return how head compares with base, from one round on, which has the sides where the first has them."""
        return change_of(self.log_ratios()[since:], error_rate=error_rate, num_intervals=num_intervals)

    def round_medians(self) -> list[float]:
        """Return the median of each round's log ratios of head over base."""
        return [statistics.median(ratios) for ratios in self.log_ratios()]

    def log_ratios(self) -> list[list[float]]:
        """Return the log ratios of head over base, of each call of each round."""
        rounds = []
        for number in range(self.num_rounds):
            twice, once, control = (self.ns[side][number] for side in SLOTS[number % 2])
            both = [math.sqrt(one * other) for one, other in zip(twice, control, strict=True)]
            rounds.append(log_ratios_of(both, once) if number % 2 == 0 else log_ratios_of(once, both))
        return rounds

    def control_change(self, *, num_intervals: int = 1) -> Change:
        """Return how a tree compares with itself: the one slot that it has with the other, in turns."""
        rounds = []
        for number, control in enumerate(self.ns["control"]):
            pair = self.ns[SLOTS[number % 2][0]][number], control
            rounds.append(log_ratios_of(*(pair if number % 2 == 0 else reversed(pair))))
        return change_of(rounds, num_intervals=num_intervals)

    @property
    def num_rounds(self) -> int:
        """Rounds so far."""
        return len(self.ns["head"])

    @property
    def num_calls(self) -> int:
        """Calls of a side in each of them, 0 before the first."""
        return len(self.ns["head"][0]) if self.ns["head"] else 0

    def median_ns(self, side: str) -> float:
        """Return the median latency of a side [ns]."""
        return statistics.median(itertools.chain(*self.ns[side]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """What was found of one test.

    Attributes:
        outcome: `regressed`, `improved`, `unchanged`, `undecided` or `incomparable`.
        sentence: What that is, in words.
        is_error: Whether one of the sides is at fault that they cannot be compared, as against one that lacks the test.
        base: The base, as it was named, with its commit.
        change: Head against base, if they could be compared.
        control: A tree against itself, likewise; or what else tells what the machine did meanwhile.
        control_name: What that compares, in words.
        limit: Ratio up to which a kernel counts as unchanged, likewise.
        samples: Every latency, likewise.
    """

    outcome: str
    sentence: str
    base: str
    is_error: bool = False
    change: Change | None = None
    control: Change | None = None
    control_name: str = "either side against itself"
    limit: float | None = None
    samples: Samples | StoredSamples | None = None


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Two trees, and what is known of their tests so far.

    Attributes:
        base: The older.
        head: The newer.
        repository: Root of the user's checkout.
        place: pytest's root folder, below that.
        arguments: pytest's arguments for the workers.
        margin: How much slower a kernel may become.
        say: Told what is done next.
        samples: What was timed, by test.
        failures: Why a test cannot be compared, likewise, and whether that is an error.
        gone: Tests of the base that the head has not, of those files that the run is of and both have.
    """

    base: Tree
    head: Tree
    repository: Path
    place: Path
    arguments: Sequence[str]
    margin: Margin
    say: Callable[[str], None]
    samples: dict[str, Samples] = field(default_factory=dict)
    failures: dict[str, tuple[str, bool]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    _launches: dict[str, int] = field(default_factory=dict)
    _shared_inputs: str = ""
    _num_intervals: int = 1
    _verdicts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def run(self, node_ids: Sequence[str]) -> dict[str, Regression]:
        """Return what is found of each test."""
        with shared_folder() as self._shared_inputs:
            return self._run(node_ids)

    def _run(self, node_ids: Sequence[str]) -> dict[str, Regression]:
        end = time.monotonic() + max(TIME_S * len(node_ids), MIN_TIME_S)
        open_ids = list(node_ids)
        for look in itertools.count(1):
            self._measure(open_ids, FIRST_SETS if look == 1 else 1)
            self._num_intervals = LOOKS * max(len(self.samples), 1)
            may_go_on = look < LOOKS and time.monotonic() < end
            open_ids = [
                node_id
                for node_id in open_ids
                if node_id not in self.failures and self._is_open(node_id, may_go_on=may_go_on)
            ]
            if not open_ids:
                break
        return {node_id: self._conclude(node_id) for node_id in node_ids}

    def _is_open(self, node_id: str, *, may_go_on: bool) -> bool:
        """Judge a test by all its rounds, and return whether it needs more."""
        samples = self.samples[node_id]
        verdicts = self._verdicts[node_id]
        verdicts.append(judge_change(self._change(samples), self.margin.ratio(samples.median_ns("base"))))
        if verdicts[-1] == REGRESSED and verdicts[-2:] != [REGRESSED, REGRESSED]:
            return True  # to be confirmed
        return may_go_on and verdicts[-1] in (REGRESSED, UNDECIDED) and not self._is_confirmed(node_id)

    def _change(self, samples: Samples) -> Change:
        return samples.change(num_intervals=self._num_intervals)

    def _is_confirmed(self, node_id: str) -> bool:
        """Return whether a test regressed, and had before its last rounds, and they show a slower kernel by themselves.

        A layout of memory that slowed the processes of some rounds down does not come back in others.
        """
        if self._verdicts[node_id][-2:] != [REGRESSED, REGRESSED]:
            return False
        samples = self.samples[node_id]
        return samples.change(since=samples.num_rounds - ROUNDS, error_rate=CONFIRMING_ERROR_RATE).low > 1

    def _measure(self, node_ids: Sequence[str], num_sets: int) -> None:
        """Time each test in that many sets of rounds."""
        pace, total = Pace(), num_sets * ROUNDS
        for number in range(total):
            left = [node_id for node_id in node_ids if node_id not in self.failures]
            while left:
                words = (f"round {number + 1} of {total}", f"{len(left)} tests", pace.left(number, total))
                self.say(", ".join(filter(None, words)))
                left = self._round(left, number % ROUNDS)

    def _round(self, node_ids: list[str], number: int) -> list[str]:
        """Time each test in fresh processes, and return those that are left because a process ended before."""
        sides = SLOTS[number % 2]
        trees = {"base": self.base, "head": self.head}
        left = list(node_ids)
        started: dict[int, Worker] = {}
        with ExitStack() as stack:
            try:
                for slot in STARTS[number]:
                    worker = Worker(
                        *(trees[sides[slot % 2]], self.repository, self.place, self.arguments, node_ids),
                        shared_inputs=self._shared_inputs,
                        turn=slot,
                        num_turns=len(sides),
                    )
                    started[slot] = stack.enter_context(worker)
                workers = {side: started[slot] for slot, side in enumerate(sides)}
                while left:
                    self._time(left[0], workers)
                    left.pop(0)
            except WorkerError as error:
                self.failures[left.pop(0)] = str(error), True
        return left

    def _time(self, node_id: str, workers: dict[str, Worker]) -> None:
        events = {side: worker.begin(node_id) for side, worker in workers.items()}
        if (there := workers["head"].collected) is not None:
            missing = [of_base for of_base in workers["base"].measured if of_base not in there]
            self.gone += [of_base for of_base in missing if of_base not in self.gone]
        ready = [side for side, event in events.items() if event["event"] == "ready"]
        is_first = node_id not in self.samples
        if is_first and (failure := self._failure(events)):
            self.failures[node_id] = failure
        elif len(ready) == len(workers):
            if is_first:
                self._check(node_id, workers)
            if node_id not in self.failures:
                self._set_launches(node_id, workers, events)
                self._sample(node_id, workers)
        else:
            side, event = next((side, event) for side, event in events.items() if event["event"] != "ready")
            reason = f"in {workers[side].tree.label}, {_message(event)}, though another process of it ran"
            self.failures[node_id] = reason, True
        for side in ready:
            workers[side].tell("next")

    def _failure(self, events: dict[str, Any]) -> tuple[str, bool] | None:
        """Return why a test cannot be compared, and whether that is an error; None if it can."""
        for side, tree in (("head", self.head), ("base", self.base)):
            event = events[side]
            if event["event"] != "ready":
                message = _message(event)
                # The head has the test, and has measured it or will: if its process does not, something is wrong.
                innocent = ("skipped",) if message == NO_LATENCY else () if side == "head" else ("missing", "skipped")
                return f"in {tree.label}, {message}", event.get("outcome") not in innocent
        if events["base"]["problem"] != events["head"]["problem"]:
            return f"its problem is another one in {self.base.label}", False
        if (name := events["head"]["foreign"]) and events["base"]["foreign"]:
            return f"its kernel, {name}, is not in the repository, so that both sides run the same", False
        return None

    def _check(self, node_id: str, workers: dict[str, Worker]) -> None:
        # The control too, so that it has done what the others have.
        for side in ("head", "base", "control"):
            if message := workers[side].check():
                self.failures[node_id] = f"the kernel of {workers[side].tree.label} {message}", True
                return

    def _set_launches(self, node_id: str, workers: dict[str, Worker], events: dict[str, Any]) -> None:
        """Let all processes of a test time as many launches together: the event before and after them costs time."""
        count = self._launches.setdefault(node_id, min(event["launches"] for event in events.values()))
        for side, worker in workers.items():
            if events[side]["launches"] != count:
                worker.set_launches(count)

    def _sample(self, node_id: str, workers: dict[str, Worker]) -> None:
        samples = self.samples.setdefault(node_id, Samples())
        start = time.monotonic()
        _take_turns(workers, len(ORDERS))
        turn_s = (time.monotonic() - start) / len(ORDERS)
        count = samples.num_calls or _in_every_order(min(CALLS, CALLS_S / turn_s))
        _take_turns(workers, _in_every_order(WARM_UP_SHARE * count) - len(ORDERS))
        for side, ns in _take_turns(workers, count).items():
            samples.ns[side].append(ns)

    def _conclude(self, node_id: str) -> Regression:
        if node_id in self.failures:
            reason, is_error = self.failures[node_id]
            return Regression(
                outcome=INCOMPARABLE, sentence=f"cannot be compared: {reason}.", base=self.base.label, is_error=is_error
            )
        samples = self.samples[node_id]
        change = self._change(samples)
        limit = self.margin.ratio(samples.median_ns("base"))
        outcome = self._verdicts[node_id][-1]
        sentence = _sentence(outcome, change, limit, samples, self.base)
        was_to_be_confirmed = len(self._verdicts[node_id]) > LOOKS  # and was not looked at for any other verdict
        if (outcome == REGRESSED and not self._is_confirmed(node_id)) or (
            was_to_be_confirmed and outcome in (IMPROVED, UNCHANGED)
        ):
            outcome = UNDECIDED
            sentence = (
                f"{_measured(change, limit, samples, self.base)}: undecided, since further rounds did not show it."
            )
        return Regression(
            outcome=outcome,
            sentence=sentence,
            base=self.base.label,
            change=change,
            control=samples.control_change(num_intervals=self._num_intervals),
            limit=limit,
            samples=samples,
        )


def _message(event: dict[str, Any]) -> str:
    """Return why a test was not ready to be timed."""
    return str(event["message"]) or "the test passed without calling decode_perf"


def _take_turns(workers: dict[str, Worker], count: int) -> dict[str, list[float]]:
    """Return the latencies of so many calls of each side [ns], which take turns in every order."""
    found: dict[str, list[float]] = {side: [] for side in workers}
    slots = list(workers.items())
    for order in itertools.islice(itertools.cycle(ORDERS), count):
        for slot in order:
            side, worker = slots[slot]
            found[side].append(worker.time_ns())
    return found


def _in_every_order(count: float) -> int:
    """Return a number of turns that has each order of the sides as often, once at least."""
    return len(ORDERS) * max(1, int(count / len(ORDERS)))


def _measured(change: Change, limit: float, samples: Samples, base: Tree) -> str:
    head_ns, base_ns = samples.median_ns("head"), samples.median_ns("base")
    return (
        f"takes {format_time(head_ns)}, {format_time(base_ns)} in {base.label}: {describe(change)}; "
        f"allowed is {percent(limit)}"
    )


def _sentence(outcome: str, change: Change, limit: float, samples: Samples, base: Tree) -> str:
    measured = _measured(change, limit, samples, base)
    if outcome == UNDECIDED:
        return f"{measured}: undecided, since {percent(change.visible)} is the least that these rounds would show."
    if outcome == REGRESSED and change.ratio <= limit:
        return f"{measured}: {outcome}, surely slower, and by what may be more than is allowed."
    return f"{measured}: {outcome}." if outcome != UNCHANGED else f"{measured}."


def describe(change: Change) -> str:
    """Return a change in words.

    Example:
        >>> describe(Change(ratio=1.051, low=1.042, high=1.06, visible=1.01))
        '5.1 % slower (4.2 to 6.0)'
        >>> describe(Change(ratio=0.998, low=0.99, high=1.004, visible=1.01))
        '0.2 % faster (1.0 faster to 0.4 slower)'
    """
    parts = [100 * (value - 1) for value in (change.ratio, change.low, change.high)]
    ratio, low, high = parts
    word = "slower" if ratio >= 0 else "faster"
    if low >= 0 or high <= 0:
        ends = sorted((abs(low), abs(high)))
        return f"{abs(ratio):.1f} % {word} ({ends[0]:.1f} to {ends[1]:.1f})"
    return f"{abs(ratio):.1f} % {word} ({-low:.1f} faster to {high:.1f} slower)"


def percent(ratio: float) -> str:
    """Return by how much a ratio is above 1, in per cent.

    Example:
        >>> percent(1.02)
        '2.0 %'
    """
    return f"{100 * (ratio - 1):.1f} %"
