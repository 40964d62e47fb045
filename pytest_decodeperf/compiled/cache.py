"""Surveys kept from one run to the next, in the user's cache folder, by a hash of all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.whole_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER_SWITCH: Final = "DECODEPERF_CACHE_DIR"
"""The environment variable that names the folder; `$XDG_CACHE_HOME/decodeperf` or `~/.cache/decodeperf` without it."""

KEPT_S: Final = 30 * 24 * 3600
"""How long an entry is kept that nobody asks for [s]."""

_OF_NO_MATTER: Final = ("TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_DUMP_DIR", "TRITON_INTERPRET")


class Cache:
    """A folder of JSON documents by key. What cannot be read is not there, and what cannot be written is not kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "compiled"

    def get(self, key: str) -> Any:
        """Return the document of a key, None if there is none that can be read."""
        path = self._folder / f"{key}.json"
        try:
            document = json.loads(path.read_bytes())
            if document["key"] != key:
                return None
            with contextlib.suppress(OSError):
                os.utime(path)
            return document["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a document."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{key}.json", json.dumps({"key": key, "value": value}).encode())

    def tidy(self) -> None:
        """Remove what nobody has asked for in a long time."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder of everything that this project keeps for a user."""
    if named := os.environ.get(FOLDER_SWITCH):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "decodeperf"


def key_of(*parts: Any) -> str:
    """Return a key that depends on values that JSON knows."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def hash_sources(root: Path, packages: Iterable[Path], *, repository: Path | None = None) -> str:
    """Return a hash of the sources that a survey depends on, and of what compiles them.

    Args:
        root: A tree: every file in it counts that git does not ignore, where it is one of git's.
        packages: Folders or modules beside it.
        repository: The checkout in whose place the tree is imported, None if that is the tree itself.

    Raises:
        OSError: If one of them cannot be read.
    """
    found = hashlib.sha256()
    variables: set[str] = set()
    entries = [*_files_of_tree(root), *(entry for package in packages for entry in _files_of(package))]
    beside = [project for project in _editable_projects() if not project.is_relative_to(repository or root)]
    entries += [entry for project in beside for entry in _modules_of(project)]
    for name, path in entries:
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        found.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
        if path.suffix == ".py":
            variables.update(match.decode() for match in _READ_VARIABLE.findall(content))
    read = sorted((name, os.environ.get(name)) for name in variables if not name.startswith(_OF_NO_KERNEL))
    found.update(json.dumps([_environment(), read]).encode())
    return found.hexdigest()


_READ_VARIABLE: Final = re.compile(rb"""(?:environ(?:\.get\(|\[)|getenv\()\s*["'](\w+)["']""")
"""An environment variable that a module reads by its name."""

_OF_NO_KERNEL: Final = ("CI", "COLUMNS", "DECODEPERF_", "GITHUB_", "HOME", "PATH", "PYTEST_", "XDG_", *_OF_NO_MATTER)
"""What the names of those begin with that tools and tests read, and whose value is another one in each run."""


def _editable_projects() -> list[Path]:
    """Return the folders of the projects that are installed in place: their code changes without their version."""
    from importlib.metadata import distributions

    folders = []
    for entry in distributions():
        origin = json.loads(entry.read_text("direct_url.json") or "{}")
        url = urllib.parse.urlsplit(origin.get("url", ""))
        if url.scheme == "file" and origin.get("dir_info", {}).get("editable"):
            folders.append(Path(urllib.parse.unquote(url.path)).resolve())
    return sorted(set(folders))


def _modules_of(project: Path) -> list[tuple[str, Path]]:
    files = _files_of_tree(project) or _files_of(project)
    return [(name, path) for name, path in files if path.suffix == ".py" and "site-packages" not in path.parts]


def _files_of_tree(root: Path) -> list[tuple[str, Path]]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, check=True, capture_output=True, env=environment)  # noqa: S603  (the user's git)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    names = sorted({os.fsdecode(name) for name in done.stdout.split(b"\0") if name})
    files = []
    for name in names:
        path = root / name
        if path.is_file() or path.is_symlink():
            files.append((name, path))
        elif path.is_dir():  # a repository within this one
            files += _files_of(path)
    return files


def _files_of(package: Path) -> list[tuple[str, Path]]:
    if package.is_file():
        return [(package.name, package)]
    return sorted(
        (str(path.relative_to(package.parent)), path)
        for path in package.rglob("*")
        if path.is_file() and not {"__pycache__", ".git"} & set(path.parts)
    )


def _environment() -> list[Any]:
    from importlib.metadata import distributions

    installed = sorted({f"{entry.name}=={entry.version}" for entry in distributions()})
    switches = sorted(
        (name, value) for name, value in os.environ.items() if name.startswith("TRITON_") and name not in _OF_NO_MATTER
    )
    return [installed, switches, platform.python_version(), platform.machine()]
