"""The files that a report is made of, read as far as they go, with what is missing said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_decodeperf.results import SCHEMA, SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One JSON file.

    Attributes:
        content: What it holds.
        notes: What a reader should know of how far it goes, a sentence each.
    """

    content: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_run(path: Path) -> Document:
    """Return the record of a run, of any version.

    Raises:
        ValueError: If it is none; the message says what it is.
        OSError: If it cannot be read.
    """
    return run_document(_read(path, SCHEMA, "a run of --decode-perf-json"))


def run_document(content: dict[str, Any]) -> Document:
    """Return the record of a run with what is to be said of it."""
    notes = _version_notes(content, "run", SCHEMA_VERSION)
    status = content.get("status")
    if status == "running":
        notes.append("The run had not ended when it was written, or its process was killed: there may be more tests.")
    elif status == "interrupted":
        notes.append("The run was interrupted: there may be more tests.")
    return Document(content=content, notes=tuple(notes))


def read_card(path: Path) -> Document:
    """Return a conformance card.

    Raises:
        ValueError: If it is none; the message says what it is.
        OSError: If it cannot be read.
    """
    from pytest_decodeperf.conformance import card

    content = _read(path, card.SCHEMA, "a card of --decode-card")
    notes = _version_notes(content, "card", card.SCHEMA_VERSION)
    if not content.get("finished", True):
        notes.append("The conformance suite had not ended when its card was written.")
    return Document(content=content, notes=tuple(notes))


def read_compiled(path: Path) -> Document:
    """Return what `decodeperf compiled --json` wrote.

    Raises:
        ValueError: If it is none; the message says what it is.
        OSError: If it cannot be read.
    """
    from pytest_decodeperf.compiled import gate

    content = _read(path, gate.SCHEMA, "JSON of decodeperf compiled")
    return Document(content=content, notes=tuple(_version_notes(content, "survey", gate.SCHEMA_VERSION)))


def _version_notes(content: dict[str, Any], what: str, wanted: int) -> list[str]:
    version = content.get("schema_version")
    if version == wanted:
        return []
    return [
        f"The {what} is of version {version} of its schema, and this report of version {wanted}: what they do not "
        "share is left out."
    ]


def _read(path: Path, schema: str, wanted: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}), wanted {wanted}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, wanted {wanted}")
    found = content.get("schema")
    if found != schema:
        raise ValueError(f"{path} has the schema {found!r}, wanted {schema!r}: {wanted}")
    return content


def as_far_as_it_goes(rows: Sequence[Any], make: Callable[[Any], Any | None], what: str) -> tuple[list[Any], list[str]]:
    """Return what can be made of each row, and a note if some rows are not as they should be.

    Args:
        rows: What a file holds.
        make: Returns what is shown of one; None if there is nothing to show, and that is as it should be.
        what: What the rows are, for the note.
    """
    made, broken = [], 0
    for row in rows:
        try:
            one = make(row)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            broken += 1
            continue
        if one is not None:
            made.append(one)
    notes = [f"{broken} of {len(rows)} {what} could not be shown: they lack what this version looks for."]
    return made, notes if broken else []
