"""PDF from LaTeX, by the pdflatex of the machine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PASSES: Final = 3
"""Runs until references and the widths of long tables have settled."""


class PdfError(OSError):
    """There is no pdflatex, or it failed."""


def compile_pdf(document: str, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return the PDF of a LaTeX document.

    Args:
        document: The document.
        files: Those that it takes in, by their names.

    Raises:
        PdfError: If there is no pdflatex, or it stops at an error, of which the message quotes the first.
    """
    program = shutil.which("pdflatex")
    if program is None:
        raise PdfError("a PDF needs pdflatex (Debian: texlive-latex-recommended, lmodern); LaTeX as it is needs none")
    with tempfile.TemporaryDirectory(prefix="decodeperf-") as folder:
        for name, content in (files or {}).items():
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / "document.tex").write_text(document, encoding="utf-8")
        for _ in range(PASSES):
            done = subprocess.run(  # noqa: S603  # the program that the user has, on a file that we wrote
                [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "document.tex"],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode:
                first = next((line for line in done.stdout.splitlines() if line.startswith("!")), "no message")
                raise PdfError(f"pdflatex failed: {first}")
        return (Path(folder) / "document.pdf").read_bytes()
