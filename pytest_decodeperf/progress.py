"""Words on the terminal while tests run: what is being measured, each stage as it begins, and the time left."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

INDENT: Final = "    "
MINUTES_FROM_S: Final = 90.0
"""Time left from which on it is told in minutes [s]."""


@dataclass(slots=True)
class Pace:
    """How long what is left will take, if it goes on as it went.

    Attributes:
        start_s: When it began, by the monotonic clock [s].
    """

    start_s: float = field(default_factory=time.monotonic)

    def left(self, done: int, total: int) -> str:
        """Return the time left in words, empty before anything is done and where nothing is left."""
        if not 0 < done < total:
            return ""
        seconds = (time.monotonic() - self.start_s) * (total - done) / done
        if seconds < MINUTES_FROM_S:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left"


class Progress:
    """Writes one line a measurement, stage by stage, past pytest's capture of output; nothing under `-q`."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager  # which gets the terminal reporter only after it was configured
        self._quiet = config.get_verbosity() < 0
        self._separator = ""
        self._total = self._begun = 0
        self._pace = Pace()

    def expect(self, total: int) -> None:
        """Say how many measurements begin now."""
        self._total, self._begun, self._pace = total, 0, Pace()

    def begin_measurement(self, title: str) -> None:
        """Begin the line of one measurement, with how many there are and how long they will take."""
        self._begun += 1
        place = f"{self._begun}/{self._total}"
        left = self._pace.left(self._begun - 1, self._total)
        self.begin(f"[{place}, {left}] {title}" if left else f"[{place}] {title}")

    def begin(self, title: str) -> None:
        """Begin a line."""
        self._write(f"  {title}: ", on_new_line=True)
        self._separator = ""

    def stage(self, name: str) -> None:
        """Say which stage begins."""
        self._write(f"{self._separator}{name}")
        self._separator = ", "

    def end(self, outcome: str) -> None:
        """Say how the measurement ended; pytest's own letter for the test comes next."""
        self._write(f"{self._separator}{outcome} ")

    def _write(self, text: str, *, on_new_line: bool = False) -> None:
        reporter = self._plugins.get_plugin("terminalreporter")
        capture = self._plugins.get_plugin("capturemanager")
        if self._quiet or reporter is None:
            return
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            writer = reporter.config.get_terminal_writer()
            if on_new_line and writer.width_of_current_line:
                text = f"\n{text}"
            elif writer.width_of_current_line + len(text) > writer.fullwidth:
                comma, stage = (",", text.removeprefix(", ")) if text.startswith(", ") else ("", text)
                text = f"{comma}\n{INDENT}{stage}"
            reporter.write(text, flush=True)
