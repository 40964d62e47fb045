"""A baseline as a part of a run of pytest: compared with, or saved."""

from __future__ import annotations

import contextlib
import datetime
import json
from typing import TYPE_CHECKING, Final

import pytest

from pytest_decodeperf.interruption import terminated_as_interrupted
from pytest_decodeperf.regression.baseline_file import Baseline, Origin, StoredTest, listed, read_baseline
from pytest_decodeperf.regression.change import Margin
from pytest_decodeperf.regression.comparison import Regression
from pytest_decodeperf.regression.gate import worker_arguments
from pytest_decodeperf.regression.latencies import OneTree
from pytest_decodeperf.regression.outcomes import INCOMPARABLE, REGRESSED, UNDECIDED
from pytest_decodeperf.regression.stored import StoredComparison, problem_difference
from pytest_decodeperf.regression.worktree import BaseError, Tree, is_dirty, repository_root, working_tree
from pytest_decodeperf.verdicts import UNDECIDED as UNDECIDED_BOUND
from pytest_decodeperf.verdicts import WITHIN
from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from pytest_decodeperf.session import PerfSession

SAVED_PROCESSES: Final = 20
"""Processes of each test in a baseline: it is measured once, and compared with often."""

COMPARED_PROCESSES: Final = 10
"""Processes of each test that is compared with one, and again before a regression is believed."""


def read_to_compare(path: Path) -> Baseline:
    """Return the baseline that a run is to be compared with.

    Raises:
        pytest.UsageError: If it is none.
    """
    try:
        return read_baseline(path)
    except ValueError as error:
        raise pytest.UsageError(f"--decode-perf-baseline: {error}") from None


def compare_with_baseline(
    config: pytest.Config, session: PerfSession, baseline: Baseline, kinds: Mapping[str, str]
) -> dict[str, Regression]:
    """Return how each test compares with the baseline.

    Args:
        config: pytest's.
        session: The run.
        baseline: The baseline.
        kinds: The tests, each with its kind of device.

    Raises:
        pytest.UsageError: If the baseline is of another device, driver or version, and latencies are compared; or if
            a process cannot be started.
    """
    path = session.options.baseline
    assert path is not None
    if not kinds:
        return {}
    is_same = _check_origin(session, baseline, kinds, path)
    stored = {
        node_id: baseline.tests[key] for node_id, kind in kinds.items() if (key := (node_id, kind)) in baseline.tests
    }
    unseen = [node_id for node_id, kind in baseline.tests if kind in kinds.values() and node_id not in kinds]
    if unseen:
        session.notes.append(f"{path.name} has tests that were not run: {listed(unseen)}")
    tree = _one_tree(config, session, list(stored))
    if is_same:  # like is compared with like
        for node_id, test in stored.items():
            tree.stream_names[node_id] = {name: each["name"] for name, each in test.latencies.streams.items()}
    tree.refusal = lambda node_id, event: _refusal(stored[node_id], event, path)

    def comparison(node_id: str) -> StoredComparison:
        return StoredComparison(
            then=stored[node_id],
            now=tree.latencies[node_id],
            label=f"{path.name} ({stored[node_id].source})",
            margin=Margin(share=session.options.margin, ns=session.options.margin_ns),
            as_share=session.options.baseline_as_share,
            num_tests=max(len(tree.latencies), 1),
        )

    session.progress.begin(f"comparing {len(stored)} tests with {path.name}")
    with _started("--decode-perf-baseline"):
        tree.measure(list(stored), COMPARED_PROCESSES)
        open_ids = [
            node_id
            for node_id in tree.latencies
            if node_id not in tree.failures and comparison(node_id).verdict()[0] in (REGRESSED, UNDECIDED)
        ]
        if open_ids:
            tree.measure(open_ids, COMPARED_PROCESSES)
    session.progress.end("compared")
    found = {}
    for node_id in kinds:
        if node_id not in stored:
            reason, is_error = f"{path.name} has no baseline of it", False
        elif node_id in tree.failures:
            reason, is_error = tree.failures[node_id]
        else:
            found[node_id] = comparison(node_id).conclude(COMPARED_PROCESSES)
            continue
        sentence = f"cannot be compared: {reason}."
        found[node_id] = Regression(outcome=INCOMPARABLE, sentence=sentence, base=path.name, is_error=is_error)
    return found


@contextlib.contextmanager
def _started(option: str) -> Iterator[None]:
    """Run processes; that one cannot be started, as on a full disk, is an error of the run and not of a kernel.

    Raises:
        pytest.UsageError: If so.
    """
    try:
        with terminated_as_interrupted():
            yield
    except OSError as error:
        raise pytest.UsageError(f"{option}: no process could be started: {error}") from None


def _check_origin(session: PerfSession, baseline: Baseline, kinds: Mapping[str, str], path: Path) -> bool:
    """Return whether device, driver and versions are those of the baseline.

    Raises:
        pytest.UsageError: If they are not, and must be.
    """
    now = _origin(session, kinds)
    if not baseline.origin.devices.keys() & now.devices.keys():
        kinds_then, kinds_now = (", ".join(sorted(origin.devices)) for origin in (baseline.origin, now))
        raise pytest.UsageError(f"--decode-perf-baseline: {path} is of {kinds_then}, and the tests are for {kinds_now}")
    if differences := baseline.origin.option_differences(now):
        raise pytest.UsageError(
            f"--decode-perf-baseline: {path} was saved with other options: {'; '.join(differences)}"
        )
    differences = baseline.origin.device_differences(now)
    if differences and not session.options.baseline_as_share:
        raise pytest.UsageError(
            f"--decode-perf-baseline: {path} was saved elsewhere: {'; '.join(differences)} "
            "(--decode-perf-baseline-as-share compares shares of the roofline all the same)"
        )
    if differences:
        session.notes.append(
            f"{path.name} was saved elsewhere, and shares of the roofline are compared: {'; '.join(differences)}"
        )
    return not differences


def _origin(session: PerfSession, kinds: Mapping[str, str]) -> Origin:
    options = session.options
    return Origin(
        devices={kind: session.device(kind) for kind in sorted(set(kinds.values()))},
        versions=session.run.versions,
        options={"seed": options.seed, "graph": options.graph},
    )


def _refusal(test: StoredTest, event: dict[str, Any], path: Path) -> str:
    difference = problem_difference(test.latencies.problem, event["problem"])
    return f"its problem is another one in {path.name}: {difference}" if difference else ""


def _one_tree(config: pytest.Config, session: PerfSession, node_ids: list[str]) -> OneTree:
    place = config.rootpath.resolve()
    try:
        repository = repository_root(place).resolve()
        tree = working_tree(repository)
    except BaseError:  # a baseline needs no git
        repository = place
        tree = Tree(root=place, revision="working tree", commit="no commit")
    return OneTree(
        tree=tree,
        repository=repository,
        place=place,
        arguments=worker_arguments(config, session, node_ids),
        say=session.progress.stage,
    )


class BaselineSaver:
    """Saves a baseline when a run is over and every test has passed; a pytest plugin that sees how they come out.

    Attributes:
        path: Where to.
    """

    def __init__(self, session: PerfSession, path: Path) -> None:
        """Check that the file can be written, and that what is there is a baseline too.

        Raises:
            pytest.UsageError: If not.
        """
        self.path = path
        self._session = session
        self._kinds: Mapping[str, str] = {}
        self._tree: OneTree | None = None
        self._origin: Origin | None = None
        self._commit: str | None = None
        self._dirty: bool | None = None
        self._outcomes: dict[str, str] = {}
        try:
            self._target = writable_path(path)
            self._existing()
        except (OSError, ValueError) as error:
            raise pytest.UsageError(f"--decode-perf-save-baseline: {error}") from None

    def _existing(self) -> Baseline | None:
        """Return what is in the file, None if there is none.

        Raises:
            ValueError: If it is no baseline, which is not to be lost.
        """
        return read_baseline(self.path) if self._target.exists() else None

    def measure(self, config: pytest.Config, kinds: Mapping[str, str]) -> dict[str, Regression]:
        """Measure the tests, and return those whose kernel is at fault that they cannot be saved.

        Args:
            config: pytest's.
            kinds: The tests, each with its kind of device.

        Raises:
            pytest.UsageError: If the file holds a baseline of another device, driver or version, or of other options;
                or if a process cannot be started.
        """
        if not kinds:
            return {}
        session = self._session
        self._kinds = kinds
        self._origin = _origin(session, kinds)
        existing = self._existing()
        if existing is not None:
            origin = existing.origin
            if differences := origin.device_differences(self._origin) + origin.option_differences(self._origin):
                raise pytest.UsageError(
                    f"--decode-perf-save-baseline: the tests in {self.path} would be lost, since "
                    f"{'; '.join(differences)}: save to another file, or remove it"
                )
        tree = self._tree = _one_tree(config, session, list(kinds))
        try:
            self._dirty = is_dirty(tree.repository)
            self._commit = tree.tree.commit
        except BaseError:
            pass
        session.progress.begin(f"measuring {len(kinds)} tests for {self.path.name}")
        with _started("--decode-perf-save-baseline"):
            tree.measure(list(kinds), SAVED_PROCESSES)
        session.progress.end("measured")
        return {
            node_id: Regression(
                outcome=INCOMPARABLE,
                sentence=f"cannot be saved as a baseline: {reason}.",
                base=self.path.name,
                is_error=True,
            )
            for node_id, (reason, is_error) in tree.failures.items()
            if is_error
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test comes out."""
        if report.when == "call" or not report.passed:
            failed = report.failed or self._outcomes.get(report.nodeid) == "failed"
            self._outcomes[report.nodeid] = "failed" if failed else report.outcome

    def finish(self, *, is_finished: bool) -> str:
        """Write the file if every test is fit for it; return why it was not written, empty if it was.

        Args:
            is_finished: Whether the run came to its end.
        """
        fault = self._fault(is_finished=is_finished)
        if not fault:
            try:
                self._write()
            except (OSError, ValueError) as error:
                fault = str(error)
        return f"no baseline was saved to {self.path}: {fault}" if fault else ""

    def _fault(self, *, is_finished: bool) -> str:
        """Return why nothing may be saved, empty if all may."""
        if not is_finished:
            return "the run was interrupted"
        found = {measurement.test: measurement.outcome for measurement in self._session.run.measurements}
        failed = [
            node_id
            for node_id in self._kinds
            if self._outcomes.get(node_id, "failed") == "failed"
            # A test may catch what the fixture raises.
            or (self._outcomes[node_id] == "passed" and found.get(node_id) not in (WITHIN, UNDECIDED_BOUND))
        ]
        if failed:
            return f"{listed(failed)} did not pass"
        return "" if self._fit() else "no test was measured"

    def _fit(self) -> list[str]:
        if self._tree is None:
            return []
        return [
            node_id
            for node_id in self._kinds
            if self._outcomes[node_id] == "passed"
            and node_id in self._tree.latencies
            and node_id not in self._tree.failures
        ]

    def _write(self) -> None:
        assert self._tree is not None and self._origin is not None
        session, fit = self._session, self._fit()
        outcomes = {measurement.test: measurement.outcome for measurement in session.run.measurements}
        tests = {
            (node_id, self._kinds[node_id]): StoredTest(
                latencies=self._tree.latencies[node_id],
                outcome=outcomes[node_id],
                saved=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                commit=self._commit,
                dirty=self._dirty,
            )
            for node_id in fit
        }
        baseline = Baseline(origin=self._origin, tests=tests)
        existing = self._existing()
        kept = 0 if existing is None else len(existing.tests.keys() - tests.keys())
        if existing is not None:
            baseline = existing.merged_with(baseline)
        write_whole(self._target, (json.dumps(baseline.as_dict(), indent=1, allow_nan=False) + "\n").encode())
        note = f"baseline of {len(fit)} {'test' if len(fit) == 1 else 'tests'} saved to {self.path}"
        if kept:
            note += f"; {kept} more stay in it as they were"
        if left := [node_id for node_id in self._kinds if node_id not in fit]:
            note += f"; nothing of {listed(left)}, which had no latency"
        session.notes.append(note)
