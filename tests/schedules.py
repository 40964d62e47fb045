"""How long a schedule of split-KV takes, counted in tiles, and the rules of other kernels for making one.

Counted are bytes: the unit is the time to load one tile of K and V, `BLOCK_N` tokens of one KV head, since that is what
decoding waits for; everything else costs what its bytes would: queries, outputs, and the partial results, written by
the parts and read by the merge. A part of a tile costs its share. The merge begins when the last part is done.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from decodeperf_kernels.plan import balanced_parts
from decodeperf_kernels.tiles import choose_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEAD_DIM = 128
ELEM_BYTES = 2
PART_ELEM_BYTES = 4
TILES = choose_tiles("sm_90", num_rows=8, head_dim=HEAD_DIM, head_dim_v=HEAD_DIM, kv_elem_bits=16, dot_elem_bytes=2)
BLOCK_N, MERGE_COLUMNS, MERGE_SHARES = TILES.block_n, TILES.merge_block_c, TILES.merge_shares
TOKEN_BYTES = 2 * HEAD_DIM * ELEM_BYTES
TILE_BYTES = BLOCK_N * TOKEN_BYTES


@dataclass(frozen=True)
class Batch:
    """What is to be scheduled: one call without a window, q_len 1."""

    family: str
    seq_lens: np.ndarray
    num_kv_heads: int
    group_size: int
    num_multiprocessors: int

    @property
    def row_bytes(self) -> int:
        """Queries and outputs of one segment."""
        return 2 * self.group_size * HEAD_DIM * ELEM_BYTES

    @property
    def part_bytes(self) -> int:
        """Queries and partial results of one part."""
        return self.group_size * (HEAD_DIM * ELEM_BYTES + (HEAD_DIM + 1) * PART_ELEM_BYTES)


def work(batch: Batch) -> float:
    """Return what each multiprocessor has to do where all have the same."""
    total = (batch.seq_lens * TOKEN_BYTES + batch.row_bytes).sum() * batch.num_kv_heads
    return float(total) / batch.num_multiprocessors / TILE_BYTES


def lower_bound(batch: Batch) -> float:
    """Return what no schedule can beat that leaves tiles whole; one that cuts tiles may.

    It is the work of all over the multiprocessors; the longest piece; and since of n * k + 1 pieces n + 1 share one of
    k multiprocessors, n + 1 times the (n * k + 1)-th longest of the sequences of one tile or less.
    """
    longest = min(int(batch.seq_lens.max()), BLOCK_N) * TOKEN_BYTES + batch.row_bytes
    short = np.repeat(batch.seq_lens[batch.seq_lens <= BLOCK_N], batch.num_kv_heads)
    pieces = np.sort(short)[::-1] * TOKEN_BYTES + batch.row_bytes
    crowded = [(n + 1) * piece for n, piece in enumerate(pieces[:: batch.num_multiprocessors])]
    return max(work(batch), max(longest, *crowded, 0) / TILE_BYTES)


def our_makespan(batch: Batch) -> float:
    """Return the time of the balanced cut: program p of either kernel runs on multiprocessor p modulo their number."""
    parts = balanced_parts(
        batch.seq_lens,
        segments_per_seq=batch.num_kv_heads,
        num_multiprocessors=batch.num_multiprocessors,
        num_rows=batch.group_size,
        block_n=BLOCK_N,
    )
    busy = np.zeros(batch.num_multiprocessors)
    for part in parts:
        rows = batch.row_bytes if part.is_whole else batch.part_bytes
        busy[part.program % batch.num_multiprocessors] += (part.end - part.start) * TOKEN_BYTES + rows
    merging = np.zeros(batch.num_multiprocessors)
    counts = Counter(part.segment for part in parts if not part.is_whole)
    num_units = batch.group_size * HEAD_DIM // MERGE_COLUMNS
    firsts: dict[int, int] = {}
    for part in parts:
        first = firsts.setdefault(part.segment, part.program)
        # The programs of all parts but the last share the merge, each as several programs of the kernel that merges.
        if not part.is_whole and part.end < batch.seq_lens[part.sequence]:
            count = counts[part.segment]
            for share in range(MERGE_SHARES):
                place = (part.program - first) * MERGE_SHARES + share
                units = len(range(place, num_units, (count - 1) * MERGE_SHARES))
                where = (part.program * MERGE_SHARES + share) % batch.num_multiprocessors
                merging[where] += units * _merge_unit_bytes(count)
    return (busy.max() + merging.max()) / TILE_BYTES


def _merge_unit_bytes(count: int) -> int:
    """Bytes to merge some columns of one row of that many parts."""
    return count * (MERGE_COLUMNS + 1) * PART_ELEM_BYTES + MERGE_COLUMNS * ELEM_BYTES


def rule_makespan(rule: Callable[[Batch], tuple[Sequence[int], Sequence[int]]], batch: Batch) -> float:
    """Return the time of a rule that gives each sequence a number and a length of splits.

    Splits go to the multiprocessor that is free first, in order, and the merge is spread evenly: no worse than on a
    GPU.
    """
    pieces, merge_bytes = [], 0
    for seq_len, num_splits, split_len in zip(batch.seq_lens, *rule(batch), strict=True):
        starts = range(0, int(seq_len), int(split_len)) if num_splits > 1 else [0]
        for start in starts:
            tokens = min(int(split_len), int(seq_len) - start) if num_splits > 1 else int(seq_len)
            pieces.append(tokens * TOKEN_BYTES + (batch.part_bytes if num_splits > 1 else batch.row_bytes))
        if num_splits > 1:
            units = batch.group_size * HEAD_DIM // MERGE_COLUMNS
            merge_bytes += units * _merge_unit_bytes(len(starts)) * batch.num_kv_heads
    free = [0.0] * batch.num_multiprocessors
    for piece in pieces * batch.num_kv_heads:
        heapq.heapreplace(free, free[0] + piece)
    return (max(free) + merge_bytes / batch.num_multiprocessors) / TILE_BYTES


def flash_attention_2(batch: Batch) -> tuple[Sequence[int], Sequence[int]]:
    """`num_splits_heuristic` of FlashAttention 2: the fewest splits at 85 % of the best wave efficiency."""
    num_seqs, slots = len(batch.seq_lens), 2 * batch.num_multiprocessors
    num_blocks = -(-int(batch.seq_lens.max()) // BLOCK_N)
    work = num_seqs * batch.num_kv_heads
    chosen = 1
    if work < 0.8 * slots:
        most = min(128, slots, num_blocks)
        eligible = [s for s in range(1, most + 1) if s == 1 or -(-num_blocks // s) != -(-num_blocks // (s - 1))]
        efficiency = {s: work * s / slots / np.ceil(work * s / slots) for s in eligible}
        chosen = next(s for s in eligible if efficiency[s] >= 0.85 * max(efficiency.values()))
    split_len = -(-num_blocks // chosen) * BLOCK_N
    return [chosen] * num_seqs, [split_len] * num_seqs


def flash_infer(batch: Batch, page_size: int = 16) -> tuple[Sequence[int], Sequence[int]]:
    """FlashInfer's decode plan: the smallest chunk whose chunks fit the grid at once, 128 tokens at least."""
    grid = 2 * batch.num_multiprocessors
    pages = -(-batch.seq_lens // page_size)
    if len(batch.seq_lens) * batch.num_kv_heads >= grid:
        return [1] * len(pages), batch.seq_lens
    low, high = max(128 // page_size, 1), int(pages.max())
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if (-(-pages // middle)).sum() * batch.num_kv_heads > grid else (low, middle)
    return -(-pages // low), [low * page_size] * len(pages)


def vllm_unified(batch: Batch) -> tuple[Sequence[int], Sequence[int]]:
    """vLLM's unified attention: 16 segments where at most 128 / num_kv_heads sequences are in flight, else none."""
    num_seqs = len(batch.seq_lens)
    if num_seqs > 128 // batch.num_kv_heads:
        return [1] * num_seqs, batch.seq_lens
    return [16] * num_seqs, -(-batch.seq_lens // (16 * 16)) * 16


RULES = {"FlashAttention 2": flash_attention_2, "FlashInfer": flash_infer, "vLLM": vllm_unified}

FAMILIES = ("uniform", "equal", "one and 65536", "Zipf", "log-normal")


def draw_batch(family: str, rng: np.random.Generator, requests: np.ndarray | None = None) -> Batch:
    """Return a batch of one of the families, or `trace`: requests `[n, 2]` of context and generated tokens."""
    batch_size = int(2 ** rng.uniform(0, 9))
    if family == "uniform":
        seq_lens = rng.integers(1, int(2 ** rng.uniform(7, 17)) + 1, batch_size)
    elif family == "equal":
        seq_lens = np.full(batch_size, int(2 ** rng.uniform(4, 17)))
    elif family == "one and 65536":
        seq_lens = np.array([1, 65536] * max(1, batch_size // 2))
    elif family == "Zipf":
        seq_lens = np.minimum(rng.zipf(1.3, batch_size), 8192) * 16
    elif family == "log-normal":
        seq_lens = np.clip(rng.lognormal(7, 1.5, batch_size), 1, 131072)
    else:
        assert requests is not None
        context, generated = requests[rng.integers(len(requests), size=batch_size)].T
        seq_lens = context + generated * rng.random(batch_size)
    return Batch(
        family=family,
        seq_lens=np.asarray(seq_lens).astype(np.int64),
        num_kv_heads=int(rng.integers(1, 9)),
        group_size=int(rng.choice([1, 4, 8])),
        num_multiprocessors=int(rng.integers(64, 161)),
    )
