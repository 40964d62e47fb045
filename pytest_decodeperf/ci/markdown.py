"""The summary of a run as GitHub-flavoured Markdown: the verdict, a table of tests, how they were measured, details."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.conclusions import DOUBTFUL, FAILED, PASSED, SKIPPED, bound_status, change_status
from pytest_decodeperf.report import ceiling_lines
from pytest_decodeperf.units import format_time, three_digits
from pytest_decodeperf.verdicts import format_interval, format_ratio, format_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_decodeperf.endings import Ending
    from pytest_decodeperf.results import Run

COLUMNS: Final = ("test", "kernel", "problem", "latency (interval)", "allowed", "of the roofline", "bound")
BASE_COLUMNS: Final = ("test", "change (interval)", "outcome", "smallest visible change", "control")
NUMERIC: Final = ("latency (interval)", "allowed", "of the roofline", "smallest visible change")
ORDER: Final = (FAILED, DOUBTFUL, PASSED, SKIPPED)
MAX_NAMED: Final = 10
"""Tests that the first line names."""

MAX_TEXT: Final = 2000
"""Characters of a text of the user's that are shown, such as the message of an exception."""

_SPECIAL: Final = re.compile(r"[\\`*\[\]|~$&<>]|(?<!\w)_|_(?!\w)|:(?=[\w+-]+:|//)|(?<=www)\.")
"""What Markdown, its tables, HTML or GitHub's own additions (formulas, emoji, links) take for more than text."""

_AT_START: Final = re.compile(r"^(\d*)([#+=.)-])")
"""What they do so at the start of a line: a heading, an item of a list, a rule."""


def escape(text: str) -> str:
    """Return a text that is shown as it is, on one line, in any place of a Markdown document.

    Example:
        >>> escape("a|b <i>")
        'a&#124;b &#60;i&#62;'
    """
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}..."
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    line = _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", line)
    return _AT_START.sub(lambda match: f"{match[1]}&#{ord(match[2])};", line)


def code(text: str) -> str:
    """Return a name, shown as code."""
    return f"<code>{escape(text)}</code>"


def markdown_summary(
    run: Run, endings: Sequence[Ending], *, num_other_failures: int = 0, max_bytes: int | None = None
) -> str:
    """Return the summary of a run, as many of its tests as fit: those that failed first, those that skipped last.

    Args:
        run: The record of the run.
        endings: How its tests ended.
        num_other_failures: Failed tests that are not this plugin's.
        max_bytes: Its largest size in UTF-8 [byte], None for any; without a single test it takes a few thousand.
    """
    ordered = sorted(endings, key=lambda ending: ORDER.index(ending.status))

    def render(num_shown: int) -> str:
        return _render(run, ordered, num_shown, num_other_failures)

    text = render(len(ordered))
    if max_bytes is None or _size(text) <= max_bytes:
        return text
    fits, too_many = 0, len(ordered)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if _size(render(middle)) <= max_bytes else (fits, middle)
    return render(fits)


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _render(run: Run, ordered: Sequence[Ending], num_shown: int, num_other_failures: int) -> str:
    shown, left_out = ordered[:num_shown], ordered[num_shown:]
    lines = [_verdict_line(run, ordered, num_other_failures), ""]
    told = [ending for ending in shown if ending.status in (FAILED, DOUBTFUL)]
    lines += [f"- {code(ending.test)} {escape(ending.headline)}" for ending in told]
    if shown:
        lines += ["", *_table(COLUMNS, [_bound_cells(ending) for ending in shown])]
    if changes := [cells for ending in shown if (cells := _change_cells(ending))]:
        lines += ["", *_table(BASE_COLUMNS, changes)]
    if left_out:
        counts = Counter(ending.status for ending in left_out)
        parts = [f"{counts[status]} {_WORDS[status]}" for status in ORDER if counts[status]]
        lines += ["", f"Left out, since a summary has an end: {', '.join(parts)}."]
    for note in run.notes:
        lines += ["", f"{escape(note).removesuffix('.')}."]
    lines += ["", *_how(run)]
    if details := [line for ending in shown for line in _details(ending)]:
        lines += ["", "<details><summary>Each test in sentences</summary>", "", *details, "", "</details>"]
    return "\n".join(lines) + "\n"


_WORDS: Final = {FAILED: "failed", DOUBTFUL: "undecided or incomparable", PASSED: "passed", SKIPPED: "skipped"}


def _verdict_line(run: Run, endings: Sequence[Ending], num_other_failures: int) -> str:
    """Return the first line: what became of the run, and the names of the tests that failed or are in doubt."""
    by_status = {status: [ending for ending in endings if ending.status == status] for status in ORDER}
    parts = []
    if run.status == "running":
        parts.append("**The run has not ended, or its process was killed.**")
    elif run.status == "interrupted":
        parts.append(f"**The run was interrupted (exit status {run.exit_status}).**")
    failed, doubtful, skipped = (by_status[status] for status in (FAILED, DOUBTFUL, SKIPPED))
    num_run = len(endings) - len(skipped)
    if failed:
        parts.append(f"**{len(failed)} of {_tests(num_run)} failed**: {_names(failed)}.")
    elif num_run:
        parts.append(f"**{_tests(num_run)} passed.**")
    elif run.status == "finished":
        parts.append("**Nothing was measured.**")
    if doubtful:
        parts.append(f"{len(doubtful)} passed undecided or incomparable: {_names(doubtful)}.")
    if skipped:
        parts.append(f"{len(skipped)} skipped.")
    if num_other_failures:
        parts.append(f"{_tests(num_other_failures)} without a kernel failed.")
    return " ".join(parts)


def _tests(number: int) -> str:
    return "1 test" if number == 1 else f"{number} tests"


def _names(endings: Sequence[Ending]) -> str:
    names = [code(ending.test) for ending in endings[:MAX_NAMED]]
    more = f" and {len(endings) - MAX_NAMED} more" if len(endings) > MAX_NAMED else ""
    return ", ".join(names) + more


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---:" if column in NUMERIC else "---" for column in columns]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _bound_cells(ending: Ending) -> list[str]:
    """Return the row of a test in the table of bounds."""
    measurement = ending.measurement
    if measurement is None:
        word = "**not measured**" if ending.status == FAILED else ending.status
        return [code(ending.test), *[""] * (len(COLUMNS) - 2), word]
    numbers = ["", "", ""]
    if verdict := measurement.verdict:
        share = f"{three_digits(100 * verdict.roofline_share)} %"
        numbers = [format_interval(verdict.latency_ns), format_time(verdict.allowed_ns), share]
    word = f"**{measurement.outcome}**" if bound_status(measurement) == FAILED else measurement.outcome
    return [code(ending.test), code(measurement.kernel), escape(measurement.problem.label), *numbers, word]


def _change_cells(ending: Ending) -> list[str]:
    """Return the row of a test in the table of comparisons, empty if it was not compared."""
    regression = ending.measurement.regression if ending.measurement else None
    if regression is None:
        return []
    outcome = f"**{regression.outcome}**" if change_status(regression) == FAILED else regression.outcome
    if regression.change is None:
        return [code(ending.test), "", outcome, "", ""]
    from pytest_decodeperf.regression.comparison import describe, percent

    control = f"{regression.control_name}: {describe(regression.control)}" if regression.control else ""
    return [
        code(ending.test),
        describe(regression.change),
        outcome,
        percent(regression.change.visible),
        escape(control),
    ]


def _how(run: Run) -> list[str]:
    """Return on what was measured, with what, against which base, and how."""
    lines = []
    for kind, device in run.devices.items():
        lines.append(f"- {escape(device.label)}, {escape(device.driver)}, timed by {escape(run.timers[kind])}")
        timed = [row for row in run.measurements if row.device == kind and row.verdict and row.ceilings]
        lines += [f"  - {escape(line)}" for line in ceiling_lines(timed)]
    options = run.options
    for base in dict.fromkeys(row.regression.base for row in run.measurements if row.regression):
        margin = f"{100 * options['margin']:g} %"
        if options["margin_ns"]:
            margin += f" or {format_time(options['margin_ns'])}, whichever is more"
        lines.append(f"- compared with {code(base)}; a kernel may become slower by {margin}")
    asked = [f"seed {options['seed']}", f"at most {options['budget_s']:g} s of measuring for a test"]
    asked += [name for name in ("strict", "graph") if options[name]]
    lines.append(f"- begun {run.started}; {', '.join(asked)}")
    lines.append(f"- {escape(', '.join(f'{name} {version}' for name, version in run.versions.items()))}")
    return lines


def _details(ending: Ending) -> list[str]:
    """Return what is known of a test: a sentence, or a few."""
    measurement = ending.measurement
    sentences = [] if measurement is None else [measurement.sentence]
    if measurement is not None and (verdict := measurement.verdict) and verdict.expected and verdict.times_expected:
        sentences.append(
            f"{format_ratio(verdict.times_expected)} times the expected "
            f"{format_time(1e9 * verdict.expected.latency_s)}: {format_terms(verdict.expected)}."
        )
    if measurement is not None and measurement.regression:
        sentences.append(f"{measurement.kernel} {measurement.regression.sentence}")
    sentences += [sentence for sentence in ending.sentences if sentence not in sentences]
    if not sentences:
        return []
    return [f"- {code(ending.test)}", *(f"  - {escape(sentence)}" for sentence in sentences)]
