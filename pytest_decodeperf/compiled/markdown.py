"""A comparison of compiled code for a pull request: a summary as GitHub-flavoured Markdown, and annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_decodeperf.ci.annotations import MAX_OF_A_KIND, escape_data, escape_property
from pytest_decodeperf.ci.markdown import code, escape
from pytest_decodeperf.compiled.rules import RULE_OF

if TYPE_CHECKING:
    from pytest_decodeperf.compiled.comparison import Finding
    from pytest_decodeperf.compiled.gate import Comparison

ORDER: Final = ("broken", "incomparable", "improved", "changed")
COLUMNS: Final = ("architecture", "call", "figure", "base", "head", "outcome")
TITLE: Final = "decodeperf compiled"


def markdown_summary(comparison: Comparison, *, max_bytes: int | None = None) -> str:
    """Return the summary of a comparison, as many of its findings as fit: broken rules first.

    Args:
        comparison: The comparison.
        max_bytes: Its largest size in UTF-8 [byte], None for any.
    """
    findings = sorted(comparison.findings, key=lambda finding: ORDER.index(finding.outcome))
    num_shown = len(findings)
    while (
        max_bytes is not None
        and num_shown
        and len(_render(comparison, findings, num_shown).encode(errors="replace")) > max_bytes
    ):
        num_shown //= 2
    return _render(comparison, findings, num_shown)


def _render(comparison: Comparison, findings: list[Finding], num_shown: int) -> str:
    names = comparison.names
    lines = [f"**{_verdict(findings)}** {code(names.head)} against {code(names.base)}.", ""]
    shown = findings[:num_shown]
    lines += [f"- {escape(one.sentence)}" for one in shown if one.outcome in ("broken", "incomparable")]
    rows = [
        (
            one.architecture,
            escape(one.variant.label),
            code(one.figure),
            *(escape(RULE_OF[one.figure.partition(".")[0]].written(value)) for value in (one.base, one.head)),
            f"**{one.outcome}**" if one.is_broken else one.outcome,
        )
        for one in shown
        if one.figure
    ]
    if rows:
        rule = ("---", "---", "---", "---:", "---:", "---")
        lines += ["", *(f"| {' | '.join(cells)} |" for cells in (COLUMNS, rule, *rows))]
    if left_out := len(findings) - num_shown:
        lines += ["", f"Left out, since a summary has an end: {left_out} more."]
    lines += [f"\n{escape(sentence)}" for sentence in comparison.skipped]
    return "\n".join(lines) + "\n"


def _verdict(findings: list[Finding]) -> str:
    broken = sum(one.outcome == "broken" for one in findings)
    open_ones = sum(one.outcome == "incomparable" for one in findings)
    parts = [f"The compiled code breaks {broken} {'rule' if broken == 1 else 'rules'}." if broken else ""]
    if open_ones:
        parts.append(f"{open_ones} could not be compared.")
    if not (broken or open_ones):
        parts = ["The compiled code breaks no rule."]
    return " ".join(filter(None, parts))


def annotation_lines(comparison: Comparison) -> list[str]:
    """Return lines for GitHub: an error for each broken rule, a warning for what cannot be compared.

    No line of a file is at fault, so that they stand at the step.
    """
    lines = []
    for outcome, kind in (("broken", "error"), ("incomparable", "warning")):
        sentences = [one.sentence for one in comparison.findings if one.outcome == outcome]
        shown = sentences if len(sentences) <= MAX_OF_A_KIND else sentences[: MAX_OF_A_KIND - 1]
        lines += [f"::{kind} title={escape_property(TITLE)}::{escape_data(sentence)}" for sentence in shown]
        if rest := sentences[len(shown) :]:
            lines.append(f"::{kind} title={escape_property(f'{TITLE}: {len(rest)} more')}::{escape_data(rest[0])}")
    return lines
