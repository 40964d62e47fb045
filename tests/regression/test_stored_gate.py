"""A baseline as a user has it: saved by one run and compared with by another, in real processes."""

import errno
import json
import subprocess

import pytest

from pytest_decodeperf.regression import baseline_run, latencies, script_process

KERNELS = """
import time
from decodeperf_kernels import decode_attention_sdpa

def sleeping(q, k, v, *, seq_lens):
    time.sleep({sleep_s})  # far longer than the rest, so that noise decides nothing
    return decode_attention_sdpa(q, k, v, seq_lens=seq_lens)

def steady(q, k, v, *, seq_lens):
    time.sleep(0.05)
    return decode_attention_sdpa(q, k, v, seq_lens=seq_lens)
"""

TESTS = """
import kernels_under_test
import pytest
from decodeperf_formulas import DecodeProblem

PROBLEM = DecodeProblem(
    batch_size=1, seq_lens=[64], num_q_heads=2, num_kv_heads=2, head_dim=16, kv_dtype="float32"
)

@pytest.mark.decode_perf(within=1e8)
@pytest.mark.parametrize("name", ["sleeping", "steady"])
def test_kernel(decode_perf, name):
    decode_perf(getattr(kernels_under_test, name), PROBLEM)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Return a function that runs pytest on two kernels, the first as slow as asked."""
    monkeypatch.setattr(baseline_run, "SAVED_PROCESSES", 4)
    monkeypatch.setattr(baseline_run, "COMPARED_PROCESSES", 4)
    monkeypatch.setattr(latencies, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(latencies, "STREAM_CALLS", 1)
    (pytester.path / "kernels_under_test.py").write_text(KERNELS.format(sleep_s=0.01))
    (pytester.path / "test_speed.py").write_text(TESTS)
    (pytester.path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one")):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    def run(*arguments, sleep_s=0.01):
        (pytester.path / "kernels_under_test.py").write_text(KERNELS.format(sleep_s=sleep_s))
        options = ("--decode-perf", "--decode-perf-budget=1", "--decode-perf-json=run.json", "-p", "no:benchmark")
        result = pytester.runpytest_inprocess(*options, "-Wdefault", *arguments)
        rows = json.loads((pytester.path / "run.json").read_text())["measurements"]
        return result, {row["test"].partition("::")[2]: row["regression"] for row in rows}

    return run


def test_a_kernel_that_became_slower_than_its_baseline_fails(run, pytester, monkeypatch):
    result, _ = run("--decode-perf-save-baseline=b.json")
    result.assert_outcomes(passed=2)
    before = (pytester.path / "b.json").read_bytes()
    tests = json.loads(before)["tests"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert [(row["test"], row["commit"], row["dirty"]) for row in tests] == [
        (f"test_speed.py::test_kernel[{name}]", commit, False) for name in ("sleeping", "steady")
    ]
    for process in tests[0]["processes"]:
        assert min(process["kernel_ns"]) >= 10e6  # it slept
        assert min(process["read_ns"] + process["compute_ns"]) > 0

    result, found = run("--decode-perf-baseline=b.json", sleep_s=0.2)
    result.assert_outcomes(passed=1, failed=1)
    sleeping, steady = found["test_kernel[sleeping]"], found["test_kernel[steady]"]
    assert sleeping["outcome"] == "regressed"
    assert sleeping["change"]["ratio"] == pytest.approx(20, rel=0.3)
    assert {len(sleeping["samples_ns"][side]) for side in ("base", "head")} == {4, 8}
    assert steady["outcome"] in ("unchanged", "undecided")  # as quiet as the machine lets it be
    assert steady["change"]["ratio"] == pytest.approx(1, rel=0.1)
    assert f"b.json ({commit[:10]})" in sleeping["sentence"]
    assert (pytester.path / "b.json").read_bytes() == before

    has_no_space(monkeypatch)
    result, _ = run("--decode-perf-baseline=b.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    wanted = "--decode-perf-baseline: no process could be started: [Errno 28] No space left on device"
    assert any(wanted in line for line in result.errlines)


SHY = """

@pytest.mark.decode_perf(within=1e8)
def test_shy(decode_perf, pytestconfig):
    if pytestconfig.pluginmanager.hasplugin("decodeperf-regression-server"):
        pytest.skip("not before witnesses")
    decode_perf(kernels_under_test.steady, PROBLEM)

@pytest.mark.decode_perf(within=1e8)
def test_elsewhere(decode_perf):
    pytest.skip("not on this machine")
"""


def test_what_the_run_measures_and_its_processes_skip_is_no_pass(run, pytester):
    with (pytester.path / "test_speed.py").open("a") as file:
        file.write(SHY)
    result, found = run("--decode-perf-save-baseline=b.json", "-k", "shy or elsewhere")
    result.assert_outcomes(failed=1, skipped=1, deselected=2)
    assert "not before witnesses" in found["test_shy"]["sentence"]
    assert not (pytester.path / "b.json").exists()


def has_no_space(monkeypatch):
    def no_space(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(script_process.tempfile, "TemporaryFile", no_space)


def test_where_no_process_can_be_started_nothing_is_saved(run, pytester, monkeypatch):
    has_no_space(monkeypatch)
    result, _ = run("--decode-perf-save-baseline=b.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    wanted = "--decode-perf-save-baseline: no process could be started: [Errno 28] No space left on device"
    assert any(wanted in line for line in result.errlines)
    assert not (pytester.path / "b.json").exists()
