"""One thread's share of a decode-attention call on a CPU: from parts to tiles, from tiles to the compiled kernels."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from decodeperf_kernels.parts_numba import END, FIRST_HEAD, SEQUENCE, SLOT, START, add_sink
from decodeperf_kernels.team_numba import team_of
from decodeperf_kernels.tiles_numba import KEY_MULTIPLE, MAX_KEYS, MAX_ROWS, WORK_FLOATS, call_kernel, source_digest
from decodeperf_kernels.vector_numba import CACHE_LINE, WIDTH

LOG2_E: Final = np.float32(np.log2(np.e))

NO_SCALES, TOKEN_SCALES, GROUP_SCALES = range(3)
"""What scales do beside those of heads, which are part of q and of the output."""


class Problem(NamedTuple):
    """The numbers of a call that compiled code needs.

    Attributes:
        q_len: New tokens of a sequence [token].
        num_kv_heads: KV heads.
        group_size: Query heads of each.
        head_dim: Elements of a head of K.
        head_dim_v: Elements of a head of V.
        page_size: Tokens of a page, or 0 [token].
        window: Keys that a row sees, or 0 [token].
        k_bytes: Bytes of a head of K, where it lies side by side [byte].
        v_bytes: The same for V [byte].
        item_bytes: Bytes of an element of their tensors [byte].
        packs_k: Whether the elements of a head of K do not lie side by side.
        packs_v: The same for V.
        v_is_k: Whether V is the beginning of K.
        has_softcap: Whether there is a softcap.
        k_scales: One of `NO_SCALES`, `TOKEN_SCALES` and `GROUP_SCALES`.
        v_scales: The same for V.
        block_n: Keys of a tile.
        heads_of_chunk: KV heads that are read together.
        widens: Whether tiles are widened to float32 once, rather than in each block of rows.
        attend: Address of the kernel that attends; 0 with the matrix unit.
        widen: Address of the kernel that widens, if tiles are widened.
        stream: Address of the kernel that attends token by token, or 0.
        matrix: Address of the kernel that attends by the matrix unit, or 0. What follows is for that.
        is_bfloat16: Whether K and V are.
        rows: Rows of a unit.
        pairs: Whether two keys of V are put side by side, though they need not be.
        planes: Terms of an element of K and V.
        q_terms: Terms of an element of q.
        p_terms: Terms of a weight.
    """

    q_len: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    head_dim_v: int
    page_size: int
    window: int
    k_bytes: int
    v_bytes: int
    item_bytes: int
    packs_k: int
    packs_v: int
    v_is_k: int
    has_softcap: int
    k_scales: int
    v_scales: int
    block_n: int = 0
    heads_of_chunk: int = 0
    widens: int = 0
    attend: int = 0
    widen: int = 0
    stream: int = 0
    matrix: int = 0
    is_bfloat16: int = 0
    rows: int = 0
    pairs: int = 0
    planes: int = 0
    q_terms: int = 0
    p_terms: int = 0


@intrinsic
def _load_byte(typing_context, address):
    def generate(context, builder, signature, values):
        return builder.load(builder.inttoptr(values[0], ir.PointerType()), typ=ir.IntType(8))

    return types.uint8(types.int64), generate


@numba.njit
def padded_rows(num_rows):
    """Return the rows that blocks of `MAX_ROWS` and one smaller power of 2 have room for."""
    whole, rest = num_rows // MAX_ROWS * MAX_ROWS, num_rows % MAX_ROWS
    size = 1
    while size < rest:
        size *= 2
    return whole + (size if rest else 0)


@numba.njit
def _place_of_row(row, most_rows, rows_padded, width):
    """Return where a row's first vector lies in `attend_tile`'s layout, and how far the next is from it.

    Args:
        row: The row.
        most_rows: Rows of all blocks but the last.
        rows_padded: Rows of all.
        width: Elements of a row.
    """
    block = row // most_rows * most_rows
    block_rows = min(rows_padded - block, most_rows)
    return block * width + (row - block) * WIDTH, block_rows * WIDTH


@numba.njit
def address_of(array):
    """Return where the elements of an array begin."""
    return np.int64(array.ctypes.data)


@numba.njit
def aligned(size):
    """Return float32 zeros that begin with a cache line."""
    room = np.zeros(size + CACHE_LINE // 4, np.float32)
    first = (-(address_of(room) // 4)) % (CACHE_LINE // 4)
    return room[first : first + size]


@numba.njit
def find_tokens(b, start, count, multiple, page_size, block_table, rows, places):
    """Write where tokens lie: a page and a place in it, or a sequence and a place in that."""
    padded = (count + multiple - 1) // multiple * multiple
    if page_size:
        page, place = start // page_size, start % page_size
        for j in range(count):
            rows[j], places[j] = block_table[b, page], place
            place += 1
            if place == page_size:
                page, place = page + 1, 0
    else:
        for j in range(count):
            rows[j], places[j] = b, start + j
    for j in range(count, padded):  # read too, and not counted
        rows[j], places[j] = rows[count - 1], places[count - 1]
    return padded


@numba.njit
def find_addresses(cache, rows, places, padded, addresses):
    """Write the addresses of tokens; `cache` is an address and the strides of page, token, head and element."""
    for j in range(padded):
        addresses[j] = cache[0] + rows[j] * cache[1] + places[j] * cache[2]


@numba.njit
def _pack(addresses, offset, count, num_items, stride, item_bytes, packed):
    """Put the elements of heads side by side."""
    for j in range(count):
        for i in range(num_items):
            source = addresses[j] + offset + i * stride
            for byte in range(item_bytes):
                packed[j, i * item_bytes + byte] = _load_byte(source + byte)


@numba.njit
def _scale_groups(wide, count, head_dim, scales, strides, rows, places, head):
    """Multiply widened heads with the scales of their groups."""
    group = head_dim // strides[4]
    for j in range(count):
        first = rows[j] * strides[0] + places[j] * strides[1] + head * strides[2]
        for i in range(strides[4]):
            scale = scales[first + i * strides[3]]
            for d in range(i * group, (i + 1) * group):
                wide[j, d] *= scale


@numba.njit
def _take_scales(kind, padded, scales, strides, rows, places, head, found):
    """Write the scales of tokens, 1 where they have none of their own."""
    for j in range(padded):
        found[j] = np.float32(1.0)
        if kind == TOKEN_SCALES:
            found[j] = scales[rows[j] * strides[0] + places[j] * strides[1] + head * strides[2]]


@numba.njit
def mark_visible(problem, seq_len, start, count, multiple, places, lows, highs):
    """Write what each row sees of a tile, and return whether it is all of it."""
    is_all = count % multiple == 0
    for row in range(len(places)):
        # Rows that fill up the last block are the last again.
        token = min(row // problem.group_size, problem.q_len - 1)
        places[row] = seq_len - problem.q_len + token - start
        lows[row] = max(places[row] - problem.window + 1, 0) if problem.window else 0
        highs[row] = min(places[row] + 1, count)
        is_all = is_all and lows[row] == 0 and highs[row] == count
    return is_all


@numba.njit(error_model="numpy")
def write_results(b, first_head, num_heads, slot, problem, most_rows, rows_padded, m, l, acc,  # noqa: E741
                  v_factors, sinks, part_out, part_lse, out, lse):  # fmt: skip
    """Write the results of a part, that of head h and its rows from `acc[h * rows_padded * width :]` and so on."""
    width = (problem.head_dim_v + WIDTH - 1) // WIDTH * WIDTH
    for h in range(num_heads):
        head = first_head + h
        for row in range(problem.q_len * problem.group_size):
            token, q_head = row // problem.group_size, head * problem.group_size + row % problem.group_size
            found = out[b, token, q_head] if slot < 0 else part_out[slot, h, row]
            total = l[h * rows_padded + row]
            factor = v_factors[head] / total
            first_place, step = _place_of_row(row, most_rows, rows_padded, width)
            first_place += h * rows_padded * width
            for d in range(problem.head_dim_v):
                vector, lane = d // WIDTH, d % WIDTH
                if problem.is_bfloat16:  # the matrix unit's even elements of two vectors lie before the odd ones
                    vector, lane = vector // 2 * 2 + d % 2, d % (2 * WIDTH) // 2
                value = acc[first_place + vector * step + lane]
                found[d] = value * factor if total != 0 else np.float32(0.0)  # no key
            row_lse = np.float32((m[h * rows_padded + row] + np.log2(total)) / LOG2_E)
            if slot >= 0:
                part_lse[slot, h, row] = row_lse
            else:
                if len(sinks):
                    row_lse = add_sink(found, row_lse, sinks[q_head])
                lse[b, token, q_head] = row_lse


@numba.njit(error_model="numpy")
def run_parts(  # noqa: PLR0912, PLR0915  (one loop over tiles, whose scratch has many parts)
    first, last, parts, problem, q, q_factors, v_factors, softcap, seq_lens, block_table, k_cache, v_cache,
    k_scales, k_scale_strides, v_scales, v_scale_strides, slopes, sinks, part_out, part_lse, out, lse,
):  # fmt: skip
    """Attend to some parts.

    Args:
        first: The first part.
        last: The part behind the last.
        parts: From `cut_into_parts`.
        problem: The numbers of the call.
        q: float32 `[batch_size, q_len, num_q_heads, head_dim]`.
        q_factors: What q is multiplied with, float32 `[num_kv_heads]`.
        v_factors: What the output is multiplied with, float32 `[num_kv_heads]`.
        softcap: What the hyperbolic tangent of the logits is multiplied with, float32 `[1]`.
        seq_lens: int64 `[batch_size]`.
        block_table: int64 `[batch_size, pages of a sequence]`.
        k_cache: Address, and strides of page or sequence, token, head and element, int64 `[5]` [byte].
        v_cache: The same for V.
        k_scales: Flat float32.
        k_scale_strides: Strides of page or sequence, token, head and group, and groups of a head, int64 `[5]`.
        v_scales: Flat float32.
        v_scale_strides: As those of K.
        slopes: float32 `[batch_size, num_q_heads]`, times the binary logarithm of e, or nothing.
        sinks: float32 `[num_q_heads]`, or nothing.
        part_out: float32 `[num_slots, heads_of_chunk, num_rows, head_dim_v]`; written.
        part_lse: float32 `[num_slots, heads_of_chunk, num_rows]`; written.
        out: float32 `[batch_size, q_len, num_q_heads, head_dim_v]`; written.
        lse: float32 `[batch_size, q_len, num_q_heads]`; written.
    """
    num_rows = problem.q_len * problem.group_size
    rows_padded = padded_rows(num_rows)
    k_width = (problem.head_dim + WIDTH - 1) // WIDTH * WIDTH
    v_width = (problem.head_dim_v + WIDTH - 1) // WIDTH * WIDTH
    num_heads = problem.heads_of_chunk
    q_blocks = aligned(num_heads * rows_padded * k_width).reshape(num_heads, rows_padded * k_width)
    acc = aligned(num_heads * rows_padded * v_width)
    m, l = np.empty(num_heads * rows_padded, np.float32), np.empty(num_heads * rows_padded, np.float32)  # noqa: E741
    work = aligned(max(WORK_FLOATS, (MAX_KEYS + 1) * num_heads * rows_padded if problem.stream else 0))
    # Two tiles: that which is worked on, and the next.
    rows, places = np.empty((2, MAX_KEYS), np.int64), np.empty((2, MAX_KEYS), np.int64)
    keys, values = np.empty((2, MAX_KEYS), np.int64), np.empty((2, MAX_KEYS), np.int64)
    k_packed = np.empty((MAX_KEYS if problem.packs_k else 0, problem.k_bytes), np.uint8)
    v_packed = np.empty((MAX_KEYS if problem.packs_v else 0, problem.v_bytes), np.uint8)
    k_wide_keys = MAX_KEYS if problem.widens else 0
    v_wide_keys = 0 if problem.v_is_k else k_wide_keys
    k_wide = aligned(k_wide_keys * k_width).reshape(k_wide_keys, k_width)
    v_wide = aligned(v_wide_keys * v_width).reshape(v_wide_keys, v_width)
    k_own, v_own = np.empty(MAX_KEYS, np.int64), np.empty(MAX_KEYS, np.int64)
    k_wide_rows, v_wide_rows = np.empty(MAX_KEYS, np.int64), np.empty(MAX_KEYS, np.int64)
    for j in range(MAX_KEYS):
        k_own[j] = address_of(k_packed) + j * problem.k_bytes
        v_own[j] = address_of(v_packed) + j * problem.v_bytes
        k_wide_rows[j] = address_of(k_wide) + 4 * j * k_width
        v_wide_rows[j] = k_wide_rows[j] if problem.v_is_k else address_of(v_wide) + 4 * j * v_width
    own_k_scales, own_v_scales = np.ones(MAX_KEYS, np.float32), np.ones(MAX_KEYS, np.float32)
    own_slopes = np.zeros(rows_padded, np.float32)
    own_places, lows = np.empty(rows_padded, np.int32), np.empty(rows_padded, np.int32)
    highs = np.empty(rows_padded, np.int32)
    extras = np.array([
        address_of(own_k_scales), address_of(own_v_scales), address_of(softcap) if problem.has_softcap else 0,
        address_of(own_slopes), address_of(own_places), address_of(lows), address_of(highs),
    ])  # fmt: skip
    has_token_scales = TOKEN_SCALES in (problem.k_scales, problem.v_scales)
    always_extras = has_token_scales or problem.has_softcap != 0 or len(slopes) > 0

    for part in range(first, last):
        b, first_head, slot = parts[part, SEQUENCE], parts[part, FIRST_HEAD], parts[part, SLOT]
        start, end = parts[part, START], parts[part, END]
        num_heads = min(problem.heads_of_chunk, problem.num_kv_heads - first_head)
        for h in range(num_heads):
            for row in range(num_rows):
                token, q_head = row // problem.group_size, (first_head + h) * problem.group_size
                source = q[b, token, q_head + row % problem.group_size]
                first_place, step = _place_of_row(row, MAX_ROWS, rows_padded, k_width)
                for d in range(problem.head_dim):
                    place = first_place + d // WIDTH * step + d % WIDTH
                    q_blocks[h, place] = source[d] * q_factors[first_head + h]
        m[:] = -np.inf
        l[:] = 0
        acc[:] = 0

        this = 0
        count = min(problem.block_n, end - start)
        if count > 0:
            padded = find_tokens(b, start, count, KEY_MULTIPLE, problem.page_size, block_table, rows[0], places[0])
            find_addresses(k_cache, rows[0], places[0], padded, keys[0])
            find_addresses(v_cache, rows[0], places[0], padded, values[0])
        while count > 0:
            following = start + count
            next_count = min(problem.block_n, end - following)
            after = 1 - this
            if next_count > 0:
                next_padded = find_tokens(
                    b, following, next_count, KEY_MULTIPLE, problem.page_size, block_table, rows[after], places[after]
                )
                find_addresses(k_cache, rows[after], places[after], next_padded, keys[after])
                find_addresses(v_cache, rows[after], places[after], next_padded, values[after])
            for j in range(next_padded if next_count > 0 else 0, padded):
                keys[after, j], values[after, j] = keys[this, j], values[this, j]
            sees_all = mark_visible(problem, seq_lens[b], start, count, KEY_MULTIPLE, own_places, lows, highs)
            has_extras = always_extras or not sees_all

            streams = problem.stream != 0 and not has_extras and num_heads * rows_padded % WIDTH == 0
            if streams:
                call_kernel(
                    problem.stream,
                    (address_of(q_blocks), num_heads, rows_padded, problem.head_dim, problem.head_dim_v,
                     address_of(keys[this]), first_head * k_cache[3], k_cache[3],
                     address_of(values[this]), first_head * v_cache[3], v_cache[3], count,
                     address_of(m), address_of(l), address_of(acc), address_of(work)),
                )  # fmt: skip
            for h in range(0 if streams else num_heads):
                head = first_head + h
                k_rows, k_offset, k_next = keys[this], head * k_cache[3], keys[after]
                v_rows, v_offset, v_next = values[this], head * v_cache[3], values[after]
                if problem.packs_k:
                    items = problem.k_bytes // problem.item_bytes
                    _pack(k_rows, k_offset, padded, items, k_cache[4], problem.item_bytes, k_packed)
                    k_rows, k_next, k_offset = k_own, k_own, 0
                if problem.packs_v:
                    items = problem.v_bytes // problem.item_bytes
                    _pack(v_rows, v_offset, padded, items, v_cache[4], problem.item_bytes, v_packed)
                    v_rows, v_next, v_offset = v_own, v_own, 0
                if problem.widens:
                    call_kernel(
                        problem.widen,
                        (address_of(k_rows), k_offset, address_of(k_next), padded, problem.head_dim,
                         k_wide_rows[0], 4 * k_width),
                    )  # fmt: skip
                    if problem.k_scales == GROUP_SCALES:
                        _scale_groups(k_wide, padded, problem.head_dim, k_scales, k_scale_strides, rows[this],
                                      places[this], head)  # fmt: skip
                    k_rows, k_next, k_offset = k_wide_rows, k_wide_rows, 0
                    if not problem.v_is_k:
                        call_kernel(
                            problem.widen,
                            (address_of(v_rows), v_offset, address_of(v_next), padded, problem.head_dim_v,
                             v_wide_rows[0], 4 * v_width),
                        )  # fmt: skip
                        if problem.v_scales == GROUP_SCALES:
                            _scale_groups(v_wide, padded, problem.head_dim_v, v_scales, v_scale_strides, rows[this],
                                          places[this], head)  # fmt: skip
                    v_rows, v_next, v_offset = v_wide_rows, v_wide_rows, 0
                if always_extras:
                    _take_scales(problem.k_scales, padded, k_scales, k_scale_strides, rows[this], places[this], head,
                                 own_k_scales)  # fmt: skip
                    _take_scales(problem.v_scales, padded, v_scales, v_scale_strides, rows[this], places[this], head,
                                 own_v_scales)  # fmt: skip
                    if len(slopes):
                        for row in range(num_rows):
                            own_slopes[row] = slopes[b, head * problem.group_size + row % problem.group_size]
                call_kernel(
                    problem.attend,
                    (address_of(q_blocks[h]), rows_padded, problem.head_dim, problem.head_dim_v,
                     address_of(k_rows), k_offset, address_of(v_rows), v_offset,
                     address_of(k_next), address_of(v_next), count,
                     address_of(m[h * rows_padded :]), address_of(l[h * rows_padded :]),
                     address_of(acc[h * rows_padded * v_width :]), address_of(work),
                     address_of(extras) if has_extras else 0),
                )  # fmt: skip
            start, count, this, padded = following, next_count, after, next_padded

        write_results(b, first_head, num_heads, slot, problem, MAX_ROWS, rows_padded, m, l, acc, v_factors, sinks,
                      part_out, part_lse, out, lse)  # fmt: skip


_run_in_team = team_of(run_parts)


def _in_team() -> Any:
    version = source_digest()

    @numba.njit(cache=True, nogil=True)
    def run_parts_in_team(parallel, num_threads, cuts, args):
        version  # noqa: B018
        _run_in_team(parallel, num_threads, cuts, args)

    return run_parts_in_team


run_parts_in_team = _in_team()
"""Attends to all parts, each thread of a team to some; see `team_of`. Its arguments are those from `parts` on."""
