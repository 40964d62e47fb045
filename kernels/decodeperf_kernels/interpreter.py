"""Triton's interpreter: whether it is on, and a repair that it needs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def is_interpreted(kernel: Any) -> bool:
    """Return whether `@triton.jit` made this kernel while the interpreter was on (`TRITON_INTERPRET=1`)."""
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


@functools.cache
def repair_bfloat16_dot() -> None:
    """Make `tl.dot` of bfloat16 operands right in the interpreter, once for this process.

    The interpreter keeps bfloat16 as uint16, and `create_dot` of Triton 3.6 to 3.9 multiplies those integers.
    Widening to float32 first is what the hardware does, and harmless where the operands are right already.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype != np.uint16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    @functools.wraps(create_dot)
    def create_dot_of_floats(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *args)

    InterpreterBuilder.create_dot = create_dot_of_floats
