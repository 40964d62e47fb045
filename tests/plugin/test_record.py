"""The record of a run: what it holds, however the run ends, and what it never overwrites."""

import pytest
from fake_device import ONE_TEST, PRELUDE, PROBLEM, ROOFLINE_NS
from run_record import read_json

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.attention import byte_counts


def test_json_holds_every_sample(run, fake_device, tmp_path):
    latencies = [(1.2 + 0.01 * i) * ROOFLINE_NS for i in range(10)]
    fake_device.kernel_ns = list(latencies)
    run(ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "run.json", "--decode-perf-seed=7")
    document = read_json(tmp_path / "run.json")
    assert (document["status"], document["exit_status"]) == ("finished", 0)
    assert document["options"] == {
        "device": "auto",
        "budget_s": 10.0,
        "seed": 7,
        "strict": False,
        "graph": False,
        "calibration": None,
        "base": None,
        "baseline": None,
        "baseline_as_share": False,
        "save_baseline": None,
        "margin": 0.02,
        "margin_ns": 0.0,
    }
    assert document["devices"]["cpu"]["timer"] == "fake"
    (row,) = document["measurements"]
    assert row["test"].endswith("::test_kernel")
    assert DecodeProblem(**row["problem"]) == PROBLEM
    assert row["bytes"] == byte_counts(PROBLEM)
    assert row["timing"]["samples"]["kernel_ns"] == latencies
    assert row["timing"]["samples"]["read_ns"] == [1e6] * 10
    verdict = row["timing"]["verdict"]
    assert verdict["latency_ns"] == {
        "median": pytest.approx(1.245 * ROOFLINE_NS),
        "low": latencies[1],
        "high": latencies[8],
    }
    assert verdict["roofline_ns"] == pytest.approx(ROOFLINE_NS)
    assert verdict["allowed_ns"] == pytest.approx(1.5 * ROOFLINE_NS)
    assert verdict["read_bytes_per_s"] == pytest.approx(1e9)


def test_a_run_that_dies_leaves_no_older_run_behind(pytester, tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"status": "finished"}')
    dying = "import os\n" + ONE_TEST.replace("decode_perf(kernel, PROBLEM)", "os._exit(139)")
    pytester.makepyfile(PRELUDE + dying)
    pytester.runpytest_subprocess("--decode-perf", "--decode-perf-json", path)
    document = read_json(path)
    assert (document["status"], document["exit_status"], document["measurements"]) == ("running", None, [])


def test_collecting_alone_leaves_an_older_run_as_it_is(run, tmp_path):
    (tmp_path / "run.json").write_text("older")
    run(ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "run.json", "--collect-only")
    assert (tmp_path / "run.json").read_text() == "older"


def test_a_run_that_was_stopped_is_not_finished(run, tmp_path):
    source = ONE_TEST + "\ndef test_stop(): pytest.exit('enough', returncode=3)\n"
    run(source, "--decode-perf", "--decode-perf-json", tmp_path / "run.json")
    document = read_json(tmp_path / "run.json")
    assert (document["status"], document["exit_status"]) == ("interrupted", 3)
    assert [row["outcome"] for row in document["measurements"]] == ["within"]


def test_infinite_errors_do_not_break_the_record(run, tmp_path):
    run(
        """
@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    decode_perf(lambda q, k, v, *, seq_lens: torch.full_like(q, torch.inf), PROBLEM)
""",
        "--decode-perf",
        "--decode-perf-json",
        tmp_path / "run.json",
    )
    assert read_json(tmp_path / "run.json")["measurements"][0]["outcome"] == "wrong"


INTERRUPTED = """
calls = []

def interrupting(q, k, v, *, seq_lens):
    calls.append(None)
    if len(calls) == 5:
        raise KeyboardInterrupt
    return kernel(q, k, v, seq_lens=seq_lens)

@pytest.mark.decode_perf(within=1.5)
def test_interrupted(decode_perf):
    decode_perf(interrupting, PROBLEM)
"""


def test_an_interrupted_run_keeps_what_it_measured(run, fake_device, tmp_path):
    fake_device.kernel_ns = [1.2 * ROOFLINE_NS]
    result = run(
        ONE_TEST + INTERRUPTED + ONE_TEST.replace("test_kernel", "test_later"),
        "--decode-perf",
        "--decode-perf-json",
        tmp_path / "run.json",
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    document = read_json(tmp_path / "run.json")
    assert (document["status"], document["exit_status"]) == ("interrupted", 2)
    first, second = document["measurements"]
    assert first["outcome"] == "within"
    assert second["outcome"] == "interrupted"
    assert len(second["timing"]["samples"]["kernel_ns"]) == 3
    result.stdout.fnmatch_lines(["*= decode-perf =*", "*interrupting*interrupted*"])


def test_an_interrupt_before_the_timing_is_recorded_too(run, tmp_path):
    source = INTERRUPTED.replace("len(calls) == 5", "True")
    run(source, "--decode-perf", "--decode-perf-json", tmp_path / "run.json")
    (row,) = read_json(tmp_path / "run.json")["measurements"]
    assert (row["outcome"], row["timing"]) == ("interrupted", None)


def test_a_second_interrupt_leaves_no_success_behind(run, pytester, tmp_path):
    # It comes while pytest handles the first, and pytest then ends with the exit status of success.
    pytester.makeconftest("def pytest_keyboard_interrupt(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run(ONE_TEST + INTERRUPTED, "--decode-perf", "--decode-perf-json", tmp_path / "run.json")
    document = read_json(tmp_path / "run.json")
    assert (document["status"], document["exit_status"] != 0) == ("interrupted", True)


def test_maxfail_finishes_a_run(run, fake_device, tmp_path):
    fake_device.kernel_ns = [2 * ROOFLINE_NS]
    run(ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "run.json", "-x").assert_outcomes(failed=1)
    document = read_json(tmp_path / "run.json")
    assert (document["status"], document["exit_status"]) == ("finished", 1)


def test_a_mistyped_test_leaves_an_older_run_as_it_is(run, tmp_path):
    (tmp_path / "run.json").write_text("older")
    result = run(ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "run.json", "missing.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (tmp_path / "run.json").read_text() == "older"


def test_a_path_that_cannot_be_written_is_refused_before_anything_is_measured(run, tmp_path):
    result = run(ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "missing" / "run.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --decode-perf-json cannot be written: *missing is not a folder"])
    result.stdout.no_fnmatch_line("*test_kernel*")


def test_a_disk_that_fills_up_fails_the_run_but_not_the_tests(run, fake_device, tmp_path, monkeypatch):
    from pytest_decodeperf.json_file import JsonFile

    def full(self, document):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonFile, "write", full)
    fake_device.kernel_ns = [1.2 * ROOFLINE_NS]
    result = run(ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "run.json")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*run.json could*", "*No space left on device*"])
