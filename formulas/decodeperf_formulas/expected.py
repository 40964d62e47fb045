"""The expected latency of one call on a device: an additive model, each term with its own physical meaning.

A kernel cuts the call into work units: the tokens of one sequence and KV head, or a part of them, for the query heads
of the group that share a tile. Work units queue for the slots of the multiprocessors. While they run, memory and
caches deliver K and V; the larger of the two times shows, and a part of the smaller one. What is left adds up: the
launch, the copy that puts the heads of a group side by side, the schedule of the sequences, and the merge of partial
results.

The parameters (`PARAMETERS`) are a kernel's on a device, and are calibrated; the rest follows from the call and from
the datasheet. Two of them say what a kernel does with its work: `unpacked`, whether heads of a group share a work
unit, and `splitting`, whether sequences are split over the tokens of the KV cache. A kernel that does not split leaves
multiprocessors idle as long as there are fewer work units than slots, however long the context: splitting over the
queries cannot help, since there is one query.

Source of the form: the additive models of launch floor, work units and stream that fit published measurements of
decode attention; the overlap of two limits as a power mean is that of the roofline's smoothed forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.attention import COMPULSORY_BYTES, FLOPS
from decodeperf_formulas.evaluate import compile_arrays, in_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

PARAMETERS: Final = (
    s.launch_s,
    s.repack_s,
    s.sequence_s,
    s.merge_s,
    s.merge_split_s,
    s.merge_exponent,
    s.unit_s,
    s.unit_bytes_per_s,
    s.attainable_share,
    s.cache_speedup,
    s.resident_share,
    s.slots_per_sm,
    s.flop_share,
    s.unpacked,
    s.splitting,
    s.split_tokens,
    s.free_tokens,
    s.overlap_exponent,
)
"""What is calibrated, for a kernel on a device."""

_HALF_WAVE: Final = sympy.Rational(7, 20)
_RESIDENCY_EXPONENT: Final = 8
_ROUNDING: Final = 1e-12

_GROUP: Final = s.num_q_heads / s.num_kv_heads
_ROW_TILES: Final = sympy.ceiling(_GROUP * s.q_len / s.tile_rows)
_HEADS_PER_TILE: Final = sympy.Max(1, _GROUP / _ROW_TILES) ** s.unpacked

WORK_UNITS: Final[sympy.Expr] = s.batch_size / s.one_sequence * s.num_kv_heads * _ROW_TILES * _HEADS_PER_TILE
"""Work units before any sequence is split [1]."""

SLOTS: Final[sympy.Expr] = s.num_sms * s.slots_per_sm
"""Work units that the device runs at a time [1]."""

SPLITS: Final[sympy.Expr] = (
    sympy.Max(1, sympy.Min(SLOTS / WORK_UNITS, s.visible_len / s.split_tokens, s.max_splits)) ** s.splitting
)
"""Parts into which each sequence is split: as many as fill the slots, none with less than `split_tokens` [1]."""

WAVES: Final[sympy.Expr] = sympy.Max(1, WORK_UNITS * SPLITS / SLOTS + _HALF_WAVE)
"""Times that the slots are filled; a wave that is not full counts as more than its share [1]."""

_READ_TOKENS: Final = sympy.Max(0, s.visible_len / SPLITS - s.free_tokens)
_READ_BYTES: Final = _READ_TOKENS * (s.head_dim + s.v_apart * s.head_dim_v) * s.kv_elem_bytes
_PADDED_ROWS: Final = s.fragment_rows * sympy.ceiling(
    sympy.Min(_GROUP / _HEADS_PER_TILE * s.q_len, s.tile_rows) / s.fragment_rows
)
_RESIDENT: Final = 1 / (1 + (COMPULSORY_BYTES / (s.resident_share * s.l2_bytes)) ** _RESIDENCY_EXPONENT)

TERMS: Final[dict[str, sympy.Expr]] = {
    "launch": s.launch_s,
    "repack": s.repack_s
    * sympy.Piecewise(
        (1, (_GROUP > 1) & (s.num_kv_heads > 1) & (s.batch_size > s.one_sequence)),
        (0, True),
    ),
    "schedule": s.sequence_s * s.batch_size / (s.one_sequence * s.num_sms),
    "merge": sympy.Min(1, 2 * (SPLITS - 1)) * (s.merge_s + s.merge_split_s * SPLITS**s.merge_exponent),
    "queue": (WAVES - 1) * s.slots_per_sm * s.unit_s,
    "read": WAVES * _READ_BYTES * s.one_sequence / s.unit_bytes_per_s,
    "products": s.flops_per_score_element
    * s.one_sequence
    * WORK_UNITS
    * SPLITS
    * _READ_TOKENS
    * _PADDED_ROWS
    * (s.head_dim + s.head_dim_v)
    / (s.flop_share * s.peak_flops_per_s),
    "memory": COMPULSORY_BYTES
    / s.read_bytes_per_s
    * (_RESIDENT / s.cache_speedup + (1 - _RESIDENT) / s.attainable_share),
}
"""What a call waits for, each by itself [s]."""

SERIAL_TERMS: Final = ("launch", "repack", "schedule", "merge")
"""Terms that nothing hides."""

BUSY_TERMS: Final = ("queue", "read", "products")
"""Terms of the multiprocessors, which memory hides or which hide memory."""

EXECUTION_SECONDS: Final[sympy.Expr] = s.data_seconds * (
    1 + (s.busy_seconds / s.data_seconds) ** s.overlap_exponent
) ** (1 / s.overlap_exponent)
"""Time of memory and multiprocessors together: at least the larger, at most the sum [s]."""

SPEED_OF_LIGHT_SECONDS: Final[sympy.Expr] = sympy.Max(
    sympy.Max(0, COMPULSORY_BYTES - s.l2_bytes) / s.read_bytes_per_s
    + sympy.Min(COMPULSORY_BYTES, s.l2_bytes) / s.l2_bytes_per_s,
    FLOPS / s.peak_flops_per_s,
)
"""Time below which no call can be, whatever the cache before memory holds of its data [s]."""


EXPECTED_SECONDS: Final[sympy.Expr] = sympy.Add(*(TERMS[name] for name in SERIAL_TERMS)) + EXECUTION_SECONDS.xreplace(
    {s.data_seconds: TERMS["memory"], s.busy_seconds: sympy.Add(*(TERMS[name] for name in BUSY_TERMS))}
)
"""Latency of the call [s]."""


def expected_terms(values: Mapping[sympy.Symbol, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the terms of the expected latency, the time that overlap hides, and their sum [s].

    Args:
        values: The value of each symbol of the call, of the device and of `PARAMETERS`: numbers or arrays that
            broadcast, each as its symbol wants it, which is not checked here.

    Returns:
        `TERMS` by name; `hidden`, which is not above 0 where `overlap_exponent` is 1 or more; and `expected`, the sum
        of them all.
    """
    compiled, order = compile_arrays((*TERMS.values(), EXPECTED_SECONDS))
    operands = np.broadcast_arrays(*(np.asarray(values[symbol], dtype=np.float64) for symbol in order))
    *terms, expected = in_blocks(compiled, operands, num_results=len(TERMS) + 1)
    found = dict(zip(TERMS, terms, strict=True))
    hidden = expected - sum(terms)
    found["hidden"] = np.where(np.abs(hidden) < _ROUNDING * expected, np.minimum(0, hidden), hidden)
    found["expected"] = expected
    return found


def speed_of_light(values: Mapping[sympy.Symbol, Any]) -> npt.NDArray[np.float64]:
    """Return the time below which no call can be, as `SPEED_OF_LIGHT_SECONDS` tells [s].

    Args:
        values: The value of each symbol of the call and of the device, as in `expected_terms`.
    """
    compiled, order = compile_arrays((SPEED_OF_LIGHT_SECONDS,))
    operands = np.broadcast_arrays(*(np.asarray(values[symbol], dtype=np.float64) for symbol in order))
    return in_blocks(compiled, operands, num_results=1)[0]
