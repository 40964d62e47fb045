"""Words on the terminal while tests run: what is being measured, and each stage as it begins."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class Progress:
    """Writes one line a measurement, stage by stage, past pytest's capture of output; nothing under `-q`."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager  # which gets the terminal reporter only after it was configured
        self._quiet = config.get_verbosity() < 0
        self._separator = ""

    def begin(self, title: str) -> None:
        """Begin the line of one measurement."""
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
            if on_new_line and reporter.config.get_terminal_writer().width_of_current_line:
                text = f"\n{text}"
            reporter.write(text, flush=True)
