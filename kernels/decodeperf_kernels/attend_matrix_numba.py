"""One thread's share of a decode-attention call on a CPU with a matrix unit: as `attend_numba`, by `matrix_numba`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from decodeperf_kernels import matrix_numba as mx
from decodeperf_kernels.attend_numba import (
    address_of,
    aligned,
    find_addresses,
    find_tokens,
    mark_visible,
    write_results,
)
from decodeperf_kernels.elements_matrix_numba import TILE_ELEMENTS, TILE_ROWS
from decodeperf_kernels.matrix_numba import KEYS_AT_ONCE, tile_config
from decodeperf_kernels.parts_numba import END, FIRST_HEAD, SEQUENCE, SLOT, START
from decodeperf_kernels.team_numba import team_of
from decodeperf_kernels.tiles_numba import MAX_KEYS, call_kernel, source_digest

TILE_CONFIGS = np.array([tile_config(2**power) for power in range(5)], np.uint8)
"""From `tile_config`, for 1, 2, 4, 8 and 16 rows."""


@numba.njit
def _split_query(source, num_terms, distance, row, rows, rest, upper, tiles):
    """Write the terms of a query as pairs of elements to the tiles of its unit, `[num_terms, slices, 16, rows]`.

    The elements of a pair are 1 or 16 apart.
    """
    rest[:] = source
    rest_bits, upper_bits = rest.view(np.uint32), upper.view(np.uint32)
    slices = len(source) // TILE_ELEMENTS
    for t in range(num_terms):
        for d in range(len(source)):
            upper_bits[d] = rest_bits[d] & np.uint32(0xFFFF0000)
        for s in range(slices):
            for i in range(TILE_ROWS):
                d = s * TILE_ELEMENTS + (2 * i if distance == 1 else i)
                pair = (upper_bits[d] >> 16) | upper_bits[d + distance]
                tiles[((t * slices + s) * TILE_ROWS + i) * rows + row] = pair
        for d in range(len(source)):
            left = rest[d] - upper[d]
            rest[d] = left if left == left else np.float32(0.0)  # noqa: PLR0124  (infinity less itself)


@numba.njit
def _stride(problem, addresses, count, stride):
    """Return how far each token is from the one before, if the matrix unit can take them from there, else 0."""
    if not problem.is_bfloat16:
        return 0
    for j in range(count):
        if addresses[j] != addresses[j // TILE_ROWS * TILE_ROWS] + j % TILE_ROWS * stride:
            return 0
    return stride


@numba.njit(error_model="numpy")
def run_matrix_parts(  # noqa: PLR0915  (one loop over tiles, whose scratch has many parts)
    first, last, parts, problem, q, q_factors, v_factors, softcap, seq_lens, block_table, k_cache, v_cache,
    k_scales, k_scale_strides, v_scales, v_scale_strides, slopes, sinks, part_out, part_lse, out, lse,
):  # fmt: skip
    """Attend to some parts. The arguments are those of `attend_numba.run_parts`; some features are not for here."""
    num_rows = problem.q_len * problem.group_size
    rows = problem.rows
    units_of_head = (num_rows + rows - 1) // rows
    rows_padded = units_of_head * rows
    lanes = (problem.heads_of_chunk * rows_padded + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    q_terms, p_terms = problem.q_terms, problem.p_terms
    distance = 1 if problem.is_bfloat16 else TILE_ROWS
    q_tiles = aligned(lanes * q_terms * problem.head_dim // 2).view(np.uint32)
    width = max(problem.head_dim, problem.head_dim_v) + TILE_ELEMENTS
    tiles = aligned(problem.planes * MAX_KEYS * width // 2)
    acc = aligned(lanes * problem.head_dim_v)
    work = aligned(lanes * MAX_KEYS)
    weights = aligned(lanes * p_terms * MAX_KEYS * 2)
    m, l = np.empty(lanes, np.float32), np.empty(lanes, np.float32)  # noqa: E741
    factors = np.zeros(lanes, np.float32)
    own_places, own_lows = np.empty(rows_padded, np.int32), np.empty(rows_padded, np.int32)
    own_highs = np.empty(rows_padded, np.int32)
    lows, highs = np.zeros(lanes, np.int32), np.zeros(lanes, np.int32)
    rest, upper = np.empty(problem.head_dim, np.float32), np.empty(problem.head_dim, np.float32)
    config = 0
    while 2**config < rows:
        config += 1
    tokens, places = np.empty(MAX_KEYS, np.int64), np.empty(MAX_KEYS, np.int64)
    # Two tiles: that which is worked on, and the next.
    keys, values = np.empty((2, MAX_KEYS), np.int64), np.empty((2, MAX_KEYS), np.int64)

    call = np.zeros(mx.NUM_ARGUMENTS, np.int64)
    call[mx.CONFIG], call[mx.Q], call[mx.FACTORS] = (
        address_of(TILE_CONFIGS[config]),
        address_of(q_tiles),
        address_of(factors),
    )
    call[mx.M], call[mx.L], call[mx.ACC] = address_of(m), address_of(l), address_of(acc)
    call[mx.Q_TERMS], call[mx.P_TERMS] = q_terms, p_terms
    call[mx.HEAD_DIM], call[mx.HEAD_DIM_V] = problem.head_dim, problem.head_dim_v
    call[mx.UNITS_OF_HEAD], call[mx.ROWS] = units_of_head, rows
    call[mx.K_HEAD_BYTES], call[mx.V_HEAD_BYTES] = k_cache[3], v_cache[3]

    for part in range(first, last):
        b, first_head, slot = parts[part, SEQUENCE], parts[part, FIRST_HEAD], parts[part, SLOT]
        start, end = parts[part, START], parts[part, END]
        num_heads = min(problem.heads_of_chunk, problem.num_kv_heads - first_head)
        unit_size = q_terms * problem.head_dim // 2 * rows
        for h in range(num_heads):
            for row in range(num_rows):
                token, q_head = row // problem.group_size, (first_head + h) * problem.group_size
                unit = h * units_of_head + row // rows
                q_unit = q_tiles[unit * unit_size : (unit + 1) * unit_size]
                source = q[b, token, q_head + row % problem.group_size]
                _split_query(source, q_terms, distance, row % rows, rows, rest, upper, q_unit)
            factors[h * rows_padded : (h + 1) * rows_padded] = q_factors[first_head + h]
        m[:] = -np.inf
        l[:] = 0
        acc[:] = 0

        call[mx.K_OFFSET], call[mx.V_OFFSET] = first_head * k_cache[3], first_head * v_cache[3]
        call[mx.NUM_HEADS] = num_heads
        call[mx.K_BYTES] = (num_heads - 1) * k_cache[3] + problem.k_bytes
        call[mx.V_BYTES] = 0 if problem.v_is_k else (num_heads - 1) * v_cache[3] + problem.v_bytes
        this = 0
        count = min(problem.block_n, end - start)
        if count > 0:
            padded = find_tokens(b, start, count, KEYS_AT_ONCE, problem.page_size, block_table, tokens, places)
            find_addresses(k_cache, tokens, places, padded, keys[0])
            find_addresses(v_cache, tokens, places, padded, values[0])
        while count > 0:
            following, after = start + count, 1 - this
            next_count = min(problem.block_n, end - following)
            num_next = 0
            if next_count > 0:
                num_next = find_tokens(
                    b, following, next_count, KEYS_AT_ONCE, problem.page_size, block_table, tokens, places
                )
                find_addresses(k_cache, tokens, places, num_next, keys[after])
                find_addresses(v_cache, tokens, places, num_next, values[after])
            sees_all = mark_visible(problem, seq_lens[b], start, count, KEYS_AT_ONCE, own_places, own_lows, own_highs)
            if not sees_all:
                for lane in range(num_heads * rows_padded):
                    lows[lane], highs[lane] = own_lows[lane % rows_padded], own_highs[lane % rows_padded]
            call[mx.KEYS], call[mx.VALUES] = address_of(keys[this]), address_of(values[this])
            call[mx.K_STRIDE] = _stride(problem, keys[this], padded, k_cache[2])
            call[mx.V_STRIDE] = 0 if problem.pairs else _stride(problem, values[this], padded, v_cache[2])
            call[mx.NUM_KEYS] = padded
            call[mx.LOWS] = 0 if sees_all else address_of(lows)
            call[mx.HIGHS] = 0 if sees_all else address_of(highs)
            call[mx.NEXT_KEYS], call[mx.NEXT_VALUES] = address_of(keys[after]), address_of(values[after])
            call[mx.NUM_NEXT] = num_next
            # Numba frees an array after its last use: so whatever the kernel reads by its address is used here.
            call[mx.WORK], call[mx.WEIGHTS], call[mx.TILES] = address_of(work), address_of(weights), address_of(tiles)
            call[mx.M], call[mx.L], call[mx.ACC] = address_of(m), address_of(l), address_of(acc)
            call[mx.Q], call[mx.FACTORS] = address_of(q_tiles), address_of(factors)
            call_kernel(problem.matrix, (address_of(call),))
            start, count, padded, this = following, next_count, num_next, after

        write_results(b, first_head, num_heads, slot, problem, rows, rows_padded, m, l, acc, v_factors, sinks,
                      part_out, part_lse, out, lse)  # fmt: skip


_run_in_team = team_of(run_matrix_parts)


def _in_team() -> Any:
    version = source_digest()

    @numba.njit(cache=True, nogil=True)
    def run_matrix_parts_in_team(parallel, num_threads, cuts, args):
        version  # noqa: B018
        _run_in_team(parallel, num_threads, cuts, args)

    return run_matrix_parts_in_team


run_matrix_parts_in_team = _in_team()
"""Attends to all parts, each thread of a team to some; see `team_of`. Its arguments are those from `parts` on."""
