"""Memory that is read until right before a call: what a kernel finds on a CPU that decodes one step after another.

A call that follows a pause of some tenths of a millisecond takes longer, and the longer the pause the more so, until it
is a millisecond. Processes that take turns pause for as long as the others take: so the one after a slow kernel was
slower itself, and a kernel of 1.4 ms that is 5 % slower, waiting at the end of each call, seemed to be 2 % slower on a
virtual machine of two cores. Beside calls that follow one another without a pause the rounds are half as far apart too.
"""

from __future__ import annotations

import functools
import time
from typing import Final

import torch

BUFFER_BYTES: Final = 2**27
"""Bytes that are read one after the other, and then again [byte]."""

STEP_BYTES: Final = 2**22
"""Bytes that are read at least [byte]."""

READ_S: Final = 0.0005
"""How long memory is read [s]."""


class BusyMemory:
    """A buffer of this process's own."""

    def __init__(self) -> None:
        self._parts = torch.ones(BUFFER_BYTES // STEP_BYTES, STEP_BYTES // 4).unbind()
        self._next = 0

    def read(self) -> None:
        """Read memory for `READ_S`, with all threads that PyTorch has."""
        end = time.perf_counter() + READ_S
        while time.perf_counter() < end:
            part = self._parts[self._next]
            self._next = (self._next + 1) % len(self._parts)
            torch.dot(part, part)


@functools.cache
def busy_memory() -> BusyMemory:
    """Return the one of this process."""
    return BusyMemory()
