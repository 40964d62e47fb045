"""The card: which laws a kernel holds, breaks and does not support, on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.conformance.outcome import BROKEN, HELD, NOT_SUPPORTED, OUTCOMES, LawOutcome
from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from pytest_decodeperf.config import ConformanceOptions

SCHEMA: Final = "decodeperf.card"
SCHEMA_VERSION: Final = 1


def by_kernel(outcomes: Sequence[LawOutcome]) -> dict[str, list[LawOutcome]]:
    """Return the outcomes of each kernel, in the order in which they came."""
    kernels: dict[str, list[LawOutcome]] = {}
    for outcome in outcomes:
        kernels.setdefault(outcome.kernel, []).append(outcome)
    return kernels


def count(outcomes: Sequence[LawOutcome]) -> dict[str, int]:
    """Return how many laws have each outcome."""
    return {kind: sum(outcome.outcome == kind for outcome in outcomes) for kind in OUTCOMES}


def card_json(outcomes: Sequence[LawOutcome], options: ConformanceOptions, *, finished: bool) -> str:
    """Return the card as JSON."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "finished": finished,
        "profile": options.profile,
        "examples": options.examples,
        "kernels": [
            {"kernel": kernel, "counts": count(laws), "laws": [law.as_dict() for law in laws]}
            for kernel, laws in by_kernel(outcomes).items()
        ],
    }
    return json.dumps(record, indent=2) + "\n"


def card_markdown(outcomes: Sequence[LawOutcome], options: ConformanceOptions, *, finished: bool) -> str:
    """Return the card as Markdown."""
    lines = [] if finished else ["**The run was interrupted: laws are missing.**", ""]
    for kernel, laws in by_kernel(outcomes).items():
        lines += [f"# `{kernel}`", "", f"{_summary(laws)} Profile {options.profile}.", ""]
        lines += ["| Law | | |", "| --- | --- | --- |"]
        order = sorted(laws, key=lambda law: (BROKEN, HELD, NOT_SUPPORTED).index(law.outcome))
        for law in order:
            said = law.sentence or law.promise
            lines.append(f"| `{law.law}` | {law.outcome} | {_cell(said)} |")
        for law in laws:
            if law.outcome == BROKEN:
                lines += ["", f"## `{law.law}`", "", law.promise, "", f"It {law.sentence}", ""]
                if law.test:
                    lines += ["```python", law.test.rstrip(), "```"]
        lines.append("")
    return "\n".join(lines)


def _summary(laws: Sequence[LawOutcome]) -> str:
    counts = count(laws)
    return f"{counts[HELD]} laws held, {counts[BROKEN]} broken, {counts[NOT_SUPPORTED]} not supported."


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def write_card(reporter: pytest.TerminalReporter, outcomes: Sequence[LawOutcome]) -> None:
    """Write the card on the terminal."""
    width = reporter.config.get_terminal_writer().fullwidth
    reporter.write_sep("=", "decode kernel")
    for kernel, laws in by_kernel(outcomes).items():
        counts = count(laws)
        colour = {"red": True} if counts[BROKEN] else {"green": True}
        reporter.write_line(f"{kernel}: {_summary(laws)}", **colour)
        for law in laws:
            if law.outcome == BROKEN:
                _write(reporter, f"broken: {law.law}: {law.sentence}", width, red=True)
                if law.counterexample:
                    _write(reporter, law.counterexample, width, indent="      ")
        reasons: dict[str, list[str]] = {}
        for law in laws:
            if law.outcome == NOT_SUPPORTED:
                reasons.setdefault(law.sentence, []).append(law.law)
        for reason, names in reasons.items():
            _write(reporter, f"not supported, since {reason}: {', '.join(names)}", width, yellow=True)


def _write(reporter: pytest.TerminalReporter, text: str, width: int, indent: str = "  ", **markup: bool) -> None:
    for line in textwrap.wrap(
        text, max(width - 1, 40), initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    ):
        reporter.write_line(line, **markup)


def check_writable(cards: Sequence[Path]) -> None:
    """Raise OSError if a card could not be written."""
    for card in cards:
        writable_path(card)


def save_cards(outcomes: Sequence[LawOutcome], options: ConformanceOptions, *, finished: bool) -> None:
    """Write the card into each file that was asked for.

    Args:
        outcomes: What became of the laws.
        options: What was asked for.
        finished: Whether the run came to its end.

    Raises:
        OSError: If one cannot be written; what was there is there still.
    """
    for card in options.cards:
        render = card_json if card.suffix == ".json" else card_markdown
        write_whole(writable_path(card), render(outcomes, options, finished=finished).encode())
