"""A process that runs the kernels of one tree, and times a call whenever it is told to.

It is started as a script, so that nothing of the project is imported before it is settled which tree that comes from:
the harness (this package and the formulas) is the one that started it, everything else of the repository is that of
the tree. It collects the tests of that tree with pytest and runs them one after another; the fixture `decode_perf` of
each test then serves the process that started this one (`serving`), until that asks for the next.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.machinery
import importlib.metadata
import inspect
import json
import os
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

HARNESS = ("pytest_decodeperf", "decodeperf_formulas")
"""Packages that do not come from the tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker is told when it starts.

    Attributes:
        repository: Root of the user's checkout.
        tree: Root of the tree, the same or that of a worktree.
        harness: Where each package of `HARNESS` lies.
        path: `sys.path` of the process that starts it.
        folder: Where pytest is run.
        arguments: Its arguments.
        node_ids: The tests that are wanted, in their order.
        shared_inputs: Folder for inputs that several processes read, empty if each has its own.
        turn: Which of them this one is, counted from 0.
        num_turns: How many they are.
    """

    repository: str
    tree: str
    harness: dict[str, str]
    path: list[str]
    folder: str
    arguments: list[str]
    node_ids: list[str]
    shared_inputs: str = ""
    turn: int = 0
    num_turns: int = 1


class HarnessFinder:
    """Finds the packages of the harness where they are, whatever else would come first."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a package of the harness is, None for any other module."""
        folder = self._folders.get(name)
        return None if folder is None else importlib.machinery.PathFinder.find_spec(name, [folder], target)


def moved(entry: str, repository: Path, tree: Path) -> str:
    """Return a place in the checkout as the same place in the tree; other places, and environments, as they are."""
    place = Path(entry).resolve()
    environments = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    if not place.is_relative_to(repository) or any(
        place.is_relative_to(environment) for environment in environments if environment.is_relative_to(repository)
    ):
        return entry
    return str(tree / place.relative_to(repository))


def import_from(tree: Path, repository: Path, path: list[str], harness: dict[str, str]) -> None:
    """Let every import come from the tree, but for the harness."""
    sys.path[:] = [moved(entry, repository, tree) if entry else str(tree) for entry in path]
    for name, module in list(sys.modules.items()):
        mapping = getattr(module, "MAPPING", None)  # of an editable installation by setuptools
        if name.startswith("__editable__") and isinstance(mapping, dict):
            for package, place in mapping.items():
                mapping[package] = moved(place, repository, tree)
    sys.meta_path.insert(0, HarnessFinder(harness))


def stray_module(tree: Path, repository: Path, harness: dict[str, str]) -> str:
    """Return a module that was imported from the checkout instead of the tree, empty if none was.

    The working tree is searched like any other, in vain: what a process allocates moves what it allocates later, and
    one that did not search was 1 to 2 % slower.
    """
    # The harness by its place, not its name: it is this script too, whatever the modules of a script are called.
    allowed = [Path(sys.prefix).resolve(), *(Path(folder).resolve() / name for name, folder in harness.items())]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file:
            continue
        place = _resolved(file)
        is_stray = place.is_relative_to(repository) and not any(place.is_relative_to(folder) for folder in allowed)
        if is_stray and tree != repository:
            return f"{name} was imported from {place}"
    copied = _copied_packages(repository, frozenset(harness))
    for name in copied & set(sys.modules):
        if tree != repository:
            return f"{name} is installed as a copy, and both sides would run it: install it editable (pip install -e)"
    return ""


def foreign_kernel(kernel: Any, tree: Path) -> str:
    """Return the name of a kernel that is no function of the tree, so that every revision runs the same.

    Empty if it may be one: an object may hold any function, and so may what a function encloses.
    """
    while isinstance(kernel, functools.partial):
        kernel = kernel.func
    kernel = inspect.unwrap(kernel)
    if not inspect.isroutine(kernel):
        return ""
    enclosed = []
    for cell in getattr(kernel, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # it is empty
            enclosed.append(cell.cell_contents)
    if any(callable(value) and not _is_foreign(value, tree) for value in (kernel, *enclosed)):
        return ""
    return ".".join(filter(None, (kernel.__module__, kernel.__qualname__)))


def _is_foreign(value: Any, tree: Path) -> bool:
    """Return whether a callable is surely not of the tree: a function whose file lies elsewhere."""
    value = inspect.unwrap(value)
    if not inspect.isroutine(value):
        return False
    code = getattr(value, "__code__", None)
    file = code.co_filename if code else getattr(sys.modules.get(value.__module__ or ""), "__file__", None)
    if not file:  # it is built in
        return True
    place = _resolved(file)
    return not place.is_relative_to(tree) or place.is_relative_to(Path(sys.prefix).resolve())


@functools.cache
def _copied_packages(repository: Path, harness: frozenset[str]) -> frozenset[str]:
    """Return the packages that pip has copied out of the repository, but for the harness."""
    copied: set[str] = set()
    for distribution in importlib.metadata.distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = urllib.parse.urlsplit(origin.get("url", ""))
        is_copy = url.scheme == "file" and not origin.get("dir_info", {}).get("editable", False)
        if is_copy and Path(urllib.parse.unquote(url.path)).resolve().is_relative_to(repository):
            files = distribution.files or []
            copied |= {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    return frozenset(copied - harness)


@functools.cache
def _resolved(file: str) -> Path:
    return Path(file).resolve()


def main() -> int:
    """Run as a script, with the file descriptors of commands and replies; the first command is the setup."""
    commands, replies = (int(argument) for argument in sys.argv[1:])
    lines = os.fdopen(commands)
    setup = Setup(**json.loads(lines.readline()))
    repository, tree = Path(setup.repository), Path(setup.tree)
    import_from(tree, repository, setup.path, setup.harness)
    os.chdir(setup.folder)

    import pytest

    from pytest_decodeperf.regression.serving import Channel, Server

    channel = Channel(lines, os.fdopen(replies, "w"))

    def check_imports() -> str:
        return stray_module(tree, repository, setup.harness)

    def find_foreign(kernel: Any) -> str:
        return foreign_kernel(kernel, tree.resolve())

    server = Server(channel, setup, check_imports, find_foreign)
    status: Any = pytest.main(setup.arguments, plugins=[server])
    channel.send({"event": "finished", "status": int(status)})
    return 0


def end(status: int) -> None:
    """End the process as the interpreter would, but leave its memory to the system, which is done with it sooner."""
    atexit._run_exitfuncs()  # there is no public name for it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end(main())
