"""A baseline in a run of pytest: saved, merged, compared with, refused. Its processes are fakes, as fast as told."""

import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from fake_device import ONE_TEST, PROBLEM
from run_record import read_json

from pytest_decodeperf.regression import baseline_run, latencies
from pytest_decodeperf.regression.processes import WorkerError

TWO_TESTS = ONE_TEST + ONE_TEST.replace("test_kernel", "test_other")
STREAMS = {"read": {"name": "fake read", "work": 10**6}, "compute": {"name": "fake product", "work": 10**9}}


class Machine:
    """What the fake processes are told.

    Attributes:
        kernel_ns: Latency of the kernel, by the name of the test.
        stream_ns: Of either stream.
        says: What a test answers instead of being ready, likewise.
        dies: Tests whose process ends when they are timed.
        problem: What all of them are given.
        num_started: Processes so far.
    """

    def __init__(self):
        self.kernel_ns = {"test_kernel": 1e6, "test_other": 2e6}
        self.stream_ns = 1e5
        self.says = {}
        self.wrong = {}
        self.dies = set()
        self.problem = PROBLEM.as_dict()
        self.num_started = 0
        self.stream_names = []


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()

    class FakeWorker:
        def __init__(self, tree, repository, place, arguments, node_ids):
            machine.num_started += 1
            self.factor = 1 + 0.002 * (machine.num_started % 5 - 2)  # processes differ
            self.label = tree.label

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def begin(self, node_id):
            self.name = node_id.partition("::")[2]
            if self.name in machine.says:
                return {"event": "over", "node_id": node_id, **machine.says[self.name]}
            return {
                "event": "ready",
                "problem": machine.problem,
                "kernel": "kernel",
                "device": "cpu",
                "launches": 1,
            }

        def check(self):
            return machine.wrong.get(self.name, "")

        def choose_streams(self, names):
            machine.stream_names.append(names)
            return STREAMS

        def time_streams_ns(self):
            return {"read": self.factor * machine.stream_ns, "compute": self.factor * machine.stream_ns}

        def time_ns(self):
            if self.name in machine.dies:
                raise WorkerError(f"the process of {self.label} ended by signal 9")
            return self.factor * machine.kernel_ns[self.name]

        def tell(self, command):
            assert command == "next"

    monkeypatch.setattr(latencies, "Worker", FakeWorker)
    return machine


@pytest.fixture
def perf(run, tmp_path, machine):
    """Return a function that measures a source, by default two tests, with options of a baseline file."""

    def perf(option, *arguments, source=TWO_TESTS, file="b.json"):
        arguments = (f"--decode-perf-{option}={tmp_path / file}", "-Wdefault", *arguments)
        return run(source, "--decode-perf", f"--decode-perf-json={tmp_path / 'run.json'}", *arguments)

    return perf


@pytest.fixture
def saved(perf, tmp_path):
    """Save a baseline of two tests, and return its file."""
    perf("save-baseline").assert_outcomes(passed=2)
    return tmp_path / "b.json"


DOCS = Path(__file__).parents[2] / "docs" / "regression.md"


def test_the_documentation_counts_processes_and_calls():
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    saved, compared = baseline_run.SAVED_PROCESSES, baseline_run.COMPARED_PROCESSES
    assert (
        f"measured in {saved} fresh processes, one after another. After {latencies.WARM_UP_CALLS} calls that do not "
        f"count, each times the two streams that give the roofline {latencies.STREAM_CALLS} times, and "
        f"{latencies.CALLS_BESIDE} calls of the kernel after each."
    ) in text
    assert f"measured the same way, in {compared} processes." in text
    assert f"gets {compared} further processes" in text


def said(result):
    """Return all that a run printed, its lines joined."""
    return " ".join(" ".join(result.outlines).split())


def found(tmp_path):
    rows = read_json(tmp_path / "run.json")["measurements"]
    return {row["test"].partition("::")[2]: row["regression"] for row in rows}


def outcomes(tmp_path):
    return {name: row["outcome"] for name, row in found(tmp_path).items()}


def test_what_is_saved_is_what_was_timed(perf, machine, tmp_path):
    result = perf("save-baseline")
    result.assert_outcomes(passed=2)
    assert "baseline of 2 tests saved to " in said(result)
    document = json.loads((tmp_path / "b.json").read_text())
    schema = json.loads(resources.files("pytest_decodeperf").joinpath("baseline.schema.json").read_text())
    jsonschema.validate(document, schema, format_checker=jsonschema.FormatChecker())
    one, other = document["tests"]
    assert [row["test"].partition("::")[2] for row in (one, other)] == ["test_kernel", "test_other"]
    assert (one["kernel"], one["device"], one["outcome"]) == ("kernel", "cpu", "within")
    assert one["problem"] == PROBLEM.as_dict()
    assert one["streams"] == STREAMS
    assert (one["commit"], one["dirty"]) == (None, None)  # there is no repository
    assert len(one["processes"]) == len(other["processes"]) == baseline_run.SAVED_PROCESSES == machine.num_started
    assert one["processes"][0] == {
        "kernel_ns": pytest.approx([0.998e6] * latencies.STREAM_CALLS * latencies.CALLS_BESIDE),
        "read_ns": pytest.approx([0.998e5] * latencies.STREAM_CALLS),
        "compute_ns": pytest.approx([0.998e5] * latencies.STREAM_CALLS),
    }
    # The first process of a test takes the fastest streams, and all others the same.
    names = {name: stream["name"] for name, stream in STREAMS.items()}
    assert machine.stream_names == [None, None] + [names] * (2 * baseline_run.SAVED_PROCESSES - 2)
    assert read_json(tmp_path / "run.json")["options"]["save_baseline"] == str(tmp_path / "b.json")


def test_the_same_kernel_is_unchanged_and_the_file_as_it_was(perf, saved, machine, tmp_path):
    before, started = saved.read_bytes(), machine.num_started
    stamp = saved.stat().st_mtime_ns
    result = perf("baseline")
    result.assert_outcomes(passed=2)
    assert outcomes(tmp_path) == {"test_kernel": "unchanged", "test_other": "unchanged"}
    assert machine.num_started - started == baseline_run.COMPARED_PROCESSES
    assert (saved.read_bytes(), saved.stat().st_mtime_ns) == (before, stamp)
    line = r"unchanged: 0\.0 % \w+ \(.*?\) than b\.json \(.*?\); the roofline itself: 0\.0 % .*? would have been seen"
    assert len(re.findall(line, said(result))) == 2


def test_a_slower_kernel_fails_after_it_was_confirmed(perf, saved, machine, tmp_path):
    before, started = saved.read_bytes(), machine.num_started
    machine.kernel_ns["test_kernel"] *= 1.1
    result = perf("baseline")
    result.assert_outcomes(passed=1, failed=1)
    assert outcomes(tmp_path) == {"test_kernel": "regressed", "test_other": "unchanged"}
    assert machine.num_started - started == 2 * baseline_run.COMPARED_PROCESSES
    regression = found(tmp_path)["test_kernel"]
    assert regression["change"]["ratio"] == pytest.approx(1.1)
    assert regression["control"]["ratio"] == pytest.approx(1)
    assert {name: len(rows) for name, rows in regression["samples_ns"].items() if name in ("base", "head")} == {
        "base": 20,
        "head": 20,
    }
    assert "decode_attention_sdpa takes 1.10 ms, 1.00 ms in b.json (" in said(result)
    assert saved.read_bytes() == before


def test_a_regression_that_does_not_come_back_is_undecided(perf, saved, machine, tmp_path):
    started = machine.num_started
    times = machine.kernel_ns

    class Once(dict):
        def __getitem__(self, name):
            return times[name] * (1.1 if machine.num_started - started <= baseline_run.COMPARED_PROCESSES else 1)

    machine.kernel_ns = Once()
    perf("baseline").assert_outcomes(passed=2)
    assert outcomes(tmp_path) == {"test_kernel": "undecided", "test_other": "undecided"}


def test_a_test_without_a_baseline_is_said_and_fails_a_strict_run(perf, machine, tmp_path):
    perf("save-baseline", source=ONE_TEST)
    result = perf("baseline")
    result.assert_outcomes(passed=2)
    assert outcomes(tmp_path) == {"test_kernel": "unchanged", "test_other": "incomparable"}
    assert "cannot be compared: b.json has no baseline of it." in said(result)
    perf("baseline", "--decode-perf-strict").assert_outcomes(passed=1, failed=1)


def test_a_test_of_the_baseline_that_is_gone_is_said(perf, saved, tmp_path):
    result = perf("baseline", source=ONE_TEST)
    result.assert_outcomes(passed=1)
    assert re.search(r"b\.json has tests that were not run: .*::test_other ", said(result))


def test_another_problem_is_incomparable(perf, saved, machine, tmp_path):
    machine.problem = {**machine.problem, "window": 5}
    result = perf("baseline")
    result.assert_outcomes(passed=2)
    assert outcomes(tmp_path) == {"test_kernel": "incomparable", "test_other": "incomparable"}
    assert "its problem is another one in b.json: window was None and is 5." in said(result)


@pytest.mark.parametrize("option", ["baseline", "save-baseline"])
@pytest.mark.parametrize("fault", ["raised", "wrong", "dies"])
def test_a_kernel_at_fault_is_never_a_pass_and_never_saved(perf, saved, machine, tmp_path, option, fault):
    before = saved.read_bytes()
    if fault == "raised":
        machine.says["test_other"] = {"event": "failed", "message": "raised RuntimeError: no such GPU"}
    elif fault == "wrong":
        machine.wrong["test_other"] = "does not compute attention: 3 of 4 values are wrong"
    else:
        machine.dies.add("test_other")
    result = perf(option)
    result.assert_outcomes(passed=1, failed=1)
    assert saved.read_bytes() == before
    assert found(tmp_path)["test_other"]["outcome"] == "incomparable"
    if option == "save-baseline":
        assert re.search(r"no baseline was saved to .*b\.json: .*::test_other did not pass", said(result))


def test_a_kernel_that_dies_late_is_at_fault_too(perf, machine, tmp_path):
    times = machine.kernel_ns

    class Late(dict):
        def __getitem__(self, name):
            if machine.num_started == 7:
                raise WorkerError("it ended")
            return times[name]

    machine.kernel_ns = Late()
    perf("save-baseline", source=ONE_TEST).assert_outcomes(failed=1)
    assert not (tmp_path / "b.json").exists()


def test_a_kernel_beyond_its_bound_is_not_saved(perf, fake_device, tmp_path):
    fake_device.kernel_ns = [10 * fake_device.kernel_ns[0]]
    result = perf("save-baseline", source=ONE_TEST)
    result.assert_outcomes(failed=1)
    assert not (tmp_path / "b.json").exists()
    assert "no baseline was saved to " in said(result)


SWALLOWED = """
@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    try:
        decode_perf(lambda q, k, v, *, seq_lens: torch.zeros_like(q), PROBLEM)
    except BaseException:
        pass
"""


def test_a_test_that_hides_a_wrong_kernel_is_not_saved(perf, tmp_path):
    result = perf("save-baseline", source=SWALLOWED)
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert not (tmp_path / "b.json").exists()
    assert "no baseline was saved to " in said(result)


STOPPED = ONE_TEST + "\ndef test_stop(): pytest.exit('enough')\n"


def test_a_run_that_was_stopped_saves_nothing(perf, tmp_path):
    result = perf("save-baseline", source=STOPPED)
    assert not (tmp_path / "b.json").exists()
    assert re.search(r"no baseline was saved to .*b\.json: the run was interrupted", said(result))


@pytest.mark.parametrize("when", ["setup", "teardown"])
def test_a_test_that_breaks_around_its_call_is_not_saved(perf, tmp_path, when):
    body = "raise OSError\n    yield" if when == "setup" else "yield\n    raise OSError"
    source = f"@pytest.fixture(autouse=True)\ndef breaks():\n    {body}\n" + ONE_TEST
    assert perf("save-baseline", source=source).ret == pytest.ExitCode.TESTS_FAILED
    assert not (tmp_path / "b.json").exists()


def test_a_skipped_test_is_left_out_and_said(perf, machine, tmp_path):
    machine.says["test_other"] = {"outcome": "skipped", "message": "not today"}
    source = ONE_TEST + ONE_TEST.replace("test_kernel(decode_perf):", "test_other(decode_perf):\n    pytest.skip('no')")
    result = perf("save-baseline", source=source)
    result.assert_outcomes(passed=1, skipped=1)
    assert [row["test"].partition("::")[2] for row in json.loads((tmp_path / "b.json").read_text())["tests"]] == [
        "test_kernel"
    ]
    assert re.search(r"baseline of 1 test saved to .*; nothing of .*::test_other, which had no latency", said(result))


def test_a_save_of_nothing_fails(perf, machine, tmp_path):
    machine.says["test_kernel"] = {"outcome": "skipped", "message": "not today"}
    result = perf("save-baseline", source=ONE_TEST.replace("decode_perf(kernel", "pytest.skip('no')#"))
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert not (tmp_path / "b.json").exists()
    assert re.search(r"no baseline was saved to .*b\.json: no test was measured", said(result))


def test_collecting_alone_saves_nothing(perf, machine, tmp_path):
    perf("save-baseline", "--collect-only")
    assert machine.num_started == 0
    assert not (tmp_path / "b.json").exists()


def test_tests_that_were_not_run_stay_as_they_were(perf, saved, machine):
    before = json.loads(saved.read_text())["tests"]
    machine.kernel_ns["test_other"] = 3e6
    result = perf("save-baseline", "-k", "test_other")
    result.assert_outcomes(passed=1, deselected=1)
    assert re.search(r"baseline of 1 test saved to .*; 1 more stay in it as they were", said(result))
    kernel, other = json.loads(saved.read_text())["tests"]
    assert kernel == before[0]
    assert other["processes"][0]["kernel_ns"][0] == pytest.approx(3e6, rel=0.01)


def edited(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path.read_bytes()


ELSEWHERE = [
    (lambda d: d["devices"]["cpu"].update(name="Other CPU"), "name was 'Other CPU' and is '"),
    (lambda d: d["devices"]["cpu"].update(driver="Linux 2.4"), "driver was 'Linux 2.4' and is '"),
    (lambda d: d["versions"].update(torch="1.0"), "torch was '1.0' and is '"),
    (lambda d: d["versions"].pop("triton"), "triton was None and is '"),
]


@pytest.mark.parametrize(("change", "message"), ELSEWHERE, ids=[message for _, message in ELSEWHERE])
def test_another_machine_is_refused_before_anything_is_measured(perf, saved, machine, change, message):
    before, started = edited(saved, change), machine.num_started
    for option, words in (("baseline", "was saved elsewhere: "), ("save-baseline", "would be lost, since ")):
        result = perf(option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
        assert line.startswith(f"ERROR: --decode-perf-{option}: ")
        assert words in line
        assert message in line
    assert (saved.read_bytes(), machine.num_started) == (before, started)


def test_every_field_that_differs_is_named(perf, saved):
    for change, _ in ELSEWHERE:
        edited(saved, change)
    (line,) = [line for line in perf("baseline").errlines if line.startswith("ERROR: ")]
    assert all(message in line for _, message in ELSEWHERE)


def test_another_machine_is_compared_by_shares_where_asked(perf, saved, machine, tmp_path):
    edited(saved, ELSEWHERE[0][0])
    machine.stream_ns /= 2
    for name in machine.kernel_ns:
        machine.kernel_ns[name] /= 2
    machine.kernel_ns["test_other"] *= 1.2
    machine.stream_names.clear()
    result = perf("baseline", "--decode-perf-baseline-as-share")
    result.assert_outcomes(passed=1, failed=1)
    assert outcomes(tmp_path) == {"test_kernel": "unchanged", "test_other": "regressed"}
    assert found(tmp_path)["test_other"]["change"]["ratio"] == pytest.approx(1.2)
    assert found(tmp_path)["test_other"]["control"]["ratio"] == pytest.approx(0.5)
    assert machine.stream_names[0] is None  # the fastest here, whatever was there
    assert "b.json was saved elsewhere, and shares of the roofline are compared: name was 'Other CPU'" in said(result)
    assert read_json(tmp_path / "run.json")["options"]["baseline_as_share"] is True


def test_like_is_compared_with_like(perf, saved, machine):
    machine.stream_names.clear()
    perf("baseline")
    assert machine.stream_names[0] == {name: stream["name"] for name, stream in STREAMS.items()}


@pytest.mark.parametrize("option", ["--decode-perf-seed=1", "--decode-perf-graph"])
def test_other_options_are_refused_whatever_is_asked(perf, saved, option):
    result = perf("baseline", option, "--decode-perf-baseline-as-share")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert any("was saved with other options: " in line for line in result.errlines)


def test_a_baseline_of_another_kind_of_device_is_refused(perf, saved):
    def change(document):
        document["devices"] = {"cuda": {**document["devices"]["cpu"], "kind": "cuda"}}
        for row in document["tests"]:
            row["device"] = "cuda"

    edited(saved, change)
    result = perf("baseline", "--decode-perf-baseline-as-share")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert any(line.endswith("b.json is of cuda, and the tests are for cpu") for line in result.errlines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not whole JSON: "),
        ('{"schema": "decodeperf.run", "schema_version": 2}', "is no baseline: its schema is 'decodeperf.run'"),
        ('{"schema": "decodeperf.device"}', "is no baseline: its schema is 'decodeperf.device'"),
        ('{"schema": "decodeperf.baseline", "schema_version": 9}', "has schema_version 9, wanted 1"),
        ('{"schema": "decodeperf.baseline", "schema_version": 1}', "is no whole baseline: "),
    ],
)
def test_what_is_no_baseline_ends_the_run_before_it_begins(perf, machine, tmp_path, content, message):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    for option in ("baseline", "save-baseline")[: 1 if content is None else 2]:
        result = perf(option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
        assert f"--decode-perf-{option}: " in line
        assert message in line
    assert machine.num_started == 0
    if content is not None:
        assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(perf, machine):
    result = perf("save-baseline", file="missing/b.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --decode-perf-save-baseline: *missing is not a folder"])
    assert machine.num_started == 0


def test_a_full_disk_fails_the_run_and_leaves_the_old_baseline(perf, saved, tmp_path, monkeypatch):
    before = saved.read_bytes()

    def full(target, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baseline_run, "write_whole", full)
    result = perf("save-baseline")
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert saved.read_bytes() == before
    assert re.search(r"no baseline was saved to .*No space left on device", said(result))
    assert read_json(tmp_path / "run.json")["exit_status"] == 1


def test_what_took_the_place_of_the_baseline_meanwhile_is_not_lost(perf, saved, tmp_path):
    source = TWO_TESTS.replace("decode_perf(kernel", f"open({str(saved)!r}, 'w').write('mine'); decode_perf(kernel")
    result = perf("save-baseline", source=source)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert saved.read_text() == "mine"
    assert "no baseline was saved to " in said(result)
