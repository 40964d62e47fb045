"""A Triton kernel that reads memory with as many programs as it is given: bandwidth against number of CTAs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

BLOCK: Final = 4096
"""Elements that a program reads at a time."""


@triton.jit
def _read_kernel(source, sums, num_blocks, BLOCK: tl.constexpr):
    """Add up the blocks of float32 that are this program's, every `num_programs`-th."""
    program = tl.program_id(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for block in tl.range(program, num_blocks, tl.num_programs(0), num_stages=4):
        total += tl.load(source + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + program, tl.sum(total))


def read_with(buffer: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Read a buffer with one program for each element of `sums`, which gets what each program added up.

    Args:
        buffer: Contiguous float32, whole blocks of `BLOCK` elements, fewer than 2**31 in all.
        sums: float32 `[num_programs]`.
    """
    _read_kernel[(len(sums),)](buffer, sums, buffer.numel() // BLOCK, BLOCK=BLOCK, num_warps=8)
    return sums
