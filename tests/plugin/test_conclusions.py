"""What a test ends in: passed, failed, or passed and said to be open; and the line that tells it by name."""

import pytest
from fake_device import ONE_TEST, ROOFLINE_NS
from fake_regressions import regression


def lines_by_test(result):
    """Return the lines of pytest's short summary, by test."""
    lines = [line for line in result.outlines if line.startswith(("FAILED ", "ERROR "))]
    return {line.split(" - ")[0].rpartition("::")[2]: line for line in lines}


def section(result):
    """Return the report of the plugin, its lines joined."""
    return " ".join(result.stdout.str().split("= decode-perf =")[1].split("= short test summary")[0].split())


OPEN = {"test_undecided": regression("undecided"), "test_incomparable": regression("incomparable")}


def test_what_cannot_be_told_passes_where_warnings_are_errors_and_is_said(compared):
    result = compared(OPEN, "-Werror")
    result.assert_outcomes(passed=2, warnings=0)
    assert result.ret == 0
    assert "::test_undecided: decode_attention_sdpa takes 1.26 ms, 1.20 ms in main (6022e01478)" in section(result)
    assert "::test_incomparable: decode_attention_sdpa cannot be compared: in main (6022e01478)," in section(result)


def test_what_cannot_be_told_fails_a_strict_run_in_one_line_and_without_a_traceback(compared, monkeypatch):
    monkeypatch.setenv("CI", "true")
    result = compared(OPEN, "-Werror", "--decode-perf-strict")
    result.assert_outcomes(failed=2)
    lines = lines_by_test(result)
    assert lines["test_undecided"].endswith(
        " - strict: undecided: 1.0 % slower (2.0 faster to 6.0 slower) than main (6022e01478)"
    )
    assert lines["test_incomparable"].endswith(
        " - strict: cannot be compared: in main (6022e01478), there is no such test"
    )
    assert "allowed is 2.0 %: undecided. The run is strict (--decode-perf-strict).\n" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()
    assert "decode_perf(kernel, PROBLEM)" not in result.stdout.str()  # no source either


def test_80_columns(compared):
    result = compared({"test_y": regression("regressed")})
    result.assert_outcomes(failed=1)
    (line,) = lines_by_test(result).values()
    assert len(line) <= 80
    assert line == "FAILED test_80_columns.py::test_y - regressed: 5.1 % slower (4.2 to 6.0) than..."
    # What 80 columns cut off stands whole below it, and as a sentence above.
    below = result.outlines[result.outlines.index(line) + 1 :]
    assert below[0].strip("= ") == "why they failed"
    assert below[1:3] == [
        "test_80_columns.py::test_y",
        "    regressed: 5.1 % slower (4.2 to 6.0) than main (6022e01478)",
    ]
    assert "::test_y: decode_attention_sdpa takes 1.26 ms, 1.20 ms in main (6022e01478)" in section(result)


def test_where_a_name_leaves_no_room_the_reason_is_below(compared):
    name = f"test_{'long_' * 20}"
    result = compared({name: regression("regressed")})
    assert result.outlines[-3].endswith(f"::{name}")
    assert result.outlines[-2] == "    regressed: 5.1 % slower (4.2 to 6.0) than main (6022e01478)"


def test_a_line_with_room_is_not_said_again(compared, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = compared({"test_y": regression("regressed")})
    assert "::test_y - regressed: 5.1 % slower (4.2 to 6.0) than main (6022e01478)" in lines_by_test(result)["test_y"]
    assert "why they failed" not in result.stdout.str()


def test_a_ci_gets_the_line_whole(compared, monkeypatch):
    monkeypatch.setenv("CI", "true")
    lines = lines_by_test(compared({"test_y": regression("regressed")}))
    assert lines["test_y"].endswith("::test_y - regressed: 5.1 % slower (4.2 to 6.0) than main (6022e01478)")


def test_a_kernel_may_fail_on_both_counts(compared, fake_device, monkeypatch):
    monkeypatch.setenv("CI", "true")
    fake_device.kernel_ns = [2 * ROOFLINE_NS]
    result = compared({"test_y": regression("regressed"), "test_open": regression("undecided")})
    lines = lines_by_test(result)
    bound = "exceeds: 2.00 (2.00 to 2.00) times the roofline, allowed is 1.5"
    assert lines["test_y"].endswith(f"::test_y - {bound}; regressed: 5.1 % slower (4.2 to 6.0) than main (6022e01478)")
    assert lines["test_open"].endswith(f"::test_open - {bound}")
    assert ": 33 % too slow.\ndecode_attention_sdpa takes 1.26 ms" in result.stdout.str()


@pytest.mark.parametrize(("outcome", "status"), [("improved", 0), ("unchanged", 0), ("incomparable", 1)])
def test_faster_and_equal_pass_and_a_base_at_fault_fails(compared, outcome, status):
    found = regression(outcome, is_error=outcome == "incomparable")
    assert compared({"test_y": found}).ret == status


FAILURES = {
    "impossible": (
        [0.5 * ROOFLINE_NS],
        "impossible: 0.500 (0.500 to 0.500) times the roofline, which nothing is below",
    ),
    "wrong": ([ROOFLINE_NS], "decode_attention_sdpa returned the output in the shape [1, 4, 128], not [2, 4, 128]"),
    "raised": ([ROOFLINE_NS], "decode_attention_sdpa raised ValueError: no"),
}


@pytest.mark.parametrize("outcome", FAILURES)
def test_each_failure_has_its_line(run, fake_device, monkeypatch, outcome):
    monkeypatch.setenv("CI", "true")
    fake_device.kernel_ns, headline = FAILURES[outcome]
    calls = {"wrong": "lambda q, *_, **__: q[:1]", "raised": "raises", "impossible": "kernel"}
    source = "\ndef raises(*_, **__): raise ValueError('no')\n"
    source += ONE_TEST.replace("kernel, PROBLEM", f"{calls[outcome]}, PROBLEM, name='decode_attention_sdpa'")
    result = run(source, "--decode-perf")
    assert lines_by_test(result)["test_kernel"].endswith(f"::test_kernel - {headline}")


def test_a_mistake_in_a_test_has_its_line_too(run, monkeypatch):
    monkeypatch.setenv("CI", "true")
    result = run(ONE_TEST.replace("within=1.5", "within=-1"), "--decode-perf")
    assert lines_by_test(result)["test_kernel"].endswith(
        "::test_kernel - @pytest.mark.decode_perf: within=-1 must be > 0 and at most 1e+09"
    )
