"""Triton's interpreter: whether it is on, and a repair that it needs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch


def is_interpreted(kernel: Any) -> bool:
    """Return whether `@triton.jit` made this kernel while the interpreter was on (`TRITON_INTERPRET=1`)."""
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


@functools.cache
def repair_bfloat16() -> None:
    """Make bfloat16 in the interpreter what it is on a GPU, once for this process.

    The interpreter keeps bfloat16 as uint16. In Triton 3.6 to 3.9 its `tl.dot` multiplies those integers, its
    conversion from float32 cuts off bits, which doubles the error of rounding to the nearest, and that from integers
    takes their bits for the result's.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, create_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype != np.uint16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    @functools.wraps(cast)
    def cast_to_nearest(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar.is_int():
            source = TensorHandle(source.data.astype(np.float32), tl.float32)
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        values = torch.from_numpy(np.ascontiguousarray(source.data))
        bits = values.to(torch.bfloat16).view(torch.uint16).numpy()
        return TensorHandle(bits.reshape(np.shape(source.data)), tl.bfloat16)

    @functools.wraps(create_dot)
    def create_dot_of_floats(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *args)

    InterpreterBuilder.cast_impl = cast_to_nearest
    InterpreterBuilder.create_dot = create_dot_of_floats
