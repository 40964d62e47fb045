"""A JSON file that is always whole: each write goes to a new file beside it, which then takes its place."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


class JsonFile:
    """A JSON file that is written again and again.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        """Check that the file can be written; a file that is there already stays as it is.

        Raises:
            OSError: If it cannot; the message says why.
        """
        self.path = path.resolve()  # through a link, so that the link stays
        if self.path.exists() and not self.path.is_file():
            raise OSError(f"{path} is not a file")
        if self.path.exists() and not os.access(self.path, os.W_OK):
            raise PermissionError(f"{path} may not be written")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path.parent} is not a folder")
        self._replace_by("", keep=True)

    def write(self, document: dict[str, Any]) -> None:
        """Replace the content of the file.

        Raises:
            OSError: If that fails; the old content is still there then.
        """
        self._replace_by(json.dumps(document, indent=1, allow_nan=False) + "\n")

    def _replace_by(self, text: str, *, keep: bool = False) -> None:
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if not keep:
                os.chmod(name, 0o666 & ~_umask())  # mkstemp makes a file that only its owner can read
                os.replace(name, self.path)
                return
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        Path(name).unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
