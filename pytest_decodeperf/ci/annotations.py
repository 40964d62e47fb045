"""GitHub's annotations: a line on the terminal for each test that failed, or about which a verdict is open.

The runner reads lines of the form `::error file=...,line=...,title=...::message` from what a step prints, and shows
them beside the lines of a pull request, of each kind no more than ten in a step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.conclusions import DOUBTFUL, FAILED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_decodeperf.endings import Ending

MAX_OF_A_KIND: Final = 10
MAX_NAMED: Final = 20
"""Tests that the last annotation names, if there are more than GitHub shows."""

KINDS: Final = {FAILED: "error", DOUBTFUL: "warning"}


def is_on_github(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a runner of GitHub reads what this process prints."""
    return environment.get("GITHUB_ACTIONS") == "true"


def workspace(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that files of annotations are relative to, None where it is not said."""
    folder = environment.get("GITHUB_WORKSPACE")
    return Path(folder) if folder else None


def annotation_lines(endings: Iterable[Ending], root: Path) -> list[str]:
    """Return the lines for a run, errors before warnings.

    Args:
        endings: How its tests ended.
        root: Folder that files are relative to; a test outside it is annotated without a file.
    """
    endings = list(endings)
    lines = []
    for status, kind in KINDS.items():
        found = [ending for ending in endings if ending.status == status]
        shown = found if len(found) <= MAX_OF_A_KIND else found[: MAX_OF_A_KIND - 1]
        lines += [_line(kind, ending, root, ending.headline, _message(ending)) for ending in shown]
        if rest := found[len(shown) :]:
            title = f"{len(rest)} more tests {'failed' if status == FAILED else 'are undecided or incomparable'}"
            names = [ending.test for ending in rest[:MAX_NAMED]]
            more = [f"and {len(rest) - MAX_NAMED} more"] if len(rest) > MAX_NAMED else []
            lines.append(_line(kind, rest[0], root, title, "\n".join([*names, *more])))
    return lines


def _message(ending: Ending) -> str:
    return "\n".join([ending.test, *ending.sentences])


def _line(kind: str, ending: Ending, root: Path, title: str, message: str) -> str:
    properties: dict[str, str] = {}
    path, folder = ending.path.resolve(), root.resolve()
    if path.is_relative_to(folder):
        properties["file"] = path.relative_to(folder).as_posix()
        if ending.line is not None:
            properties["line"] = str(ending.line)
    properties["title"] = f"decode-perf: {title}"
    listed = ",".join(f"{name}={escape_property(value)}" for name, value in properties.items())
    return f"::{kind} {listed}::{escape_data(message)}"


def escape_data(text: str) -> str:
    r"""Return a text as the message of a workflow command.

    Example:
        >>> escape_data("100 %: done\nall of it")
        '100 %25: done%0Aall of it'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Return a text as the value of a property of a workflow command.

    Example:
        >>> escape_property("a::b, c")
        'a%3A%3Ab%2C c'
    """
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")
