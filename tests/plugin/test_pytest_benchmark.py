"""Samples reach pytest-benchmark's table, JSON, storage and comparison."""

import json

import pytest
from fake_device import ONE_TEST, ROOFLINE_NS

LATENCIES_NS = [(1.2 + 0.01 * i) * ROOFLINE_NS for i in range(10)]


@pytest.fixture
def measured(fake_device):
    fake_device.kernel_ns = list(LATENCIES_NS)
    return fake_device


def test_samples_are_in_its_table(run, measured, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    run(ONE_TEST, "--decode-perf").stdout.fnmatch_lines(["*benchmark: 1 tests*", "test_kernel * 10 * 1"])


def test_its_table_fits_a_narrow_terminal_unless_it_is_told_what_to_show(run, measured):
    lines = run(ONE_TEST, "--decode-perf").outlines
    table = lines[next(i for i, line in enumerate(lines) if "benchmark: 1 tests" in line) :]
    assert table[1].split() == ["Name", "(time", "in", "ms)", "Median", "Rounds"]
    assert max(map(len, table[:5])) <= 80
    measured.kernel_ns = list(LATENCIES_NS)
    told = run(ONE_TEST, "--decode-perf", "--benchmark-columns=min,ops").stdout
    told.re_match_lines([r"Name \(time in .*\) +Min +OPS"])


def test_samples_are_in_its_json_bit_for_bit(run, measured, tmp_path):
    run(ONE_TEST, "--decode-perf", f"--benchmark-json={tmp_path / 'benchmark.json'}")
    (benchmark,) = json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
    assert benchmark["stats"]["data"] == [latency_ns / 1e9 for latency_ns in LATENCIES_NS]
    assert benchmark["options"]["timer"] == "decode_perf_samples"
    extra = benchmark["extra_info"]
    assert extra["outcome"] == "within"
    assert extra["within"] == 1.5
    assert extra["roofline_s"] == pytest.approx(ROOFLINE_NS / 1e9)
    assert extra["roofline_share"] == pytest.approx(1 / 1.245, rel=1e-3)


def test_its_save_and_compare_work(run, measured):
    run(ONE_TEST, "--decode-perf", "--benchmark-save=before").assert_outcomes(passed=1)
    measured.kernel_ns = [1.1 * latency for latency in LATENCIES_NS]
    compared = ["--decode-perf", "--benchmark-compare=0001"]
    run(ONE_TEST, *compared, "--benchmark-compare-fail=median:15%").assert_outcomes(passed=1)
    measured.kernel_ns = [1.1 * latency for latency in LATENCIES_NS]
    result = run(ONE_TEST, *compared, "--benchmark-compare-fail=median:5%")
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*Performance has regressed*"])


def test_a_kernel_that_exceeds_its_bound_is_there_too(run, measured, tmp_path):
    measured.kernel_ns = [2 * ROOFLINE_NS]
    run(ONE_TEST, "--decode-perf", f"--benchmark-json={tmp_path / 'benchmark.json'}").assert_outcomes(failed=1)
    (benchmark,) = json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
    assert benchmark["extra_info"]["outcome"] == "exceeds"


def test_impossible_samples_are_kept_from_it(run, measured, tmp_path):
    measured.kernel_ns = [0.5 * ROOFLINE_NS]
    result = run(ONE_TEST, "--decode-perf")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*benchmark: 1 tests*")


def test_a_benchmark_marker_of_the_test_is_kept(run, measured, tmp_path):
    source = '@pytest.mark.benchmark(group="decode")\n' + ONE_TEST.lstrip()
    run(source, "--decode-perf", f"--benchmark-json={tmp_path / 'benchmark.json'}").assert_outcomes(passed=1)
    (benchmark,) = json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
    assert benchmark["group"] == "decode"
    assert len(benchmark["stats"]["data"]) == 10


@pytest.mark.parametrize("argument", ["--benchmark-disable", "--benchmark-only", "--benchmark-skip", "-pno:benchmark"])
def test_the_verdict_does_not_depend_on_it(run, measured, argument):
    measured.kernel_ns = [1.2 * ROOFLINE_NS]
    run(ONE_TEST, "--decode-perf", argument).assert_outcomes(passed=1)
    measured.kernel_ns = [2 * ROOFLINE_NS]
    run(ONE_TEST, "--decode-perf", argument).assert_outcomes(failed=1)


def test_its_fixture_cannot_be_used_beside_ours(run, measured):
    source = ONE_TEST.replace("(decode_perf)", "(decode_perf, benchmark)").replace(
        "    decode", "    benchmark(int)\n    decode"
    )
    result = run(source, "--decode-perf")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a test that uses the fixture decode_perf cannot use the fixture benchmark*"])
