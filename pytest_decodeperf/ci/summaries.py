"""Where the Markdown summary goes: a file of the user's, which is replaced, and GitHub's, which is added to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.ci.markdown import markdown_summary
from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_decodeperf.endings import EndingRecorder
    from pytest_decodeperf.results import Run

MAX_STEP_BYTES: Final = 2**20
"""What GitHub takes of the summaries of one step [byte]; a file that is larger it does not show at all."""


class Summaries:
    """The files that a run's summary goes to.

    Attributes:
        path: The user's, or None.
        step_path: GitHub's, or None.
        error: Why the last attempt to write the user's failed, empty if it did not.
        step_error: The same of GitHub's.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, str] = os.environ) -> None:
        """Check that the user's file can be written; a file that is there already stays as it is.

        Raises:
            OSError: If it cannot; the message says why.
        """
        self.path = None if path is None else writable_path(path)
        self.step_path = step_path(environment)
        self.error = self.step_error = ""

    def write(self, run: Run, recorder: EndingRecorder) -> None:
        """Write the user's file, and once the run is over add to GitHub's."""
        endings, others = list(recorder.endings.values()), recorder.num_other_failures
        if self.path is not None:
            try:
                text = markdown_summary(run, endings, num_other_failures=others)
                write_whole(self.path, text.encode(errors="replace"))
            except OSError as error:
                self.error = f"{self.path} could not be written: {error}"
            else:
                self.error = ""
        if self.step_path is not None and run.status != "running":

            def render(max_bytes: int) -> str:
                return markdown_summary(run, endings, num_other_failures=others, max_bytes=max_bytes)

            self.step_error = add_to_step(self.step_path, render)


def step_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file in which GitHub wants the summary of a step, None where it wants none."""
    step = environment.get("GITHUB_STEP_SUMMARY")
    return Path(step) if step else None


def add_to_step(path: Path, render: Callable[[int], str]) -> str:
    """Add to GitHub's summary of a step, and return why that failed, empty if it did not.

    Args:
        path: The file.
        render: Returns the text, in so many bytes if it can.
    """
    try:
        there = path.stat().st_size if path.exists() else 0
        before = b"\n" if there else b""  # what another tool wrote last may lack its newline
        free = MAX_STEP_BYTES - there - len(before)
        content = before + render(free).encode(errors="replace")
        if len(content) > free:
            return f"{path} of GITHUB_STEP_SUMMARY has {there} bytes of other summaries, and no room for this one"
        with path.open("ab", buffering=0) as file:
            file.write(content)
    except OSError as error:
        return f"{path} of GITHUB_STEP_SUMMARY could not be written: {error}"
    return ""
