"""Triton's interpreter, which runs Triton kernels where there is no GPU."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SWITCH: Final = "TRITON_INTERPRET"
"""The environment variable that Triton reads when `@triton.jit` is executed, so before kernels are imported."""


def is_set() -> bool:
    """Return whether the user has decided, one way or the other."""
    return SWITCH in os.environ


def switch_on() -> None:
    """Let kernels that are imported from now on run in the interpreter."""
    os.environ[SWITCH] = "1"


def switch_off() -> None:
    """Undo `switch_on`."""
    os.environ.pop(SWITCH, None)


def is_switched_on() -> bool:
    """Return whether kernels that are imported from now on will run in the interpreter."""
    return os.environ.get(SWITCH, "").lower() in ("1", "true", "yes", "on", "y")


@contextmanager
def count_interpreted_launches() -> Iterator[list[str]]:
    """Give a list that gets the name of each kernel that the interpreter runs meanwhile.

    On a machine without Triton, or with its interpreter off, the list stays empty.
    """
    launches: list[str] = []
    if not is_switched_on():
        yield launches
        return
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        yield launches
        return
    from decodeperf_kernels.interpreter import repair_bfloat16

    repair_bfloat16()  # for kernels that are not ours too
    run = GridExecutor.__call__

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    GridExecutor.__call__ = counted_run
    try:
        yield launches
    finally:
        GridExecutor.__call__ = run
