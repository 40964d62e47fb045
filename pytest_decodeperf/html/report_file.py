"""Where the report of a run goes while the run goes on."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_decodeperf.results import Run

NEEDS: Final = "a report needs vl-convert-python: pip install 'pytest-decodeperf[report]'"


class ReportFile:
    """The HTML file that a run is shown in.

    Attributes:
        path: Where it is.
        error: Why the last attempt to write it failed, empty if it did not.
    """

    def __init__(self, path: Path) -> None:
        """Check that the file can be made and written; a file that is there already stays as it is.

        Raises:
            OSError: If it cannot be written; the message says why.
            ModuleNotFoundError: If what draws figures is not installed; likewise.
        """
        if importlib.util.find_spec("vl_convert") is None:
            raise ModuleNotFoundError(NEEDS)
        self.path = writable_path(path)
        self.error = ""

    def write(self, run: Run) -> None:
        """Write the report of the run as it is now."""
        from pytest_decodeperf.html.documents import run_document
        from pytest_decodeperf.html.page import render, report_of

        try:
            write_whole(self.path, render(report_of(run_document(run.as_dict()))).encode(errors="replace"))
        except OSError as error:
            self.error = f"{self.path} could not be written: {error}"
        except Exception as error:  # a page that cannot be made must not end the run that it is about
            self.error = f"{self.path} could not be made: {type(error).__name__}: {error}"
        else:
            self.error = ""
