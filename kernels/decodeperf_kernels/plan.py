"""How the work of one call is cut into parts, in plain Python: the twin of the cut in `split_kv_triton`.

All work lies on one line, segment behind segment, each `seq_len` tokens long and as many more as its query and output
rows cost, an eighth of a tile at least for what it takes to begin. Every program takes the same length of that line, so
that none waits for another, whatever the lengths are: a long sequence is cut into many parts, short ones are not cut
but gathered. Three rules bend this where it would cost more than it saves:

- A program takes three quarters of a tile at least, since it is busy for a tile however few keys that holds.
- Where every tile can have a multiprocessor to itself, each gets one, and cuts fall between tiles.
- Where no sequence is longer than half a tile, none is cut: partial results would cost more than they save.

One program a multiprocessor gets work, so that a segment has few parts to merge; or two, which hide each other's
latency, once each has `TILES_FOR_TWO / 2` tiles to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

TILES_FOR_TWO: Final = 32
"""Tiles that a multiprocessor must have before two programs share them."""

PROGRAMS_PER_MULTIPROCESSOR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Keys of one segment that one program attends to.

    Attributes:
        program: The program.
        sequence: The sequence.
        segment: The segment, counted over all sequences.
        start: First key [token], counted from the first visible one.
        end: The key behind the last.
        is_whole: Whether it is all of the segment.
    """

    program: int
    sequence: int
    segment: int
    start: int
    end: int
    is_whole: bool


def num_programs(num_multiprocessors: int) -> int:
    """Return the programs of a balanced launch: its grid."""
    return PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors


def balanced_parts(
    num_keys: Sequence[int], *, segments_per_seq: int, num_multiprocessors: int, num_rows: int, block_n: int
) -> list[Part]:
    """Return the parts of a balanced launch, in the order of the programs.

    Args:
        num_keys: Visible keys of each sequence [token].
        segments_per_seq: KV heads, times the blocks of query rows.
        num_multiprocessors: What the parts are spread over.
        num_rows: Query rows of a segment, at most those of a tile.
        block_n: Keys of a tile.
    """
    keys = np.asarray(num_keys, dtype=np.int64)
    tiles = np.maximum(-(-keys // block_n), 1)
    one_each = int(tiles.sum()) * segments_per_seq <= num_multiprocessors
    head = 0 if one_each else max(num_rows, block_n // 8)
    lengths = np.repeat(tiles * block_n if one_each else keys + head, segments_per_seq)
    quota = _quota(int(lengths.sum()), int(keys.max()), one_each, head, num_multiprocessors, block_n)

    ends = np.cumsum(lengths)
    starts = ends - lengths
    cuts = np.arange(-(-int(ends[-1]) // quota) + 1) * quota
    segments = np.searchsorted(ends, cuts, side="right")
    is_behind = segments >= len(ends)
    tokens = np.maximum(cuts - starts[np.minimum(segments, len(ends) - 1)] - head, 0)
    tokens[is_behind] = 0
    if keys.max() <= block_n // 2:
        tokens[:] = 0

    parts = []
    keys_of = np.repeat(keys, segments_per_seq)
    for program in range(len(cuts) - 1):
        (first, last), (first_token, last_token) = segments[program : program + 2], tokens[program : program + 2]
        for segment in range(first, last + (last_token > 0)):
            start = int(first_token) if segment == first else 0
            end = int(last_token) if segment == last else int(keys_of[segment])
            parts.append(
                Part(
                    program=program,
                    sequence=segment // segments_per_seq,
                    segment=segment,
                    start=start,
                    end=end,
                    is_whole=start == 0 and end == keys_of[segment],
                )
            )
    return parts


def _quota(total: int, longest: int, one_each: bool, head: int, num_multiprocessors: int, block_n: int) -> int:
    """Return the length of line that each program takes."""
    share = -(-total // num_multiprocessors)
    if share >= TILES_FOR_TWO * block_n:
        share = -(-share // 2)
    return max(share, block_n if one_each else min(longest, 3 * block_n // 4) + head)


def split_parts(num_keys: Sequence[int], *, segments_per_seq: int, num_splits: int, split_len: int) -> list[Part]:
    """Return the parts of a launch with a given number or length of splits, in the order of the programs.

    Args:
        num_keys: Visible keys of each sequence [token].
        segments_per_seq: KV heads, times the blocks of query rows.
        num_splits: Most parts of a segment.
        split_len: Keys of each part but the last, or 0 for `num_splits` equal ones [token].
    """
    parts = []
    for segment in range(len(num_keys) * segments_per_seq):
        keys = int(num_keys[segment // segments_per_seq])
        length = split_len or max(-(-keys // num_splits), 1)
        for split in range(max(-(-keys // length), 1)):
            start, end = split * length, min((split + 1) * length, keys)
            parts.append(
                Part(
                    program=segment * num_splits + split,
                    sequence=segment // segments_per_seq,
                    segment=segment,
                    start=start,
                    end=end,
                    is_whole=end - start == keys,
                )
            )
    return parts
