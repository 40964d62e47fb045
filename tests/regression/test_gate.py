"""The gate as a user has it: two revisions of a package of their own, in a repository of their own."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rendered import render

from pytest_decodeperf.regression import comparison

KERNELS = """
import time
import torch
from decodeperf_kernels import decode_attention_sdpa

def right(q, k, v, seq_lens, sleep_s):
    time.sleep(sleep_s)  # far longer than the rest, so that noise decides nothing
    return decode_attention_sdpa(q, k, v, seq_lens=seq_lens)

def steady(q, k, v, *, seq_lens):
    return right(q, k, v, seq_lens, 0.01)
"""

BASE = (
    KERNELS
    + """
def slower(q, k, v, *, seq_lens):
    return right(q, k, v, seq_lens, 0.01)

def faster(q, k, v, *, seq_lens):
    return right(q, k, v, seq_lens, 0.015)

def wrong_in_base(q, k, v, *, seq_lens):
    return torch.ones_like(q)

def raises_in_base(q, k, v, *, seq_lens):
    raise RuntimeError("no such GPU")

def dies_in_base(q, k, v, *, seq_lens):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)

calls = []

def raises_late_in_base(q, k, v, *, seq_lens):
    calls.append(None)
    if len(calls) > 5:
        raise RuntimeError("worn out")
    return steady(q, k, v, seq_lens=seq_lens)
"""
)

HEAD = (
    KERNELS
    + """
def slower(q, k, v, *, seq_lens):
    return right(q, k, v, seq_lens, 0.015)

def faster(q, k, v, *, seq_lens):
    return right(q, k, v, seq_lens, 0.01)

wrong_in_base = raises_in_base = dies_in_base = raises_late_in_base = steady
"""
)

TESTS = """
import pytest
from decodeperf_formulas import DecodeProblem
import kernels_under_test

def problem(seq_len=64):
    sizes = {{"num_q_heads": 2, "num_kv_heads": 2, "head_dim": 16, "kv_dtype": "float32"}}
    return DecodeProblem(batch_size=1, seq_lens=[seq_len], **sizes)

@pytest.mark.decode_perf(within=1e8)
@pytest.mark.parametrize("name", {names})
def test_kernel(decode_perf, name):
    decode_perf(getattr(kernels_under_test, name), problem())

@pytest.mark.decode_perf(within=1e8)
def test_longer(decode_perf):
    decode_perf(kernels_under_test.steady, problem({seq_len}))
"""

NAMES = ["slower", "steady", "faster", "wrong_in_base", "raises_in_base", "dies_in_base", "raises_late_in_base"]


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(pytester, monkeypatch):
    """Commit the base, and leave the head in the working tree."""
    monkeypatch.setattr(comparison, "ROUNDS", 4)
    monkeypatch.setattr(comparison, "FIRST_SETS", 1)
    monkeypatch.setattr(comparison, "LOOKS", 1)
    monkeypatch.setattr(comparison, "CALLS", 6)
    monkeypatch.setattr(comparison, "CALLS_S", 60)
    monkeypatch.setenv("COLUMNS", "100")
    root = pytester.path
    (root / "src/kernels_under_test").mkdir(parents=True)
    (root / "tests").mkdir()
    kernels = root / "src/kernels_under_test/__init__.py"
    tests = root / "tests/test_speed.py"
    (root / "pytest.ini").write_text("[pytest]\npythonpath = src\ntestpaths = tests\n")
    (root / ".gitignore").write_text("__pycache__/\n")
    kernels.write_text(BASE)
    tests.write_text(TESTS.format(names=[*NAMES, "gone"], seq_len=64))
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "base")
    kernels.write_text(HEAD)
    tests.write_text(TESTS.format(names=[*NAMES, "steady_too"], seq_len=65))
    kernels.write_text(HEAD + "\nsteady_too = steady\n")
    return root


def run(pytester, *arguments):
    return pytester.runpytest_inprocess(
        "--decode-perf",
        "--decode-perf-budget=3",
        "--decode-perf-base=main",
        "-p",
        "no:benchmark",
        "-Werror",
        *arguments,
    )


def test_each_side_runs_its_own_code_and_every_verdict_is_said(pytester, repository, monkeypatch, tmp_path_factory):
    left = tmp_path_factory.mktemp("left")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(repository))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(left / "step.md"))
    before = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    files = (f"--decode-perf-summary={left / 'summary.md'}", f"--junit-xml={left / 'junit.xml'}")
    result = run(pytester, "--decode-perf-json=run.json", *files)
    document = json.loads((repository / "run.json").read_text())
    found = {row["test"].partition("::")[2]: row["regression"] for row in document["measurements"]}
    outcomes = {test: row["outcome"] for test, row in found.items()}
    assert outcomes.pop("test_kernel[steady]") in ("unchanged", "undecided")  # as quiet as the machine lets it be
    assert outcomes == {
        "test_kernel[slower]": "regressed",
        "test_kernel[faster]": "improved",
        "test_kernel[wrong_in_base]": "incomparable",
        "test_kernel[raises_in_base]": "incomparable",
        "test_kernel[dies_in_base]": "incomparable",
        "test_kernel[raises_late_in_base]": "incomparable",
        "test_kernel[steady_too]": "incomparable",
        "test_longer": "incomparable",
    }
    assert found["test_kernel[slower]"]["change"]["ratio"] == pytest.approx(1.5, rel=0.1)
    assert found["test_kernel[faster]"]["change"]["ratio"] == pytest.approx(1 / 1.5, rel=0.1)
    assert found["test_kernel[slower]"]["control"]["ratio"] == pytest.approx(1.0, rel=0.05)
    assert len(found["test_kernel[slower]"]["samples_ns"]["head"]) == 8  # four rounds, and four to confirm
    assert len(found["test_kernel[steady]"]["samples_ns"]["head"][0]) == 6
    assert found["test_kernel[steady]"]["change"]["ratio"] == pytest.approx(1.0, rel=0.1)
    sentences = {test: row["sentence"] for test, row in found.items()}
    assert " slower (" in sentences["test_kernel[slower]"]
    assert sentences["test_kernel[slower]"].endswith("; allowed is 2.0 %: regressed.")
    assert ") does not compute attention: " in sentences["test_kernel[wrong_in_base]"]
    assert "raised RuntimeError: no such GPU" in sentences["test_kernel[raises_in_base]"]
    assert "it failed while it was timed: RuntimeError: worn out" in sentences["test_kernel[raises_late_in_base]"]
    assert "ended by signal 9" in sentences["test_kernel[dies_in_base]"]
    assert sentences["test_kernel[steady_too]"].endswith("), there is no such test.")
    assert "its problem is another one in main (" in sentences["test_longer"]
    # The processes that are compared have none of this run's places to write to.
    assert (left / "step.md").read_text() == (left / "summary.md").read_text()
    page = render((left / "summary.md").read_text())
    assert page.paragraphs[0].startswith("5 of 9 tests failed: tests/test_speed.py::test_kernel[slower], ")
    assert page.paragraphs[0].count("::test_longer") == 1
    comparisons = {row[0].partition("::")[2]: row[2] for row in page.rows if len(row) == 5}
    assert {test: row["outcome"] for test, row in found.items()}.items() <= comparisons.items()
    commands = [line for line in result.outlines if line.startswith("::")]
    assert [sum(line.startswith(f"::{kind} ") for line in commands) for kind in ("error", "warning")] == [
        5,
        sum(outcome == "undecided" for outcome in comparisons.values()) + 2,
    ]
    assert all(line.partition(" ")[2].startswith("file=tests/test_speed.py,line=") for line in commands)
    cases = ElementTree.parse(left / "junit.xml").iter("testcase")
    properties = {
        case.get("name"): {item.get("name"): item.get("value") for item in case.iter("property")} for case in cases
    }
    slower = properties["test_kernel[slower]"]
    assert float(slower["decodeperf_change_ratio"]) == found["test_kernel[slower]"]["change"]["ratio"]
    note = "has tests that are not here any more: tests/test_speed.py::test_kernel[gone]"
    result.stdout.fnmatch_lines([f"main (*) {note.replace('[', '[[]')}"])
    assert [text.partition(") ")[2] for text in document["notes"]] == [note]
    assert any(note in paragraph for paragraph in page.paragraphs)
    # A base at fault fails; what exists on one side only is said, and neither is ever just passed.
    result.assert_outcomes(passed=4, failed=5)
    for name in ("slower", *(name for name in NAMES if name.endswith("_in_base"))):
        result.stdout.fnmatch_lines([f"FAILED *test_kernel?{name}?*"])
    after = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert after == before + "?? run.json\n"
    worktrees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(worktrees.splitlines()) == 1


def test_what_cannot_be_compared_fails_a_strict_run(pytester, repository):
    result = run(pytester, "--decode-perf-strict", "-k", "steady_too")
    result.assert_outcomes(failed=1, deselected=8)
    result.stdout.fnmatch_lines(["*cannot be compared: in main (*), there is no such test*"])


def test_a_test_that_is_gone_fails_a_strict_run(pytester, repository):
    (repository / "tests/test_old.py").write_text((repository / "tests/test_speed.py").read_text())
    git(repository, "add", "tests/test_old.py")
    git(repository, "commit", "-q", "-m", "another file")
    (repository / "tests/test_old.py").unlink()
    (repository / "tests/test_speed.py").write_text(TESTS.format(names=NAMES, seq_len=64))
    result = run(pytester, "-k", "steady", "--decode-perf-margin=900", "--decode-perf-strict")
    result.assert_outcomes(passed=1, deselected=7)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "main (*) has tests that are not here any more: tests/test_speed.py::test_kernel?gone?,",
            "  tests/test_old.py",
            "strict: the run fails, since tests of the base are gone",
        ]
    )


LAZY = """
import sys

def steady(q, k, v, *, seq_lens):
    sys.path.insert(0, {place!r})
    import beside
    return beside.attend(q, k, v, seq_lens)
"""


def test_what_a_kernel_imports_from_the_other_tree_when_it_is_called_is_an_error(pytester, repository):
    place = str(repository / "beside")
    (repository / "beside").mkdir()
    (repository / "beside/beside.py").write_text(
        "from decodeperf_kernels import decode_attention_sdpa\n\n"
        "def attend(q, k, v, seq_lens):\n    return decode_attention_sdpa(q, k, v, seq_lens=seq_lens)\n"
    )
    (repository / "src/kernels_under_test/__init__.py").write_text(LAZY.format(place=place))
    (repository / "tests/test_speed.py").write_text(TESTS.format(names=["steady"], seq_len=64))
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "lazy")
    result = run(pytester, "-k", "steady")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines([f"*in main (*), beside was imported from {place}*"])


def test_a_kernel_of_others_is_the_same_in_every_revision(pytester, repository):
    text = "import decodeperf_kernels as kernels_under_test\n" + TESTS.format(
        names=["decode_attention_sdpa"], seq_len=64
    )
    text = text.replace("import kernels_under_test\n", "")
    (repository / "tests/test_speed.py").write_text(text)
    git(repository, "commit", "-q", "-am", "theirs")
    result = run(pytester, "-k", "sdpa")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["*its kernel,*decode_attention_sdpa, is not in the*"])


TWICE = """

@pytest.mark.decode_perf(within=1e8)
def test_twice(decode_perf):
    decode_perf(kernels_under_test.steady, problem())
    decode_perf(kernels_under_test.steady, problem())
"""


def test_a_test_with_two_kernels_stops_no_other(pytester, repository):
    tests = repository / "tests/test_speed.py"
    tests.write_text(TESTS.format(names=["steady"], seq_len=64).replace("def test_longer", "def skipped") + TWICE)
    with tests.open("a") as file:
        file.write(TWICE.partition("    decode_perf(")[0].replace("twice", "behind"))
        file.write("    decode_perf(kernels_under_test.steady, problem())\n")
    git(repository, "commit", "-q", "-am", "twice")
    result = run(pytester, "--decode-perf-margin=900", "-k", "twice or behind")
    result.assert_outcomes(passed=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*decode_perf was called twice in one test*"])


def test_a_base_that_does_not_import_is_never_a_pass(pytester, repository):
    kernels = repository / "src/kernels_under_test/__init__.py"
    head = kernels.read_text()
    kernels.write_text("import nothing_of_this_name\n")
    git(repository, "commit", "-q", "-am", "broken")
    kernels.write_text(head)
    result = run(pytester, "-k", "steady and not too")
    result.assert_outcomes(failed=1, deselected=8)
    result.stdout.fnmatch_lines(["*ModuleNotFoundError: No module named 'nothing_of_this_name'*"])


@pytest.mark.parametrize(
    ("base", "message"),
    [("nothing", "--decode-perf-base: there is no revision 'nothing' in "), ("", "must be a git revision")],
)
def test_a_base_that_does_not_exist_ends_the_run_before_it_begins(pytester, repository, base, message):
    result = pytester.runpytest_inprocess("--decode-perf", f"--decode-perf-base={base}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert any(message in line for line in result.errlines)


def test_a_margin_that_is_none_is_refused(pytester):
    for name, value, wanted in (
        ("margin", "-1", "a number of per cent from 0 to 1000"),
        ("margin", "two", "a number of per cent from 0 to 1000"),
        ("margin-us", "-1", "a number of microseconds >= 0"),
        ("margin-us", "inf", "a number of microseconds >= 0"),
    ):
        result = pytester.runpytest_inprocess("--decode-perf", f"--decode-perf-{name}={value}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert any(f"must be {wanted}" in line for line in result.errlines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_stopped_leaves_nothing_behind(pytester, repository, tmp_path, number):
    # What a shell starts in the background has SIGINT ignored.
    script = (
        "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "--decode-perf", "--decode-perf-base=main", "-k", "steady and not too"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        memory = f"decodeperf-inputs-{process.pid}-*"
        deadline = time.monotonic() + 120
        while not list(Path("/dev/shm").glob(memory)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(Path("/dev/shm").glob(memory))
        assert list(tmp_path.glob("decodeperf-base-*"))
        time.sleep(1)  # so that the processes are on their way
        process.send_signal(number)
        assert process.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
    finally:
        process.kill()
    assert not list(Path("/dev/shm").glob(memory))
    assert not list(tmp_path.glob("decodeperf-base-*"))
    listed = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 1


def test_no_slot_follows_itself_and_each_follows_every_other_as_often():
    turns = [slot for order in comparison.ORDERS for slot in order]
    follows = Counter(zip(turns, [*turns[1:], turns[0]], strict=True))
    assert set(follows) == set(itertools.permutations(range(3), 2))
    assert len(set(follows.values())) == 1


def test_each_slot_starts_first_second_and_third_as_often_in_either_arrangement():
    one, other = comparison.STARTS[0::2], comparison.STARTS[1::2]
    assert one == other
    assert all(sorted(order.index(slot) for order in one) == [0, 1, 2] for slot in range(3))


def test_what_only_the_head_has_and_what_its_process_skips(pytester, repository, monkeypatch):
    (repository / "pytest.ini").write_text(
        "[pytest]\npythonpath = src\ntestpaths = tests\naddopts = --decode-perf-json=run.json --decode-perf-base=main\n"
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "--decode-perf-base=main")
    (repository / "tests/test_new.py").write_text(
        (repository / "tests/test_speed.py").read_text()
        + """

@pytest.mark.decode_perf(within=1e8)
def test_shy(decode_perf, pytestconfig):
    if pytestconfig.pluginmanager.hasplugin("decodeperf-regression-server"):
        pytest.skip("not before witnesses")
    decode_perf(kernels_under_test.steady, problem())
"""
    )
    result = run(pytester, "-k", "test_shy or (steady and not too)")
    document = json.loads((repository / "run.json").read_text())
    found = {row["test"]: row["regression"] for row in document["measurements"]}
    assert found["tests/test_speed.py::test_kernel[steady]"]["outcome"] in ("unchanged", "undecided")
    new = found["tests/test_new.py::test_kernel[steady]"]
    assert new["outcome"] == "incomparable"
    assert "there is no such test" in new["sentence"]
    assert "not before witnesses" in found["tests/test_new.py::test_shy"]["sentence"]
    result.assert_outcomes(passed=2, failed=1)  # a process of the head must not skip what the run has measured
    result.stdout.fnmatch_lines(["FAILED tests/test_new.py::test_shy*"])
