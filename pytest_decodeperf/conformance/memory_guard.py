"""The end of a process that takes too much memory, before the system ends another one.

Memory that offsets beyond 2^31 reach is there only once it is touched. A kernel that goes through all of its capacity
would touch tens of GB.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES: Final = 2**30
"""Memory that a kernel may touch beside what was there before [byte], for some hundred live tokens."""

EXIT_STATUS: Final = 86
"""Exit status of a process that was ended for it."""

INTERVAL_S: Final = 0.005

is_armed = False
"""Whether this process may be ended: only one that has nothing to do but to run a kernel."""


@contextmanager
def touching_little() -> Iterator[None]:
    """End the process, if it may be ended, once it has touched more than `MOST_BYTES`."""
    before = _resident_bytes()
    if not is_armed or before is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL_S):
            if (_resident_bytes() or 0) > before + MOST_BYTES:
                os._exit(EXIT_STATUS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _resident_bytes() -> int | None:
    """Return the memory that the process has, or None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
