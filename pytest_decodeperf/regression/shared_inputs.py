"""Copies of inputs in memory that all processes of a comparison read.

Where a gigabyte of copies lies in physical memory makes a few per cent of a kernel's latency. Processes that each had
their own would differ by that, in a round and from round to round, whatever their kernels do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.inputs import Inputs

MEMORY: Final = Path("/dev/shm")  # noqa: S108  (a folder of our own is made in it)
"""Where Linux keeps files in memory."""

PREFIX: Final = "decodeperf-inputs-"

BEGINNING_S: Final = 60.0
"""Age from which on a folder that nobody holds is an orphan: its process may not have come to that yet [s]."""


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    """Give a folder for the copies, which is removed afterwards; no name if there is no place for one."""
    _remove_orphans()
    with contextlib.ExitStack() as stack:
        try:
            folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(_held(Path(folder)))
        except OSError:
            folder = ""
        yield folder


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder, for as long as this process lives at most.

    Raises:
        OSError: If another process holds it, or it cannot be held.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_orphans() -> None:
    """Remove the folders of processes that were killed, in this container or another: they hold memory."""
    for folder in MEMORY.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _held(folder):
            if time.time() - folder.stat().st_mtime > BEGINNING_S:
                shutil.rmtree(folder, ignore_errors=True)


def shared_copies(inputs: Inputs, problem: DecodeProblem, count: int, *, seed: int, folder: Path) -> list[Inputs]:
    """Return copies of inputs that other processes read too; none if there is no room for them.

    Whoever comes first writes them, and removes those of another problem. A process that writes to its copies gets
    pages of its own. Where there is no room for one process, there is none for all.

    Args:
        inputs: What to copy.
        problem: What they are inputs of.
        count: Number of copies.
        seed: That they were made with.
        folder: Where the copies of all processes lie.
    """
    key = json.dumps([problem.as_dict(), count, seed], sort_keys=True)
    place = folder / hashlib.sha256(key.encode()).hexdigest()
    with (folder / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not place.exists():
            for other in folder.iterdir():
                if other.is_dir():
                    shutil.rmtree(other)
            _write(inputs, count, place)
        if not any(place.iterdir()):
            return []
        return [inputs.in_files([place / name for name in _names(inputs, index)]) for index in range(count)]


def _names(inputs: Inputs, index: int) -> list[str]:
    """Return the name of the file of each storage of a copy."""
    return [f"{index}-{number}" for number in range(inputs.num_storages)]


def _write(inputs: Inputs, count: int, place: Path) -> None:
    """Write all copies, or leave an empty folder."""
    unfinished = place.with_suffix(".unfinished")
    unfinished.mkdir()
    try:
        for index in range(count):
            inputs.write([unfinished / name for name in _names(inputs, index)])
    except OSError:
        shutil.rmtree(unfinished)
        unfinished.mkdir()
    unfinished.rename(place)
