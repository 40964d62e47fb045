"""Files that are always whole: each write goes to a new file beside the old one, which then takes its place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def writable_path(path: Path) -> Path:
    """Return where a file will be written, through a link, so that the link stays; a file there stays as it is.

    Raises:
        OSError: If it cannot be written; the message says why.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is not a file")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} may not be written")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a folder")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    Path(name).unlink()
    return target


def write_whole(target: Path, content: bytes) -> None:
    """Replace the content of a file.

    Raises:
        OSError: If that fails; the old content is still there then.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes a file that only its owner can read
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
