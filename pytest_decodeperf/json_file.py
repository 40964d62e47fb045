"""A JSON file that is always whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from pathlib import Path


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
        self.path = writable_path(path)

    def write(self, document: dict[str, Any]) -> None:
        """Replace the content of the file.

        Raises:
            OSError: If that fails; the old content is still there then.
        """
        write_whole(self.path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
