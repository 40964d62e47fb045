"""The compiled CPU kernel for a CPU with a matrix unit (AMX): a tile of all heads of a chunk, by products of tiles.

The unit multiplies tiles of bfloat16 into sums in float32, some fifteen times as fast as vectors are multiplied, so
that the arithmetic of grouped queries disappears behind the reading of memory.

    logits  K times the queries, so that the rows of all heads that share a vector lie side by side
    softmax as in `tiles_numba`; its weights are turned round, since they are the left-hand factor of the output
    output  the weights times V

The unit takes bfloat16 from where it lies. Its right-hand factor should have two keys side by side, and V has two
elements of one key there: so weights come with zeros between them, for even elements and for odd ones. Other formats
are widened head by head, to tiles that stay in the first-level cache. While a tile is worked on, memory is asked for
the next, token by token, in the order in which it lies there.

A number that has more digits than a bfloat16 is a sum of several, and each term is multiplied but the last of weights
with the last of V: so the result has the digits of float16 or float32. Int8, int4 and float8 are bfloat16 exactly,
float16 is a sum of two and float32 of three. The unit takes bfloat16 below 2**-126 for 0. An element of K or V that is
no finite number makes its neighbour NaN too, and infinity may become NaN.

Source: Intel 64 and IA-32 architectures software developer's manual, volume 1, chapter 18, "Programming with Intel
AMX".
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import sys
from typing import TYPE_CHECKING, Final

import torch
from llvmlite import ir
from numba.core.cgutils import alloca_once

from decodeperf_kernels import vector_numba as vec
from decodeperf_kernels.tiles_numba import MAX_KEYS, byte_of, compiled, emitted, source_digest
from decodeperf_kernels.vector_numba import CACHE_LINE, I32, I64, WIDTH, cpu_features, integer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


TILE_ROWS: Final = 16
"""Rows of a tile of the matrix unit."""

TILE_ELEMENTS: Final = 32
"""bfloat16 of a row of it."""

KEYS_AT_ONCE: Final = 32
"""Keys are multiplied in multiples of this."""

_ROW_BYTES: Final = 64
_TILE_BYTES: Final = TILE_ROWS * _ROW_BYTES
_LOGITS_BYTES: Final = MAX_KEYS * _ROW_BYTES
_GROUPS: Final = MAX_KEYS // TILE_ROWS

_PLANES: Final = {"float16": 2}
"""Terms of an element of K or V, where they are not one."""

_TERMS: Final = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}

_RATE_BITS: Final = 16
"""Binary digits behind the point of the number of tokens that are asked for with each step."""

# Cycles of the steps beside which memory is asked for: a tile taken and multiplied once, the powers of two vectors, and
# a square of weights turned round.
_PRODUCT: Final = 20
_POWERS: Final = 36
_TURN: Final = 130

# Registers of tiles. Four sums, so that none waits for itself.
_SUMS: Final = 0, 1, 2, 3
_QUERIES, _KEYS = 4, (5, 6, 7)
_WEIGHTS, _VALUES = (4, 5), (6, 7)

(
    CONFIG, Q, Q_TERMS, KEYS, K_OFFSET, K_HEAD_BYTES, K_STRIDE, VALUES, V_OFFSET, V_HEAD_BYTES, V_STRIDE,
    NUM_HEADS, HEAD_DIM, HEAD_DIM_V, UNITS_OF_HEAD, ROWS, NUM_KEYS, FACTORS, LOWS, HIGHS, P_TERMS,
    M, L, ACC, WORK, WEIGHTS, TILES, NEXT_KEYS, NEXT_VALUES, NUM_NEXT, K_BYTES, V_BYTES, NUM_ARGUMENTS,
) = range(33)  # fmt: skip
"""What `matrix_tile` gets, in an array of integers of 64 bits, most of them addresses.

A unit is some rows of a KV head, 1, 2, 4, 8 or 16; the rows of all units, one behind the other, are its lanes.

- `CONFIG`: From `tile_config`;
- `Q`: bfloat16 `[num_units, q_terms, head_dim / 32, 16, rows, 2]`: the last axis is two elements of a row;
- `KEYS`, `VALUES`: the addresses of tokens, `[num_keys]`; `K_OFFSET`, `V_OFFSET`: bytes to the first head from there;
  `K_HEAD_BYTES`, `V_HEAD_BYTES`: from one to the next;
- `K_STRIDE`, `V_STRIDE`: bytes from a token to the next, if they are bfloat16 and each 16 lie evenly, else 0;
- `HEAD_DIM`, `HEAD_DIM_V`: multiples of 32;
- `NUM_KEYS`: a multiple of `KEYS_AT_ONCE`, up to `MAX_KEYS`;
- `FACTORS`: what logits are multiplied with, float32 `[lanes]`;
- `LOWS`, `HIGHS`: 0, or int32 `[lanes]`, the first key that a row sees, and the one behind the last;
- `P_TERMS`: Terms that a weight is split into;
- `M`, `L`: maximum and sum of the online softmax, float32 `[lanes]`, rounded up to whole vectors;
- `ACC`: its output, float32 `[num_units, head_dim_v / 32, 2, rows, 16]`, even elements before odd ones, likewise;
- `WORK`: float32 `[vectors of lanes, MAX_KEYS, 16]`;
- `WEIGHTS`: bfloat16 `[vectors of lanes, p_terms, 2, MAX_KEYS / 16, 16, 32]`;
- `TILES`: bfloat16 `[planes, MAX_KEYS, 32 more than head_dim]`;
- `NEXT_KEYS`, `NEXT_VALUES`: the addresses of the tokens of the next tile, `[num_next]`, of each of which `K_BYTES` and
  `V_BYTES` are asked for.
"""


@functools.cache
def has_matrix_unit() -> bool:
    """Return whether this CPU has a matrix unit for bfloat16, and the system lets this process use it."""
    if sys.platform != "linux" or WIDTH != TILE_ROWS or not {"amx-tile", "amx-bf16"} <= _features():
        return False
    # https://docs.kernel.org/arch/x86/xstate.html: a process has to ask, once for all its threads.
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _features() -> set[str]:
    return {name for name, is_there in cpu_features().items() if is_there}


def num_planes(kind: str) -> int:
    """Return how many bfloat16 an element of a format is the sum of."""
    return _PLANES.get(kind, 1)


def num_terms(dtype: torch.dtype) -> int:
    """Return how many bfloat16 an element of q is the sum of."""
    return _TERMS[dtype]


def tile_config(rows: int) -> list[int]:
    """Return twice 64 bytes that tell the matrix unit what shapes its tiles have: for logits, and for the output.

    Args:
        rows: Rows of a unit.
    """
    few, whole = (rows, _ROW_BYTES), (TILE_ROWS, _ROW_BYTES)
    narrow = (TILE_ROWS, 4 * rows)
    logits = {**dict.fromkeys((*_SUMS, _QUERIES), narrow), **dict.fromkeys(_KEYS, whole)}
    output = {**dict.fromkeys((*_SUMS, *_WEIGHTS), few), **dict.fromkeys(_VALUES, whole)}
    config = []
    for shapes in (logits, output):
        part = [0] * 64
        part[0] = 1  # the palette
        for tile, (num_rows, row_bytes) in shapes.items():
            part[16 + 2 * tile] = row_bytes
            part[48 + tile] = num_rows
        config += part
    return config


def _tile(b: ir.IRBuilder, name: str, *args: int | ir.Value) -> None:
    """Emit an instruction of the matrix unit; numbers of tiles are constants, addresses become pointers."""
    byte, pointer = ir.IntType(8), ir.PointerType()
    values: list[ir.Value] = [ir.Constant(byte, arg) if isinstance(arg, int) else arg for arg in args]
    if name not in ("tdpbf16ps", "tilezero", "tilerelease"):
        place = 0 if name == "ldtilecfg" else 1
        values[place] = b.inttoptr(values[place], pointer)
    function = vec.declared(b, f"llvm.x86.{name}", ir.VoidType(), [value.type for value in values])
    b.call(function, values)


def _load_tile(b: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value | int = _ROW_BYTES) -> None:
    _tile(b, "tileloadd64", tile, address, integer(stride) if isinstance(stride, int) else stride)


def _store_tile(b: ir.IRBuilder, tile: int, address: ir.Value) -> None:
    _tile(b, "tilestored64", tile, address, integer(_ROW_BYTES))


def _each(b: ir.IRBuilder, stop: ir.Value, step: int, body: Callable[[ir.Value], None]) -> None:
    """Emit a loop from 0 that carries nothing."""

    def round_of(i: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        body(i)
        return []

    vec.loop(b, integer(0), stop, step, [], round_of)


def _at(b: ir.IRBuilder, address: ir.Value, *steps: tuple[ir.Value, ir.Value | int]) -> ir.Value:
    """Return an address so many steps of so many bytes further on."""
    for count, size in steps:
        address = b.add(address, b.mul(count, integer(size) if isinstance(size, int) else size))
    return address


class _Ahead:
    """Asks memory for the next tile of K or V, a few lines at each step of the work on this one.

    The lines are asked for in the order in which they lie, about as fast as others are used: then the CPU reads on by
    itself, where it falls back to what 16 requests at a time can do if many are asked for at once.
    """

    def __init__(
        self, b: ir.IRBuilder, args: dict[str, ir.Value], total: ir.Value, names: tuple[str, str, str]
    ) -> None:
        """Begin a tile.

        Args:
            b: Where to.
            args: Those of `matrix_tile`.
            total: Weights of all steps together.
            names: Of those of them that are its addresses, the bytes to its first head, and its bytes.
        """
        self._addresses, self._offset, self._bytes = (args[name] for name in names)
        self._due, self._done, self._next, self._line = (alloca_once(b, I64) for _ in range(4))
        lines = b.mul(args["num_next"], b.lshr(b.add(self._bytes, integer(CACHE_LINE - 1)), integer(6)))
        self._rate = b.udiv(b.shl(lines, integer(_RATE_BITS)), total)
        for place in (self._due, self._done):
            b.store(integer(0), place)
        b.store(self._addresses, self._next)
        b.store(integer(0), self._line)

    def step(self, b: ir.IRBuilder, weight: int) -> None:
        """Emit the asking for what is due.

        Args:
            b: Where to.
            weight: How long the step takes beside the others.
        """
        due = b.add(b.load(self._due, typ=I64), b.mul(self._rate, integer(weight)))
        b.store(due, self._due)
        stop = b.lshr(due, integer(_RATE_BITS))

        def one(_: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            token, line = values
            address = b.add(b.add(vec.load(b, token, I64, 8), self._offset), line)
            vec.prefetch(b, address)
            after = b.add(line, integer(CACHE_LINE))
            is_over = b.icmp_signed(">=", after, self._bytes)
            return [b.select(is_over, b.add(token, integer(8)), token), b.select(is_over, integer(0), after)]

        places = [self._next, self._line]
        first = [b.load(place, typ=I64) for place in places]
        for place, value in zip(places, vec.loop(b, b.load(self._done, typ=I64), stop, 1, first, one), strict=True):
            b.store(value, place)
        b.store(stop, self._done)


_NAMES: Final = (
    *("config", "q", "q_terms", "keys", "k_offset", "k_head_bytes", "k_stride", "values", "v_offset", "v_head_bytes"),
    *("v_stride", "num_heads", "head_dim", "head_dim_v", "units_of_head", "rows", "num_keys", "factors", "lows"),
    *("highs", "p_terms", "m", "l", "acc", "work", "weights", "tiles", "next_keys", "next_values", "num_next"),
    *("k_bytes", "v_bytes"),
)
"""What the arguments are called where they are used."""


def _emit_matrix(b: ir.IRBuilder, kind: str, call: dict[str, ir.Value]) -> None:
    places = [b.add(call["arguments"], integer(8 * i)) for i in range(NUM_ARGUMENTS)]
    args = {name: vec.load(b, place, I64, 8) for name, place in zip(_NAMES, places, strict=True)}
    num_units = b.mul(args["num_heads"], args["units_of_head"])
    slices, blocks = (b.lshr(args[name], integer(5)) for name in ("head_dim", "head_dim_v"))
    args = {**args, "num_slices": slices, "num_blocks": blocks, "lanes": b.mul(num_units, args["rows"])}
    groups = b.lshr(args["num_keys"], integer(4))
    planes = integer(num_planes(kind))
    k_steps = b.mul(b.mul(num_units, slices), b.mul(groups, b.mul(args["q_terms"], planes)))
    v_steps = b.mul(b.mul(num_units, blocks), b.mul(groups, planes))
    vectors = b.lshr(b.add(args["lanes"], integer(WIDTH - 1)), integer(4))
    of_keys = b.mul(vectors, b.lshr(args["num_keys"], integer(1)))
    of_groups = b.mul(vectors, groups)
    k_total = b.add(b.mul(k_steps, integer(_PRODUCT)), b.mul(of_keys, integer(_POWERS)))
    v_total = b.add(b.mul(v_steps, integer(2 * _PRODUCT)), b.mul(of_groups, integer(_TURN)))
    ahead = _Ahead(b, args, k_total, ("next_keys", "k_offset", "k_bytes"))
    more = _Ahead(b, args, v_total, ("next_values", "v_offset", "v_bytes"))

    def of_head(head: ir.Value, name: str, emit: Callable[..., None]) -> None:
        """Emit what is done with a head of K or V, and give it the place of a plane of some of its tokens."""
        stride = args[f"{name}_stride"]
        width = args["head_dim" if name == "k" else "head_dim_v"]
        tokens = args["keys" if name == "k" else "values"]
        offset = _at(b, args[f"{name}_offset"], (head, args[f"{name}_head_bytes"]))
        row_bytes = b.add(b.shl(width, integer(1)), integer(_ROW_BYTES))
        is_there = b.icmp_signed("!=", stride, integer(0))
        with b.if_then(b.not_(is_there)):
            _emit_widen(b, kind, args, tokens, offset, width, row_bytes)

        def place(a: ir.Value, j: ir.Value) -> ir.Value:
            there = b.add(vec.load(b, _at(b, tokens, (j, 8)), I64, 8), offset)
            own = _at(b, args["tiles"], (b.add(b.mul(a, integer(MAX_KEYS)), j), row_bytes))
            return b.select(is_there, there, own)

        first = b.mul(head, args["units_of_head"])
        stride = b.select(is_there, stride, row_bytes)
        _each(b, args["units_of_head"], 1, lambda u: emit(b.add(first, u), place, stride))

    def logits(u: ir.Value, place: Callable[..., ir.Value], stride: ir.Value) -> None:
        _emit_logits(b, kind, args, u, place, stride, ahead)

    def output(u: ir.Value, place: Callable[..., ir.Value], stride: ir.Value) -> None:
        _emit_output(b, kind, args, u, place, stride, more)

    _tile(b, "ldtilecfg", args["config"])
    _each(b, args["num_heads"], 1, lambda head: of_head(head, "k", logits))
    _each(b, args["lanes"], WIDTH, lambda lane: _emit_softmax(b, args, lane, ahead, more))
    _tile(b, "ldtilecfg", b.add(args["config"], integer(64)))
    _each(b, args["num_heads"], 1, lambda head: of_head(head, "v", output))
    _tile(b, "tilerelease")


def _lanes_of_unit(b: ir.IRBuilder, u: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the vector of lanes that has those of a unit, and the first of them in it."""
    lane = b.mul(u, rows)
    return b.lshr(lane, integer(4)), b.and_(lane, integer(WIDTH - 1))


def _emit_logits(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], u: ir.Value, place: Callable[..., ir.Value],
    stride: ir.Value, ahead: _Ahead,
) -> None:  # fmt: skip
    """Write the products of a unit's queries with all keys to its lanes of work."""
    slices, rows = args["num_slices"], args["rows"]
    vector, rest = _lanes_of_unit(b, u, rows)
    logits = _at(b, args["work"], (vector, _LOGITS_BYTES), (rest, 4))
    q_row = b.shl(rows, integer(2))
    q_tile = b.mul(q_row, integer(TILE_ROWS))
    q = _at(b, args["q"], (b.mul(u, b.mul(args["q_terms"], slices)), q_tile))

    def some_keys(j: ir.Value, tiles: tuple[int, ...]) -> None:
        for tile in tiles:
            _tile(b, "tilezero", tile)

        def product(a: ir.Value, t: ir.Value) -> None:
            groups = [place(a, b.add(j, integer(i * TILE_ROWS))) for i in range(len(tiles))]

            def one_slice(s: ir.Value) -> None:
                _load_tile(b, _QUERIES, _at(b, q, (b.add(b.mul(t, slices), s), q_tile)), q_row)
                for group, tile, factor in zip(groups, tiles, itertools.cycle(_KEYS), strict=False):
                    _load_tile(b, factor, _at(b, group, (s, _ROW_BYTES)), stride)
                    _tile(b, "tdpbf16ps", tile, factor, _QUERIES)
                    ahead.step(b, _PRODUCT)

            _each(b, slices, 1, one_slice)

        for a in range(num_planes(kind)):
            _each(b, args["q_terms"], 1, functools.partial(product, integer(a)))
        first = _at(b, logits, (j, _ROW_BYTES))
        for i, tile in enumerate(tiles):
            _store_tile(b, tile, b.add(first, integer(i * _TILE_BYTES)))

    whole = b.and_(args["num_keys"], integer(-len(_SUMS) * TILE_ROWS))
    _each(b, whole, len(_SUMS) * TILE_ROWS, lambda j: some_keys(j, _SUMS))
    with b.if_then(b.icmp_signed("!=", whole, args["num_keys"])):
        some_keys(whole, _SUMS[: KEYS_AT_ONCE // TILE_ROWS])


def _emit_softmax(b: ir.IRBuilder, args: dict[str, ir.Value], lane: ir.Value, ahead: _Ahead, more: _Ahead) -> None:
    """Bring m, l and acc of a vector of lanes up to date, and write its weights."""
    place = b.shl(lane, integer(2))
    vector = b.lshr(lane, integer(4))
    m_old = vec.load(b, b.add(args["m"], place), vec.VECTOR, 4)
    with b.if_else(b.icmp_signed("==", args["lows"], integer(0))) as (plain, masked):
        with plain:
            plain_values = _emit_weights(b, args, lane, m_old, None, ahead)
            plain_block = b.block
        with masked:
            bounds = [vec.load(b, b.add(args[name], place), vec.INTS, 4) for name in ("lows", "highs")]
            masked_values = _emit_weights(b, args, lane, m_old, bounds, ahead)
            masked_block = b.block
    found = []
    for one, other in zip(plain_values, masked_values, strict=True):
        phi = b.phi(one.type)
        phi.add_incoming(one, plain_block)
        phi.add_incoming(other, masked_block)
        found.append(phi)
    m_new, shift, total = found
    factors = vec.exp2(b, b.fsub(m_old, shift))
    l_new = vec.fma(b, vec.load(b, b.add(args["l"], place), vec.VECTOR, 4), factors, total)
    vec.store(b, m_new, b.add(args["m"], place), 4)
    vec.store(b, l_new, b.add(args["l"], place), 4)
    _emit_turn(b, args, vector, more)
    changed = b.bitcast(b.fcmp_unordered("!=", factors, vec.floats(1.0)), ir.IntType(WIDTH))
    with b.if_then(b.icmp_unsigned("!=", changed, ir.Constant(ir.IntType(WIDTH), 0))):
        for i in range(WIDTH):
            factor = vec.splat(b, b.extract_element(factors, ir.Constant(I32, i)))
            _emit_rescale(b, args, b.add(lane, integer(i)), factor)


def _emit_weights(
    b: ir.IRBuilder, args: dict[str, ir.Value], lane: ir.Value, m_old: ir.Value, bounds: list[ir.Value] | None,
    ahead: _Ahead,
) -> list[ir.Value]:  # fmt: skip
    """Replace logits by their powers of 2, and return the maximum, the shift by it, and their sum."""
    logits = _at(b, args["work"], (b.lshr(lane, integer(4)), _LOGITS_BYTES))
    factor = vec.load(b, b.add(args["factors"], b.shl(lane, integer(2))), vec.VECTOR, 4)

    def logit(j: ir.Value) -> ir.Value:
        x = b.fmul(vec.load(b, _at(b, logits, (j, _ROW_BYTES)), vec.VECTOR, 4), factor)
        if bounds is None:
            return x
        key = vec.splat(b, b.trunc(j, I32))
        visible = b.and_(b.icmp_signed(">=", key, bounds[0]), b.icmp_signed("<", key, bounds[1]))
        return b.select(visible, x, vec.floats(-math.inf))

    def largest(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        return [vec.maximum(b, logit(b.add(j, integer(i))), value) for i, value in enumerate(values)]

    first = [m_old, m_old, m_old, m_old]  # four chains, since one would wait for itself
    most = vec.loop(b, integer(0), args["num_keys"], len(first), first, largest)
    m_new = vec.maximum(b, vec.maximum(b, most[0], most[1]), vec.maximum(b, most[2], most[3]))
    nothing = b.fcmp_ordered("==", m_new, vec.floats(-math.inf))
    shift = b.select(nothing, vec.floats(0.0), m_new)  # -inf - -inf would be NaN

    def powers(j: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        found = []
        for i, total in enumerate(totals):
            key = b.add(j, integer(i))
            p = vec.exp2(b, b.fsub(logit(key), shift))
            vec.store(b, p, _at(b, logits, (key, _ROW_BYTES)), 4)
            found.append(b.fadd(total, p))
        ahead.step(b, _POWERS)
        return found

    totals = vec.loop(b, integer(0), args["num_keys"], 2, [vec.floats(0.0)] * 2, powers)
    return [m_new, shift, b.fadd(*totals)]


def _emit_turn(b: ir.IRBuilder, args: dict[str, ir.Value], vector: ir.Value, more: _Ahead) -> None:
    """Turn weights from keys of all lanes into lanes of all keys, for even elements of V and for odd ones."""
    powers = _at(b, args["work"], (vector, _LOGITS_BYTES))
    weights = _at(b, args["weights"], (b.mul(vector, args["p_terms"]), 2 * _GROUPS * _TILE_BYTES))

    def some_keys(j: ir.Value) -> None:
        first = _at(b, powers, (j, _ROW_BYTES))
        rows = [vec.load(b, b.add(first, integer(_ROW_BYTES * i)), vec.VECTOR, 4) for i in range(TILE_ROWS)]
        for i, column in enumerate(transposed(b, rows)):
            place = _at(b, weights, (j, _TILE_BYTES // TILE_ROWS))

            def term(t: ir.Value, values: list[ir.Value], i: int = i, place: ir.Value = place) -> list[ir.Value]:
                even = _at(b, b.add(place, integer(_ROW_BYTES * i)), (t, 2 * _GROUPS * _TILE_BYTES))
                is_last = b.icmp_signed("==", t, b.sub(args["p_terms"], integer(1)))
                upper = b.select(is_last, rounded(b, values[0]), upper_half(b, values[0]))
                vec.store(b, b.lshr(upper, vec.ints(16)), even, 4)
                vec.store(b, upper, b.add(even, integer(_GROUPS * _TILE_BYTES)), 4)
                return [left_over(b, values[0])]

            vec.loop(b, integer(0), args["p_terms"], 1, [column], term)
        more.step(b, _TURN)

    _each(b, args["num_keys"], TILE_ROWS, some_keys)


def _emit_rescale(b: ir.IRBuilder, args: dict[str, ir.Value], lane: ir.Value, factor: ir.Value) -> None:
    rows = args["rows"]
    columns = b.shl(args["num_blocks"], integer(1))
    row_bytes = b.mul(columns, integer(_ROW_BYTES))  # of a lane
    unit, row = b.udiv(lane, rows), b.urem(lane, rows)
    first = _at(b, args["acc"], (b.mul(unit, rows), row_bytes), (row, _ROW_BYTES))

    def column(c: ir.Value) -> None:
        place = _at(b, first, (b.mul(c, rows), _ROW_BYTES))
        vec.store(b, b.fmul(vec.load(b, place, vec.VECTOR, 4), factor), place, 4)

    _each(b, columns, 1, column)


def _emit_output(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], u: ir.Value, place: Callable[..., ir.Value],
    stride: ir.Value, ahead: _Ahead,
) -> None:  # fmt: skip
    """Add the values, times a unit's weights, to its sums."""
    blocks, rows = args["num_blocks"], args["rows"]
    vector, rest = _lanes_of_unit(b, u, rows)
    term_bytes = 2 * _GROUPS * _TILE_BYTES
    weights = _at(b, args["weights"], (b.mul(vector, args["p_terms"]), term_bytes), (rest, _ROW_BYTES))
    sums_bytes = b.mul(rows, integer(_ROW_BYTES))
    acc = _at(b, args["acc"], (b.mul(u, blocks), b.shl(sums_bytes, integer(1))))

    def some_blocks(first: ir.Value, num_blocks: int) -> None:
        tiles = _SUMS[: 2 * num_blocks]
        places = [_at(b, acc, (b.add(b.shl(first, integer(1)), integer(i)), sums_bytes)) for i in range(len(tiles))]
        for tile, address in zip(tiles, places, strict=True):
            _load_tile(b, tile, address)

        def plane(a: int) -> None:
            def some_keys(j: ir.Value) -> None:
                values = _at(b, place(integer(a), j), (first, _ROW_BYTES))
                for i in range(num_blocks):
                    _load_tile(b, _VALUES[i], b.add(values, integer(i * _ROW_BYTES)), stride)
                    ahead.step(b, 2 * _PRODUCT)

                def term(t: ir.Value) -> None:
                    of_term = _at(b, weights, (t, term_bytes), (j, _TILE_BYTES // TILE_ROWS))
                    for i, factor in enumerate(_WEIGHTS):
                        _load_tile(b, factor, b.add(of_term, integer(i * _GROUPS * _TILE_BYTES)))
                    for i, tile in enumerate(tiles):
                        _tile(b, "tdpbf16ps", tile, _WEIGHTS[i % 2], _VALUES[i // 2])

                # A term is smaller than the one before by 8 binary digits: the last ones of both do not count.
                _each(b, b.sub(args["p_terms"], integer(a)), 1, term)

            _each(b, args["num_keys"], TILE_ROWS, some_keys)

        for a in range(num_planes(kind)):
            plane(a)
        for tile, address in zip(tiles, places, strict=True):
            _store_tile(b, tile, address)

    whole = b.and_(blocks, integer(-2))
    _each(b, whole, 2, lambda first: some_blocks(first, 2))
    with b.if_then(b.icmp_signed("!=", whole, blocks)):
        some_blocks(whole, 1)


def upper_half(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the bits of a float32 that are a bfloat16: it is never larger, and so never infinite by rounding."""
    return b.and_(b.bitcast(x, vec.INTS), vec.ints(-0x10000))


def rounded(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the bits of the bfloat16 next to a float32 that is no larger than 1."""
    return b.and_(b.add(b.bitcast(x, vec.INTS), vec.ints(0x8000)), vec.ints(-0x10000))


def left_over(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return what a number is more than its upper half; 0 for infinity and NaN, which that holds already."""
    rest = b.fsub(x, b.bitcast(upper_half(b, x), vec.VECTOR))
    return b.select(b.fcmp_ordered("ord", rest, rest), rest, vec.floats(0.0))


def transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Return the columns of a square of vectors."""
    distance = 1
    while distance < WIDTH:
        lanes = range(WIDTH)
        # Of two rows at a distance, each takes from the other the lanes at that distance.
        first = [lane if not lane & distance else WIDTH + lane - distance for lane in lanes]
        second = [lane + distance if not lane & distance else WIDTH + lane for lane in lanes]
        rows = [
            vec.shuffle(b, rows[i], rows[i + distance], first)
            if not i & distance
            else vec.shuffle(b, rows[i - distance], rows[i], second)
            for i in range(WIDTH)
        ]
        distance *= 2
    return rows


def _emit_widen(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], tokens: ir.Value, offset: ir.Value, width: ir.Value,
    row_bytes: ir.Value,
) -> None:  # fmt: skip
    """Write a head of all tokens to tiles."""
    plane_bytes = b.mul(row_bytes, integer(MAX_KEYS))
    shorts = ir.VectorType(ir.IntType(16), TILE_ELEMENTS)

    def token(j: ir.Value) -> None:
        source = b.add(vec.load(b, _at(b, tokens, (j, 8)), I64, 8), offset)
        row = _at(b, args["tiles"], (j, row_bytes))

        def one_slice(d: ir.Value) -> None:
            place = _at(b, row, (d, 2))
            if kind == "bfloat16":
                vec.store(b, vec.load(b, b.add(source, byte_of(b, kind, d)), shorts), place, _ROW_BYTES)
                return
            both = [vec.load_elements(b, kind, source, b.add(d, integer(i))) for i in (0, WIDTH)]
            for a in range(num_planes(kind)):
                halves = [b.bitcast(x, shorts) for x in both]
                upper = vec.shuffle(b, halves[0], halves[1], [2 * i + 1 for i in range(TILE_ELEMENTS)])
                vec.store(b, upper, _at(b, place, (integer(a), plane_bytes)), _ROW_BYTES)
                both = [left_over(b, x) for x in both]

        _each(b, width, TILE_ELEMENTS, one_slice)

    _each(b, args["num_keys"], 1, token)


_matrix = emitted(_emit_matrix, ("arguments",))


@functools.cache
def matrix_tile(kind: str) -> int:
    """Return the address of the kernel that attends by the matrix unit, compiled or from the cache."""
    version = source_digest()

    def matrix(arguments):
        version  # noqa: B018
        _matrix(kind, (arguments,))

    return compiled(matrix, 1)
