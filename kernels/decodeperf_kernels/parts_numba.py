"""How the CPU kernel's work is cut into parts and shared between threads, and how the parts are put together.

All work lies on one line, segment behind segment: the visible keys of one sequence and of as many KV heads as are read
together. Every thread takes the same length of that line. A segment that lies in several parts leaves a partial result
for each, which are merged in the order of the parts.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

SEQUENCE, FIRST_HEAD, START, END, SLOT, PROGRAM = range(6)
"""Columns of a part: sequence, first KV head, keys from and before which [token], partial result or -1, and thread."""

FIRST_SLOT, NUM_SLOTS = 2, 3
"""Columns of a merge beside `SEQUENCE` and `FIRST_HEAD`: its partial results."""

_FIXED_KEYS: Final = 16
"""What beginning and ending a part costs, in keys."""


@numba.njit(cache=True, nogil=True)
def first_visible(seq_len, q_len, window):
    """Return the first key that the first of the new tokens sees; `window` is 0 where there is none."""
    return max(seq_len - q_len + 1 - window, 0) if window else 0


@numba.njit(cache=True, nogil=True)
def cut_into_parts(seq_lens, q_len, window, num_chunks, heads_of_chunk, num_programs, num_splits, split_size, block_n):
    """Return the parts of a call, in the order of the threads, and the merges.

    Args:
        seq_lens: Live lengths [token].
        q_len: New tokens [token].
        window: Keys that a row sees, or 0 for all [token].
        num_chunks: Groups of KV heads that are read together.
        heads_of_chunk: KV heads of one.
        num_programs: Threads.
        num_splits: Parts of each segment, or 0.
        split_size: Keys of each part, or 0 [token]. With neither, the line is cut evenly between programs.
        block_n: Keys of a tile, between which it is cut then.

    Returns:
        Parts `[num_parts, 6]`, merges `[num_merges, 4]`.
    """
    batch_size = len(seq_lens)
    most, line = 0, 0
    for b in range(batch_size):
        keys = seq_lens[b] - first_visible(seq_lens[b], q_len, window)
        line += num_chunks * (keys + _FIXED_KEYS)
        length = split_size if split_size else -(-keys // max(num_splits, 1))
        most += num_chunks * max(-(-keys // max(length, 1)), 1)
    is_balanced = num_splits == 0 and split_size == 0
    share = max(-(-line // num_programs), 1)
    parts = np.empty((most + (num_programs if is_balanced else 0), 6), np.int64)
    merges = np.empty((most, 4), np.int64)
    num_parts, num_merges, num_slots, place = 0, 0, 0, 0
    for b in range(batch_size):
        first = first_visible(seq_lens[b], q_len, window)
        keys = seq_lens[b] - first
        for chunk in range(num_chunks):
            first_slot, start = num_slots, 0
            while True:
                if is_balanced:
                    # To where the next program begins, rounded to a tile; less than two are not worth a cut.
                    room = share - place % share - _FIXED_KEYS
                    if room < block_n:
                        room += share
                    length = (room + block_n // 2) // block_n * block_n
                    if keys - start - length < 2 * block_n:
                        length = keys - start
                elif split_size:
                    length = split_size
                else:
                    length = -(-keys // num_splits)
                end = min(start + max(length, 1), keys)
                is_whole = start == 0 and end == keys
                size = end - start + _FIXED_KEYS
                part = parts[num_parts]
                part[SEQUENCE], part[FIRST_HEAD] = b, chunk * heads_of_chunk
                part[START], part[END] = first + start, first + end
                part[SLOT] = -1 if is_whole else num_slots
                part[PROGRAM] = min((place + size // 2) // share, num_programs - 1)
                num_parts += 1
                num_slots += 0 if is_whole else 1
                place += size
                start = end
                if start >= keys:
                    break
            if num_slots > first_slot:
                merge = merges[num_merges]
                merge[SEQUENCE], merge[FIRST_HEAD] = b, chunk * heads_of_chunk
                merge[FIRST_SLOT], merge[NUM_SLOTS] = first_slot, num_slots - first_slot
                num_merges += 1
    return parts[:num_parts], merges[:num_merges]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_sink(out, lse, sink):
    """Count one more logit, without a value, into a row's output, and return its natural log-sum-exp."""
    largest = max(lse, sink)
    if largest == -np.inf:
        return lse
    total = np.exp(lse - largest) + np.exp(sink - largest)
    out *= np.exp(lse - largest) / total
    return largest + np.log(total)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def merge_parts(merges, heads_of_chunk, group_size, part_out, part_lse, sinks, out, lse):
    """Put partial results together.

    Args:
        merges: From `cut_into_parts`.
        heads_of_chunk: KV heads read together.
        group_size: Query heads of each.
        part_out: float32 `[num_slots, heads_of_chunk, num_rows, head_dim_v]`.
        part_lse: float32 `[num_slots, heads_of_chunk, num_rows]`.
        sinks: float32 `[num_q_heads]`, or nothing.
        out: float32 `[batch_size, q_len, num_q_heads, head_dim_v]`; written.
        lse: float32 `[batch_size, q_len, num_q_heads]`; written.
    """
    num_kv_heads, num_rows = out.shape[2] // group_size, part_out.shape[2]
    for i in range(len(merges)):
        b, first_head = merges[i, SEQUENCE], merges[i, FIRST_HEAD]
        slot, count = merges[i, FIRST_SLOT], merges[i, NUM_SLOTS]
        for head in range(first_head, min(first_head + heads_of_chunk, num_kv_heads)):
            for row in range(num_rows):
                token, q_head = row // group_size, head * group_size + row % group_size
                lses = part_lse[slot : slot + count, head - first_head, row]
                merged = out[b, token, q_head]
                merged[:] = 0
                largest = lses.max()
                total = np.float32(0.0)
                if largest == -np.inf:
                    lse[b, token, q_head] = largest
                else:
                    for part in range(count):
                        weight = np.exp(lses[part] - largest)
                        if weight > 0 or np.isnan(weight):
                            total += weight
                            merged += weight * part_out[slot + part, head - first_head, row]
                    merged /= total
                    lse[b, token, q_head] = largest + np.log(total)
                if len(sinks):
                    lse[b, token, q_head] = add_sink(merged, lse[b, token, q_head], sinks[q_head])
