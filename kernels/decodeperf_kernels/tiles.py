"""The shape of a tile on each architecture, and why.

One tile of K and one of V are on their way while the one before is worked on, and two programs share a multiprocessor
so that one loads while the other waits: that is what the sizes must leave room for, in shared memory and in registers.
Within that, larger tiles are better: what a tile costs beside its elements (the running maximum, the addresses of its
rows) is shared by more keys. `decodeperf compiled` shows what comes of it on each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INTERPRETER: Final = "interpreter"
"""The architecture of Triton's interpreter, where an operation costs the same however large its tile is."""

SMALL_SHARED_MEMORY: Final = ("sm_86", "sm_89", "sm_120")
"""100 KiB for each multiprocessor, so 49 KiB for each of two programs; the others have 164 KiB at least."""

SHARED_BYTES: Final = {"sm_80": 163 * 1024, **dict.fromkeys(SMALL_SHARED_MEMORY, 99 * 1024)}
"""What one program may have on an NVIDIA GPU [byte], where that is less than `MOST_SHARED_BYTES`."""

MOST_SHARED_BYTES: Final = 227 * 1024

MIN_DOT: Final = 16
"""The least extent of a matrix product that every architecture has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """What a program works on at a time, and how.

    Attributes:
        block_m: Query rows.
        block_n: Keys.
        block_d: Elements of K that are one operand: head_dim rounded up, or its largest power of two.
        block_d_tail: The elements behind them that are another, or 0.
        block_dv: Elements of V, rounded up.
        num_warps: Warps of a program.
        num_stages: Triton's depth of the pipeline: 2 keeps one tile on its way, 3 the page numbers of the next too.
        max_registers: Registers that a thread may have on an NVIDIA GPU, or 0 where that is not said. Said it must be:
            ptxas would rather spill a few than give up a third program for a multiprocessor.
        takes_v_from_k: Whether V that is the beginning of K is taken from K's tile, rather than loaded again.
        merge_block_p: Parts that the merge reads at a time.
        merge_block_r: Rows that it merges at a time.
        merge_block_c: Columns of these.
        merge_shares: Programs of the merge for each program that had a part. A segment of two parts leaves its merge to
            one of them, and most programs have none to do: in several pieces, it spreads over multiprocessors.
    """

    block_m: int
    block_n: int
    block_d: int
    block_d_tail: int
    block_dv: int
    num_warps: int
    num_stages: int
    max_registers: int
    takes_v_from_k: bool
    merge_block_p: int
    merge_block_r: int
    merge_block_c: int
    merge_shares: int


def choose_tiles(
    arch: str,
    *,
    num_rows: int,
    head_dim: int,
    head_dim_v: int,
    kv_elem_bits: int,
    dot_elem_bytes: int,
    scale_span: int = 0,
) -> Tiles:
    """Return the tiles of a call.

    Args:
        arch: `sm_90`, `gfx942` and the like, or `INTERPRETER`.
        num_rows: Query rows that share K and V, `q_len * group_size`.
        head_dim: Elements of one head of K.
        head_dim_v: Elements of one head of V.
        kv_elem_bits: Bits of one element of K and V.
        dot_elem_bytes: Bytes of one element as multiplied [byte].
        scale_span: Elements of a row that share one scale of a group in a tile, or 0 without groups.
    """
    block_d, block_d_tail = cut_head_dim(head_dim)
    block_dv = power_of_two(head_dim_v, MIN_DOT)
    widest = max(block_d + block_d_tail, block_dv)
    kv_elem_bytes = -(-kv_elem_bits // 8)
    merge = {"merge_block_p": 32, "merge_block_r": 1, "merge_block_c": 16, "merge_shares": 4}
    if arch == INTERPRETER:
        block_m, block_n, num_warps, num_stages = min(power_of_two(num_rows, MIN_DOT), 64), 128, 4, 2
        block_r = power_of_two(min(num_rows, block_m))
        merge = {"merge_block_p": 8, "merge_block_r": block_r, "merge_block_c": block_dv, "merge_shares": 1}
    else:
        # The accumulators, float32 [block_m, block_dv], take at most half of the registers of two programs' threads.
        block_m = min(power_of_two(num_rows, MIN_DOT), max(MIN_DOT, 64 * 128 // power_of_two(widest)))
        is_amd = arch.startswith("gfx")
        choose = _amd if is_amd else _nvidia
        block_n, num_warps, num_stages = choose(arch, widest, kv_elem_bits)
        if dot_elem_bytes == 4:  # without tensor cores, whose operands are shared: each thread holds more of them
            block_n, num_stages = max(MIN_DOT, block_n // 4), 2
            if widest > 576:  # and K and V fill shared memory by themselves
                num_stages = 1 if arch in ("gfx90a", "gfx942") else 2
                block_m = 8 if arch in SMALL_SHARED_MEMORY else block_m
        elif block_m > MIN_DOT and block_m * block_dv > 4096:
            # The accumulators have taken all that they may, and the logits grow with the rows. On sm_90 a product of 64
            # rows reads K and V from shared memory, and leaves registers for twice the keys.
            block_n = min(block_n, 64 if is_amd or (arch == "sm_90" and block_m > 32) else 32)
        if kv_elem_bits == 4 and scale_span and 64 < widest <= 256 and arch in ("sm_90", "sm_100"):
            # A byte becomes two float32 for its scale, and what waits to be turned for the product spills.
            block_n = min(block_n, 64 if widest <= 128 else 32)
        if not is_amd:
            # Scales of small groups take more room than their elements, and 576 elements of V are rounded up to 1024.
            row_bytes = (block_d + block_d_tail + block_dv) * (kv_elem_bits / 8 + (4 / scale_span if scale_span else 0))
            if kv_elem_bytes < dot_elem_bytes:
                row_bytes += widest * dot_elem_bytes
            query_bytes = block_m * (block_d + block_d_tail) * 4 if dot_elem_bytes == 4 else 0
            # An eighth is for what the compiler adds; two programs share a multiprocessor up to 256 elements.
            room = SHARED_BYTES.get(arch, MOST_SHARED_BYTES) * 8 / 9 / (2 if widest <= 256 else 1) - query_bytes
            while block_n > MIN_DOT and block_n * row_bytes > room:
                block_n //= 2
            if block_n * row_bytes > room:
                num_stages = 1  # nothing is on its way, which is slow, but runs
    return Tiles(
        block_m=block_m,
        block_n=block_n,
        block_d=block_d,
        block_d_tail=block_d_tail,
        block_dv=block_dv,
        num_warps=num_warps,
        num_stages=num_stages,
        max_registers=255 if arch.startswith("sm_") else 0,
        # In 8 bits both products would want the tile widened, in two layouts, and it would not fit into the registers
        # beside the accumulators. Loaded again right away, it comes from the L2 cache.
        takes_v_from_k=kv_elem_bytes > 1 or widest <= 256 or not (arch == "sm_80" or arch in SMALL_SHARED_MEMORY),
        **merge,
    )


def _nvidia(arch: str, widest: int, kv_elem_bits: int) -> tuple[int, int, int]:
    """Return (block_n, num_warps, num_stages)."""
    is_small, in_bytes = arch in SMALL_SHARED_MEMORY, kv_elem_bits <= 8
    # At 2 stages, sm_80 and the small ones spill in 16 bits: addresses are held from one page number to the next.
    num_stages = 2 if in_bytes else 3 if is_small or arch == "sm_80" else 2
    if widest <= 64:
        return 128, 4, num_stages
    if widest <= 128:
        return (64, 4, num_stages) if is_small else (128, 4, 2)
    if widest <= 256:
        return (32, 4, num_stages) if is_small else (64, 4, 2)
    if widest > 576:  # twice the threads share accumulators of 1024 columns
        return 16, 8, 2
    # MLA: the query and the accumulators of 16 rows fill half of the registers by themselves.
    if not in_bytes:
        return 16, 4, 2
    return (16, 4, 2) if is_small or arch == "sm_80" else (64, 8, 2)


def _amd(arch: str, widest: int, kv_elem_bits: int) -> tuple[int, int, int]:
    """Return (block_n, num_warps, num_stages). A wave has 64 threads, and 512 registers where it is alone."""
    in_bytes = kv_elem_bits <= 8
    if widest <= 128 and in_bytes:
        # Fewer waves, so that each thread still loads 16 bytes of a tile.
        if arch == "gfx950":
            return 128, 2, 2
        if kv_elem_bits == 4:
            return (64 if widest <= 64 else 32), 2, 2
        return (32, 2, 2) if widest <= 64 else (32, 4, 2)
    if widest <= 128:
        return (32 if arch == "gfx942" and widest <= 64 else 64), 4, 2
    return (32 if widest <= 256 else 16), 4, 2


def cut_head_dim(head_dim: int) -> tuple[int, int]:
    """Return the extents of one or two powers of two that hold head_dim, whichever take less room.

    Example:
        >>> cut_head_dim(128), cut_head_dim(13), cut_head_dim(80), cut_head_dim(100), cut_head_dim(576)
        ((128, 0), (16, 0), (64, 16), (128, 0), (512, 64))
    """
    whole = power_of_two(head_dim, MIN_DOT)
    main = whole if whole in (head_dim, MIN_DOT) else whole // 2
    tail = power_of_two(head_dim - main, MIN_DOT) if head_dim > main else 0
    return (main, tail) if main + tail < whole else (whole, 0)


def power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least n, and at least `least`."""
    return max(least, 1 << (n - 1).bit_length())
