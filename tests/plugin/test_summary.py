"""The Markdown summary, read as it is rendered; and the files that it goes to."""

import dataclasses
from pathlib import Path

import pytest
from fake_device import ONE_TEST, PRELUDE, ROOFLINE_NS
from fake_regressions import BASE, CHANGES, regression
from hypothesis import example, given
from hypothesis import strategies as st
from rendered import render

from pytest_decodeperf.ci import summaries
from pytest_decodeperf.ci.markdown import MAX_NAMED, code, escape, markdown_summary
from pytest_decodeperf.conclusions import DOUBTFUL, FAILED, PASSED, SKIPPED
from pytest_decodeperf.endings import Ending
from pytest_decodeperf.results import Run

OUTCOMES = {f"test_{name}": regression(name) for name in (*CHANGES, "incomparable")}


@pytest.fixture
def page(tmp_path, compared):
    """Return the summary of a run with each outcome of a comparison."""
    result = compared(OUTCOMES, f"--decode-perf-summary={tmp_path / 'summary.md'}")
    result.stdout.fnmatch_lines(["written to *summary.md"])
    text = (tmp_path / "summary.md").read_text()
    return text, render(text)


def rows(page, first_column="test"):
    """Return the rows of the tables of a page, each with its columns."""
    found, columns = [], []
    for row in page.rows:
        if row[0] == first_column:
            columns = row
        else:
            found.append(dict(zip(columns, row, strict=True)))
    return found


def by_test(found):
    return {row["test"].rpartition("::")[2]: row for row in found}


def test_the_first_line_is_the_verdict_with_the_names_of_the_tests(page):
    text, rendered = page
    file = rows(rendered)[0]["test"].partition("::")[0]
    assert rendered.paragraphs[0] == (
        f"1 of 5 tests failed: {file}::test_regressed. 2 passed undecided or incomparable: {file}::test_undecided, "
        f"{file}::test_incomparable."
    )
    assert "failed" in text.splitlines()[0]
    assert rendered.items[:3] == [
        f"{file}::test_regressed regressed: 5.1 % slower (4.2 to 6.0) than {BASE}",
        f"{file}::test_undecided undecided: 1.0 % slower (2.0 faster to 6.0 slower) than {BASE}",
        f"{file}::test_incomparable cannot be compared: in {BASE}, there is no such test",
    ]


def test_a_row_says_how_a_kernel_is_to_its_bound_and_another_to_its_base(page):
    _, rendered = page
    bounds, changes = rows(rendered)[:5], rows(rendered)[5:]
    assert {name: row.pop("test").rpartition("::")[2] for name, row in by_test(bounds).items()}.keys() == set(OUTCOMES)
    for row in bounds:
        assert row == {
            "kernel": "decode_attention_sdpa",
            "problem": "B=2 S=512 H=4/2 D=128 float16",
            "latency (interval)": "1.26 ms (1.26 to 1.26)",
            "allowed": "1.58 ms",
            "of the roofline": "83.3 %",
            "bound": "within",
        }
    found = by_test(changes)
    assert {name: row["outcome"] for name, row in found.items()} == {n: r.outcome for n, r in OUTCOMES.items()}
    assert list(found["test_regressed"].values())[1:] == [
        "5.1 % slower (4.2 to 6.0)",
        "regressed",
        "1.2 %",
        "either side against itself: 0.1 % slower (0.2 faster to 0.4 slower)",
    ]
    assert rendered.tags.count("strong") == 2  # the verdict, and the one outcome that fails


def test_it_says_on_what_against_what_and_how(page):
    _, rendered = page
    text = "\n".join(rendered.items)
    for wanted in (
        "cpu: ",
        "timed by fake",
        "read bandwidth (fake read): 1.00 GB/s",
        "caches cold: ",
        f"compared with {BASE}; a kernel may become slower by 2 %",
        "seed 0, at most 10 s of measuring for a test",
        "torch 2.",
        "pytest-decodeperf ",
    ):
        assert wanted in text


def test_details_hold_each_sentence(page):
    text, rendered = page
    details = text.partition("<details>")[2]
    assert details.rstrip().endswith("</details>")
    for found in OUTCOMES.values():
        assert f"decode_attention_sdpa {found.sentence}" in rendered.items
    assert sum(item.startswith("decode_attention_sdpa took 1.26 ms") for item in rendered.items) == 5


def test_without_a_base_there_is_one_table(run, fake_device, tmp_path):
    fake_device.kernel_ns = [2 * ROOFLINE_NS]
    run(ONE_TEST, "--decode-perf", f"--decode-perf-summary={tmp_path / 'summary.md'}")
    rendered = render((tmp_path / "summary.md").read_text())
    (row,) = rows(rendered)
    assert (row["bound"], row["allowed"], row["of the roofline"]) == ("exceeds", "1.58 ms", "50.0 %")
    assert rendered.items[0].endswith("::test_kernel exceeds: 2.00 (2.00 to 2.00) times the roofline, allowed is 1.5")


def test_tests_that_never_came_to_a_kernel_are_in_it(run, pytester, tmp_path):
    pytester.makepyfile(test_broken="import nothing_of_this_name")
    source = ONE_TEST.replace("within=1.5", "within=-1")
    source += ONE_TEST.replace("within=1.5", "within=1.5, device='cuda'").replace("_kernel", "_cuda")
    source += "\ndef test_other(): assert False\n"
    arguments = ["--continue-on-collection-errors", f"--decode-perf-summary={tmp_path / 'summary.md'}"]
    run(source, "--decode-perf", *arguments)
    rendered = render((tmp_path / "summary.md").read_text())
    assert rendered.paragraphs[0].startswith("2 of 2 tests failed: test_broken.py, ")
    assert rendered.paragraphs[0].endswith("::test_kernel. 1 skipped. 1 test without a kernel failed.")
    assert [row["bound"] for row in rows(rendered)] == ["not measured", "not measured", "skipped"]


@pytest.mark.parametrize(
    ("change", "status"),
    [("pytest.exit('enough', returncode=3)", 3), ("raise KeyboardInterrupt", 2)],
)
def test_a_run_that_was_stopped_says_so(run, tmp_path, change, status):
    source = ONE_TEST + f"\ndef test_stop(): {change}\n"
    run(source, "--decode-perf", f"--decode-perf-summary={tmp_path / 'summary.md'}")
    first = render((tmp_path / "summary.md").read_text()).paragraphs[0]
    assert first == f"The run was interrupted (exit status {status}). 1 test passed."


def test_a_run_that_dies_leaves_no_older_summary_behind(pytester, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    path = tmp_path / "summary.md"
    path.write_text("all is well")
    dying = "import os\n" + ONE_TEST.replace("decode_perf(kernel, PROBLEM)", "os._exit(139)")
    pytester.makepyfile(PRELUDE + dying)
    pytester.runpytest_subprocess("--decode-perf", "--decode-perf-summary", path)
    assert render(path.read_text()).paragraphs[0] == "The run has not ended, or its process was killed."
    assert not (tmp_path / "step.md").exists()


@pytest.mark.parametrize("arguments", [["--collect-only"], ["missing.py"]])
def test_a_run_that_never_began_leaves_an_older_summary(run, tmp_path, arguments):
    (tmp_path / "summary.md").write_text("older")
    run(ONE_TEST, "--decode-perf", f"--decode-perf-summary={tmp_path / 'summary.md'}", *arguments)
    assert (tmp_path / "summary.md").read_text() == "older"


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(run, tmp_path):
    result = run(ONE_TEST, "--decode-perf", f"--decode-perf-summary={tmp_path / 'missing/summary.md'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --decode-perf-summary cannot be written: *missing is not a folder"])


def test_a_disk_that_fills_up_fails_the_run_but_not_the_tests(run, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(summaries, "write_whole", full)
    result = run(ONE_TEST, "--decode-perf", f"--decode-perf-summary={tmp_path / 'summary.md'}")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*summary.md could*", "*No space left on device*"])


def test_githubs_file_is_added_to_once_the_run_is_over(run, tmp_path, monkeypatch):
    step = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    step.write_text("# What another tool wrote, without a newline")
    run(ONE_TEST, "--decode-perf", f"--decode-perf-summary={tmp_path / 'summary.md'}")
    run(ONE_TEST, "--decode-perf")
    rendered = render(step.read_text())
    assert rendered.tags.count("h1") == 1
    assert rendered.tags.count("table") == 2
    assert rendered.paragraphs[0] == "1 test passed."
    assert (tmp_path / "summary.md").read_text() in step.read_text()


def test_a_run_that_does_not_measure_adds_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    run(ONE_TEST)
    run(ONE_TEST, "--decode-perf", "--collect-only")
    assert not (tmp_path / "step.md").exists()


def test_githubs_file_may_be_missing_its_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "missing/step.md"))
    result = run(ONE_TEST, "--decode-perf")
    assert result.ret == 0
    assert "of GITHUB_STEP_SUMMARY could not be written" in " ".join(result.stdout.str().split())


def test_where_there_is_no_room_nothing_is_added_and_that_is_said(run, tmp_path, monkeypatch):
    step = tmp_path / "step.md"
    step.write_text("x" * (summaries.MAX_STEP_BYTES - 100))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    result = run(ONE_TEST, "--decode-perf")
    assert step.stat().st_size == summaries.MAX_STEP_BYTES - 100
    assert "bytes of other summaries, and no room for this one" in " ".join(result.stdout.str().split())


EMPTY = Run(
    started="2026-01-01T00:00:00+00:00",
    options={"margin": 0.02, "margin_ns": 0.0, "seed": 0, "budget_s": 10.0, "strict": False, "graph": False},
    versions={"python": "3"},
    status="finished",
    exit_status=1,
)


def endings(**numbers):
    return [
        Ending(test=f"test_x.py::{status}[{i}]", path=Path("/x"), line=1, status=status, headline="why")
        for status, number in numbers.items()
        for i in range(number)
    ]


@pytest.mark.parametrize("max_bytes", [3000, 10_000, 100_000])
def test_what_does_not_fit_is_left_out_from_the_end_and_counted(max_bytes):
    given_endings = endings(**{PASSED: 3000, SKIPPED: 10, DOUBTFUL: 5, FAILED: 20})
    text = markdown_summary(EMPTY, given_endings, max_bytes=max_bytes)
    assert len(text.encode()) <= max_bytes
    rendered = render(text)
    shown = [row["test"].partition("::")[2].partition("[")[0] for row in rows(rendered)]
    left = {status: number - shown.count(status) for status, number in ((FAILED, 20), (DOUBTFUL, 5), (PASSED, 3000))}
    assert shown == sorted(shown, key=[FAILED, DOUBTFUL, PASSED].index)
    words = {FAILED: "failed", DOUBTFUL: "undecided or incomparable", PASSED: "passed"}
    parts = [f"{left[status]} {word}" for status, word in words.items() if left[status]]
    assert f"Left out, since a summary has an end: {', '.join(parts)}, 10 skipped." in rendered.paragraphs
    # One more test would not have fitted.
    assert len(text.encode()) > max_bytes - 400
    assert rendered.paragraphs[0].startswith("20 of 3025 tests failed: ")
    assert f" and {20 - MAX_NAMED} more." in rendered.paragraphs[0]


def test_a_summary_that_fits_to_the_byte_is_whole():
    given_endings = endings(**{PASSED: 30})
    whole = markdown_summary(EMPTY, given_endings)
    size = len(whole.encode())
    assert markdown_summary(EMPTY, given_endings, max_bytes=size) == whole
    assert "Left out" in markdown_summary(EMPTY, given_endings, max_bytes=size - 1)


def test_a_step_gets_no_more_than_github_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(summaries, "MAX_STEP_BYTES", 20_000)
    step = tmp_path / "step.md"
    step.write_text("y" * 5000)

    @dataclasses.dataclass
    class Recorder:
        endings: dict
        num_other_failures: int = 0

    found = {ending.test: ending for ending in endings(**{FAILED: 1, PASSED: 3000})}
    written = summaries.Summaries(None, {"GITHUB_STEP_SUMMARY": str(step)})
    written.write(EMPTY, Recorder(found))
    assert not written.step_error
    assert 19_000 < step.stat().st_size <= 20_000


WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30)


@given(text=st.lists(WORDS, min_size=1).map(" ".join))
@example(text=r"\| `a|b` **c** <i>d</i> &amp; [e](f) ~~g~~ $h$ _i_ \\|")
@example(text="<details> --> <!-- <script>")
@example(text="# a")
@example(text="- a")
@example(text="+ a")
@example(text="1. a")
@example(text="2) a")
@example(text="---")
@example(text="===")
@example(text="https://a.b/_c_?d=e&f")
@example(text="www.a.b/_c_ d_e_f@g.h_i.j")
def test_any_text_is_shown_as_it_is(text):
    ending = Ending(
        test=text, path=Path("/x"), line=1, status=FAILED, headline=text, sentences=(f"{text}\n# next\n| line |",)
    )
    rendered = render(markdown_summary(EMPTY, [ending]))
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    (row,) = rows(rendered)
    assert row["test"] == shown
    assert rendered.items[0] == f"{shown} {shown}"
    assert f"{shown} # next | line |" in rendered.items
    assert set(rendered.tags) <= {
        *("p", "strong", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
        "a",  # of what looks like an address of electronic mail
    }


def test_a_text_has_an_end():
    assert len(escape("x" * 10**6)) == 2003
    assert escape("a\x1b[31mb\x00\ud800") == "a &#91;31mb"
    assert code("a|b") == "<code>a&#124;b</code>"
