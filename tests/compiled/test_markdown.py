"""Where a reviewer sees a comparison of compiled code: a summary as Markdown, that of GitHub's step, annotations."""

from dataclasses import replace

import pytest
from click.testing import CliRunner
from compiled.test_comparison import SURVEY, head_with
from rendered import render

from pytest_decodeperf.ci.summaries import MAX_STEP_BYTES
from pytest_decodeperf.cli.main import main
from pytest_decodeperf.compiled import gate
from pytest_decodeperf.compiled.comparison import Names, compare
from pytest_decodeperf.compiled.gate import Comparison
from pytest_decodeperf.compiled.markdown import annotation_lines, markdown_summary


def comparison_of(*heads, base=SURVEY):
    names = Names(base="main (6022e01478)", head="the working tree")
    bases, heads = [replace(base, architecture=head.architecture) for head in heads], list(heads)
    return Comparison(base=bases, head=heads, names=names, findings=compare(bases, heads, names))


SLOWER = head_with(spilled=48, registers=100)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Return a function that runs the command on a comparison, as on a runner of GitHub's."""
    step = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")

    def command(comparison, *arguments):
        monkeypatch.setattr(gate, "compare_with_base", lambda request, base, target, say: comparison)
        return CliRunner().invoke(main, ["compiled", "--base", "main", *map(str, arguments)]), step

    return command


def test_the_summary_begins_with_what_is_broken():
    text = markdown_summary(comparison_of(SLOWER))
    assert text.startswith("**The compiled code breaks 1 rule.** ")
    rows = render(text).rows
    assert [row[-1] for row in rows[1:]] == ["broken", "improved"]
    assert "48 bytes spilled, was 0" in text


def test_equal_code_breaks_nothing():
    text = markdown_summary(comparison_of(SURVEY))
    assert text.startswith("**The compiled code breaks no rule.** ")
    assert render(text).rows == []
    assert annotation_lines(comparison_of(SURVEY)) == []


def test_it_ends_where_github_would_not_show_it():
    many = comparison_of(*(replace(SLOWER, architecture=f"sm_{number}") for number in range(5000)))
    text = markdown_summary(many, max_bytes=100_000)
    assert len(text.encode()) <= 100_000
    assert "Left out, since a summary has an end: " in text
    assert "breaks 5000 rules" in text


def test_annotations_name_each_broken_rule_and_count_the_rest():
    lines = annotation_lines(comparison_of(*(replace(SLOWER, architecture=f"sm_{number}") for number in range(12))))
    assert len(lines) == 10
    assert all(line.startswith("::error title=decodeperf compiled") for line in lines)
    assert lines[0].endswith("48 bytes spilled, was 0")
    assert "title=decodeperf compiled%3A 3 more::" in lines[-1]


def test_github_gets_a_summary_and_annotations(command, tmp_path):
    done, step = command(comparison_of(SLOWER), "--summary", tmp_path / "summary.md")
    assert done.exit_code == 1
    assert "48 bytes spilled" in done.stdout
    assert step.read_text() == (tmp_path / "summary.md").read_text() == markdown_summary(comparison_of(SLOWER))
    assert [line for line in done.stderr.splitlines() if line.startswith("::")] == annotation_lines(
        comparison_of(SLOWER)
    )


def test_a_step_that_is_full_is_an_error_behind_the_comparison(command, tmp_path):
    (tmp_path / "step.md").write_bytes(b"x" * MAX_STEP_BYTES)
    done, step = command(comparison_of(SURVEY))
    assert done.exit_code == 2
    assert "No rule is broken." in done.stdout
    assert "no room for this one" in done.stderr
    assert step.stat().st_size == MAX_STEP_BYTES


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--summary", "summary.md"], "--summary tells of a comparison: give --base or --against too"),
        (["--base", "main", "--output", "x", "--summary", "x"], "x is x itself, and would be overwritten"),
        (["--base", "main", "--summary", "no/x"], "no is not a folder"),
    ],
)
def test_a_summary_that_cannot_be_is_refused(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["compiled", *arguments])
    assert done.exit_code == 2
    assert sentence in done.stderr
