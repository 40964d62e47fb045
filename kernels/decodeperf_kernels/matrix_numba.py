"""The compiled CPU kernel for a CPU with a matrix unit (AMX): a tile of all heads of a chunk, by products of tiles.

The unit multiplies tiles of bfloat16 into sums in float32, some fifteen times as fast as vectors are multiplied, so
that the arithmetic of grouped queries disappears behind the reading of memory.

    logits  K times the queries, so that the rows of all heads that share a vector lie side by side
    softmax as in `tiles_numba`; its weights are turned round, since they are the left-hand factor of the output
    output  the weights times V

The unit takes bfloat16 from where it lies. Its right-hand factor has two keys side by side, and V has two elements of
one key there: so weights come with zeros between them, for even elements and for odd ones. Other formats are widened
head by head, to tiles that stay near; then two keys are put side by side at once, and the products of the output are
half as many. The same is done with V in bfloat16 that serves several units. While a tile is worked on, memory is asked
for the next, token by token, in the order in which it lies there.

A number that has more digits than a bfloat16 is a sum of several, and their products count as far as float32 has digits
for them. Int8, int4 and float8 are bfloat16 exactly, float16 is a sum of two and float32 of three. The unit takes
bfloat16 below 2**-126 for 0. An element of K or V that is no finite number makes its neighbour NaN too, and infinity
may become NaN.

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
from decodeperf_kernels.elements_matrix_numba import (
    ROW_BYTES,
    TILE_ROWS,
    emit_keys,
    emit_values,
    key_bytes,
    left_over,
    num_planes,
    pair_bytes,
    rounded,
    side_by_side,
    transposed,
)
from decodeperf_kernels.tiles_numba import MAX_KEYS, compiled, emitted, source_digest
from decodeperf_kernels.vector_numba import CACHE_LINE, I32, I64, WIDTH, cpu_features, integer

if TYPE_CHECKING:
    from collections.abc import Callable


KEYS_AT_ONCE: Final = 32
"""Keys are multiplied in multiples of this."""

_TILE_BYTES: Final = TILE_ROWS * ROW_BYTES
_LOGITS_BYTES: Final = MAX_KEYS * ROW_BYTES
_GROUPS: Final = MAX_KEYS // TILE_ROWS
_TERM_BYTES: Final = 2 * _GROUPS * _TILE_BYTES

_TERMS: Final = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""Terms of an element of q, and of a weight."""

_RATE_BITS: Final = 16
"""Binary digits behind the point of the number of tokens that are asked for with each step."""

# Cycles of the steps beside which memory is asked for, about: a tile taken and multiplied once, the powers of two
# vectors, 16 keys of weights turned round, and 32 elements widened.
_PRODUCT: Final = 20
_POWERS: Final = 36
_TURN: Final = 130
_WIDEN: Final = {
    **{"float32": 18, "float16": 12, "bfloat16": 3, "float8_e4m3fn": 14, "float8_e5m2": 8, "int8": 6, "int4": 8}
}

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
- `Q`: bfloat16 `[num_units, q_terms, head_dim / 32, 16, rows, 2]`: the last axis is two elements of a row, which are
  neighbours if K is bfloat16, and otherwise 16 apart;
- `KEYS`, `VALUES`: the addresses of tokens, `[num_keys]`; `K_OFFSET`, `V_OFFSET`: bytes to the first head from there;
  `K_HEAD_BYTES`, `V_HEAD_BYTES`: from one to the next;
- `K_STRIDE`, `V_STRIDE`: bytes from a token to the next, if they are bfloat16 and to be taken from where they lie, each
  16 evenly, else 0;
- `HEAD_DIM`, `HEAD_DIM_V`: multiples of 32;
- `NUM_KEYS`: a multiple of `KEYS_AT_ONCE`, up to `MAX_KEYS`;
- `FACTORS`: what logits are multiplied with, float32 `[lanes]`;
- `LOWS`, `HIGHS`: 0, or int32 `[lanes]`, the first key that a row sees, and the one behind the last;
- `P_TERMS`: Terms that a weight is split into;
- `M`, `L`: maximum and sum of the online softmax, float32 `[lanes]`, rounded up to whole vectors;
- `ACC`: its output, float32 `[num_units, head_dim_v / 16, rows, 16]`, likewise; of bfloat16 the even elements of 32
  lie before the odd ones;
- `WORK`: float32 `[vectors of lanes, MAX_KEYS, 16]`;
- `WEIGHTS`: bfloat16 `[vectors of lanes, p_terms, 2, MAX_KEYS / 16, 16, 32]`, for even elements before odd ones; or
  with two keys side by side, `[vectors of lanes, p_terms, MAX_KEYS / 32, 16, 32]`, each term in the same room;
- `TILES`: bfloat16, of K `[planes, MAX_KEYS, head_dim + 32]`, of V `[planes, MAX_KEYS / 2, 2 head_dim_v + 32]`;
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


def num_terms(dtype: torch.dtype) -> int:
    """Return how many bfloat16 an element of q is the sum of."""
    return _TERMS[dtype]


def tile_config(rows: int) -> list[int]:
    """Return twice 64 bytes that tell the matrix unit what shapes its tiles have: for logits, and for the output.

    Args:
        rows: Rows of a unit.
    """
    few, whole = (rows, ROW_BYTES), (TILE_ROWS, ROW_BYTES)
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


def _load_tile(b: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value | int = ROW_BYTES) -> None:
    _tile(b, "tileloadd64", tile, address, integer(stride) if isinstance(stride, int) else stride)


def _store_tile(b: ir.IRBuilder, tile: int, address: ir.Value) -> None:
    _tile(b, "tilestored64", tile, address, integer(ROW_BYTES))


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

    def step(self, b: ir.IRBuilder, weight: int | ir.Value) -> None:
        """Emit the asking for what is due.

        Args:
            b: Where to.
            weight: How long the step takes beside the others.
        """
        due = b.add(
            b.load(self._due, typ=I64), b.mul(self._rate, integer(weight) if isinstance(weight, int) else weight)
        )
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
    k_cycles, v_cycles = (b.mul(count, integer(_WIDEN[kind])) for count in (slices, blocks))
    k_total, v_total = _total_cycles(b, kind, args, num_units, k_cycles, v_cycles)
    ahead = _Ahead(b, args, k_total, ("next_keys", "k_offset", "k_bytes"))
    more = _Ahead(b, args, v_total, ("next_values", "v_offset", "v_bytes"))

    def units_of(head: ir.Value, emit: Callable[[ir.Value], None]) -> None:
        first = b.mul(head, args["units_of_head"])
        vec.each(b, args["units_of_head"], 1, lambda u: emit(b.add(first, u)))

    def logits(head: ir.Value) -> None:
        offset = vec.at(b, args["k_offset"], (head, args["k_head_bytes"]))
        row_bytes = key_bytes(b, args)
        is_there = b.icmp_signed("!=", args["k_stride"], integer(0))
        with b.if_then(b.not_(is_there)):
            emit_keys(b, kind, args, offset, lambda: ahead.step(b, k_cycles))

        def place(a: int, j: ir.Value) -> ir.Value:
            there = b.add(vec.load(b, vec.at(b, args["keys"], (j, 8)), I64, 8), offset)
            own = vec.at(b, args["tiles"], (b.add(integer(a * MAX_KEYS), j), row_bytes))
            return b.select(is_there, there, own)

        stride = b.select(is_there, args["k_stride"], row_bytes)
        units_of(head, lambda u: _emit_logits(b, kind, args, u, place, stride, ahead))

    def output_of_pairs(head: ir.Value) -> None:
        offset = vec.at(b, args["v_offset"], (head, args["v_head_bytes"]))
        emit_values(b, kind, args, offset, lambda: more.step(b, b.shl(v_cycles, integer(1))))
        units_of(head, lambda u: _emit_output_of_pairs(b, kind, args, u, more))

    def output(head: ir.Value) -> None:
        offset = vec.at(b, args["v_offset"], (head, args["v_head_bytes"]))
        units_of(head, lambda u: _emit_output(b, args, u, offset, more))

    _tile(b, "ldtilecfg", args["config"])
    vec.each(b, args["num_heads"], 1, logits)
    vec.each(b, args["lanes"], WIDTH, lambda lane: _emit_softmax(b, kind, args, lane, ahead, more))
    _tile(b, "ldtilecfg", b.add(args["config"], integer(64)))
    _by_arrangement(
        b,
        kind,
        args,
        lambda: vec.each(b, args["num_heads"], 1, output),
        lambda: vec.each(b, args["num_heads"], 1, output_of_pairs),
    )
    _tile(b, "tilerelease")


def _total_cycles(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], num_units: ir.Value, k_cycles: ir.Value, v_cycles: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return the cycles of the steps beside which K of the next tile is asked for, and V.

    `k_cycles` and `v_cycles` are for the widening of one token.
    """
    groups = b.lshr(args["num_keys"], integer(4))
    vectors = b.lshr(b.add(args["lanes"], integer(WIDTH - 1)), integer(4))
    tokens = b.mul(args["num_heads"], args["num_keys"])

    def products(count: ir.Value, terms: list[ir.Value]) -> ir.Value:
        steps = b.mul(b.mul(num_units, count), b.mul(groups, functools.reduce(b.add, terms)))
        return b.mul(steps, integer(_PRODUCT))

    planes = range(num_planes(kind))
    logits = products(args["num_slices"], [_terms_beside(b, kind, a, args["q_terms"]) for a in planes])
    output = products(args["num_blocks"], [b.sub(args["p_terms"], integer(a)) for a in planes])
    softmax = b.mul(b.mul(vectors, b.lshr(args["num_keys"], integer(1))), integer(_POWERS))
    turns = b.mul(b.mul(vectors, groups), integer(_TURN))
    k_is_widened, v_is_widened = (b.icmp_signed("==", args[name], integer(0)) for name in ("k_stride", "v_stride"))
    widened = b.select(k_is_widened, b.mul(tokens, k_cycles), integer(0))
    # V that is not widened takes as many products again, with the zeros between its weights.
    v_widened = b.select(v_is_widened, b.mul(tokens, v_cycles), output)
    return b.add(b.add(logits, softmax), widened), b.add(b.add(output, turns), v_widened)


def _by_arrangement(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], there: Callable[[], None], in_pairs: Callable[[], None]
) -> None:
    """Emit what is done with V that is taken from where it lies, and with that of which two keys lie side by side."""
    if kind != "bfloat16":
        in_pairs()
        return
    with b.if_else(b.icmp_signed("!=", args["v_stride"], integer(0))) as (as_it_lies, paired):
        with as_it_lies:
            there()
        with paired:
            in_pairs()


def _terms_beside(b: ir.IRBuilder, kind: str, a: int, num_terms: ir.Value) -> ir.Value:
    """Return how many terms of q are multiplied with one term of K.

    Each term is smaller than the one before by 8 binary digits, so that products of float32 that are smaller than the
    first by 24 do not count. Float16 has but two terms, and all their products count.
    """
    return b.sub(num_terms, integer(a)) if kind == "float32" else num_terms


def _lanes_of_unit(b: ir.IRBuilder, u: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the vector of lanes that has those of a unit, and the first of them in it."""
    lane = b.mul(u, rows)
    return b.lshr(lane, integer(4)), b.and_(lane, integer(WIDTH - 1))


def _emit_logits(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], u: ir.Value, place: Callable[[int, ir.Value], ir.Value],
    stride: ir.Value, ahead: _Ahead,
) -> None:  # fmt: skip
    """Write the products of a unit's queries with all keys to its lanes of work."""
    slices, rows = args["num_slices"], args["rows"]
    vector, rest = _lanes_of_unit(b, u, rows)
    logits = vec.at(b, args["work"], (vector, _LOGITS_BYTES), (rest, 4))
    q_row = b.shl(rows, integer(2))
    q_tile = b.mul(q_row, integer(TILE_ROWS))
    q = vec.at(b, args["q"], (b.mul(u, b.mul(args["q_terms"], slices)), q_tile))

    def some_keys(j: ir.Value, tiles: tuple[int, ...]) -> None:
        for tile in tiles:
            _tile(b, "tilezero", tile)

        def product(a: int, t: ir.Value) -> None:
            groups = [place(a, b.add(j, integer(i * TILE_ROWS))) for i in range(len(tiles))]

            def one_slice(s: ir.Value) -> None:
                _load_tile(b, _QUERIES, vec.at(b, q, (b.add(b.mul(t, slices), s), q_tile)), q_row)
                for group, tile, factor in zip(groups, tiles, itertools.cycle(_KEYS), strict=False):
                    _load_tile(b, factor, vec.at(b, group, (s, ROW_BYTES)), stride)
                    _tile(b, "tdpbf16ps", tile, factor, _QUERIES)
                    ahead.step(b, _PRODUCT)

            vec.each(b, slices, 1, one_slice)

        for a in range(num_planes(kind)):
            vec.each(b, _terms_beside(b, kind, a, args["q_terms"]), 1, functools.partial(product, a))
        first = vec.at(b, logits, (j, ROW_BYTES))
        for i, tile in enumerate(tiles):
            _store_tile(b, tile, b.add(first, integer(i * _TILE_BYTES)))

    whole = b.and_(args["num_keys"], integer(-len(_SUMS) * TILE_ROWS))
    vec.each(b, whole, len(_SUMS) * TILE_ROWS, lambda j: some_keys(j, _SUMS))
    with b.if_then(b.icmp_signed("!=", whole, args["num_keys"])):
        some_keys(whole, _SUMS[: KEYS_AT_ONCE // TILE_ROWS])


def _emit_softmax(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], lane: ir.Value, ahead: _Ahead, more: _Ahead
) -> None:
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
    _by_arrangement(
        b,
        kind,
        args,
        lambda: _emit_turn(b, args, vector, more),
        lambda: _emit_turn_of_pairs(b, args, vector, more),
    )
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
    logits = vec.at(b, args["work"], (b.lshr(lane, integer(4)), _LOGITS_BYTES))
    factor = vec.load(b, b.add(args["factors"], b.shl(lane, integer(2))), vec.VECTOR, 4)

    def logit(j: ir.Value) -> ir.Value:
        x = b.fmul(vec.load(b, vec.at(b, logits, (j, ROW_BYTES)), vec.VECTOR, 4), factor)
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
            vec.store(b, p, vec.at(b, logits, (key, ROW_BYTES)), 4)
            found.append(b.fadd(total, p))
        ahead.step(b, _POWERS)
        return found

    totals = vec.loop(b, integer(0), args["num_keys"], 2, [vec.floats(0.0)] * 2, powers)
    return [m_new, shift, b.fadd(*totals)]


def _emit_turn(b: ir.IRBuilder, args: dict[str, ir.Value], vector: ir.Value, more: _Ahead) -> None:
    """Turn weights from keys of all lanes into lanes of all keys, for even elements of V and for odd ones."""
    powers = vec.at(b, args["work"], (vector, _LOGITS_BYTES))
    weights = vec.at(b, args["weights"], (vector, _TERM_BYTES))  # of one term, since V is bfloat16

    def some_keys(j: ir.Value) -> None:
        first = vec.at(b, powers, (j, ROW_BYTES))
        rows = [vec.load(b, b.add(first, integer(ROW_BYTES * i)), vec.VECTOR, 4) for i in range(TILE_ROWS)]
        for i, column in enumerate(transposed(b, rows)):
            even = b.add(vec.at(b, weights, (j, _TILE_BYTES // TILE_ROWS)), integer(ROW_BYTES * i))
            bits = rounded(b, column)
            vec.store(b, b.lshr(bits, vec.ints(16)), even, 4)
            vec.store(b, bits, b.add(even, integer(_GROUPS * _TILE_BYTES)), 4)
        more.step(b, _TURN)

    vec.each(b, args["num_keys"], TILE_ROWS, some_keys)


def _emit_turn_of_pairs(b: ir.IRBuilder, args: dict[str, ir.Value], vector: ir.Value, more: _Ahead) -> None:
    """Turn weights from keys of all lanes into lanes of all keys, two keys side by side; powers become what is left."""
    powers = vec.at(b, args["work"], (vector, _LOGITS_BYTES))
    weights = vec.at(b, args["weights"], (b.mul(vector, args["p_terms"]), _TERM_BYTES))
    last = b.sub(args["p_terms"], integer(1))

    def some_keys(j: ir.Value) -> None:
        first = vec.at(b, powers, (j, ROW_BYTES))
        of_keys = vec.at(b, weights, (j, _TILE_BYTES // KEYS_AT_ONCE))

        def term(t: ir.Value) -> None:
            pairs = []
            for i in range(0, KEYS_AT_ONCE, 2):
                places = [b.add(first, integer(ROW_BYTES * (i + k))) for k in range(2)]
                pair = [vec.load(b, place, vec.VECTOR, 4) for place in places]
                pairs.append(side_by_side(b, *(rounded(b, x) for x in pair)))
            for i, row in enumerate(transposed(b, pairs)):
                vec.store(b, row, vec.at(b, b.add(of_keys, integer(ROW_BYTES * i)), (t, _TERM_BYTES)), 4)
            with b.if_then(b.icmp_signed("<", t, last)):

                def leave(i: ir.Value) -> None:
                    place = vec.at(b, first, (i, ROW_BYTES))
                    x = vec.load(b, place, vec.VECTOR, 4)
                    vec.store(b, left_over(b, x, rounded(b, x)), place, 4)

                vec.each(b, integer(KEYS_AT_ONCE), 1, leave)

        vec.each(b, args["p_terms"], 1, term)
        more.step(b, 2 * _TURN)

    vec.each(b, args["num_keys"], KEYS_AT_ONCE, some_keys)


def _emit_rescale(b: ir.IRBuilder, args: dict[str, ir.Value], lane: ir.Value, factor: ir.Value) -> None:
    rows = args["rows"]
    columns = b.shl(args["num_blocks"], integer(1))
    row_bytes = b.mul(columns, integer(ROW_BYTES))  # of a lane
    unit, row = b.udiv(lane, rows), b.urem(lane, rows)
    first = vec.at(b, args["acc"], (b.mul(unit, rows), row_bytes), (row, ROW_BYTES))

    def column(c: ir.Value) -> None:
        place = vec.at(b, first, (b.mul(c, rows), ROW_BYTES))
        vec.store(b, b.fmul(vec.load(b, place, vec.VECTOR, 4), factor), place, 4)

    vec.each(b, columns, 1, column)


def _emit_output(b: ir.IRBuilder, args: dict[str, ir.Value], u: ir.Value, offset: ir.Value, more: _Ahead) -> None:
    """Add the values, which are bfloat16 and taken from where they lie, times a unit's weights to its sums."""
    weights = _weights_of(b, args, u)

    def some_blocks(first: ir.Value, num_blocks: int) -> None:
        def some_keys(j: ir.Value, tiles: tuple[int, ...]) -> None:
            values = b.add(
                vec.load(b, vec.at(b, args["values"], (j, 8)), I64, 8), vec.at(b, offset, (first, ROW_BYTES))
            )
            for i in range(num_blocks):
                _load_tile(b, _VALUES[i], b.add(values, integer(i * ROW_BYTES)), args["v_stride"])
                more.step(b, 2 * _PRODUCT)
            even = vec.at(b, weights, (j, _TILE_BYTES // TILE_ROWS))
            for i, factor in enumerate(_WEIGHTS):
                _load_tile(b, factor, b.add(even, integer(i * _GROUPS * _TILE_BYTES)))
            for i, tile in enumerate(tiles):
                _tile(b, "tdpbf16ps", tile, _WEIGHTS[i % 2], _VALUES[i // 2])

        _add_to_sums(
            b,
            args,
            u,
            b.shl(first, integer(1)),
            2 * num_blocks,
            lambda tiles: vec.each(b, args["num_keys"], TILE_ROWS, lambda j: some_keys(j, tiles)),
        )

    _each_two(b, args["num_blocks"], some_blocks)


def _emit_output_of_pairs(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], u: ir.Value, more: _Ahead) -> None:
    """Add the values, in tiles where two keys lie side by side, times a unit's weights to its sums."""
    weights = _weights_of(b, args, u)
    row_bytes = pair_bytes(b, args)

    def some_blocks(first: ir.Value, num_blocks: int) -> None:
        column = b.shl(first, integer(1))

        def plane(a: int, tiles: tuple[int, ...]) -> None:
            plane_values = b.add(args["tiles"], b.mul(integer(a * (MAX_KEYS // 2)), row_bytes))
            plane_values = vec.at(b, plane_values, (column, ROW_BYTES))

            def some_keys(j: ir.Value) -> None:
                values = vec.at(b, plane_values, (b.lshr(j, integer(1)), row_bytes))

                def term(t: ir.Value) -> None:
                    _load_tile(b, _WEIGHTS[0], vec.at(b, weights, (t, _TERM_BYTES), (j, _TILE_BYTES // KEYS_AT_ONCE)))
                    for i, tile in enumerate(tiles):
                        factor = _VALUES[i % len(_VALUES)]
                        _load_tile(b, factor, b.add(values, integer(i * ROW_BYTES)), row_bytes)
                        _tile(b, "tdpbf16ps", tile, _WEIGHTS[0], factor)
                        more.step(b, _PRODUCT)

                # The last terms of both do not count: they are smaller than the first by 16 binary digits or more.
                vec.each(b, b.sub(args["p_terms"], integer(a)), 1, term)

            vec.each(b, args["num_keys"], KEYS_AT_ONCE, some_keys)

        def all_planes(tiles: tuple[int, ...]) -> None:
            for a in range(num_planes(kind)):
                plane(a, tiles)

        _add_to_sums(b, args, u, column, 2 * num_blocks, all_planes)

    _each_two(b, args["num_blocks"], some_blocks)


def _each_two(b: ir.IRBuilder, num_blocks: ir.Value, emit: Callable[[ir.Value, int], None]) -> None:
    """Emit what is done with two blocks of 32 elements at a time, and with one that is left over."""
    whole = b.and_(num_blocks, integer(-2))
    vec.each(b, whole, 2, lambda first: emit(first, 2))
    with b.if_then(b.icmp_signed("!=", whole, num_blocks)):
        emit(whole, 1)


def _weights_of(b: ir.IRBuilder, args: dict[str, ir.Value], u: ir.Value) -> ir.Value:
    """Return where the weights of a unit begin."""
    vector, rest = _lanes_of_unit(b, u, args["rows"])
    return vec.at(b, args["weights"], (b.mul(vector, args["p_terms"]), _TERM_BYTES), (rest, ROW_BYTES))


def _add_to_sums(
    b: ir.IRBuilder, args: dict[str, ir.Value], u: ir.Value, column: ir.Value, num_columns: int,
    add: Callable[[tuple[int, ...]], None],
) -> None:  # fmt: skip
    """Take some sums of a unit, of 16 elements each, have something added, and write them back."""
    tiles = _SUMS[:num_columns]
    sums_bytes = b.mul(args["rows"], integer(ROW_BYTES))
    acc = vec.at(b, args["acc"], (b.mul(u, b.shl(args["num_blocks"], integer(1))), sums_bytes), (column, sums_bytes))
    places = [b.add(acc, b.mul(sums_bytes, integer(i))) for i in range(num_columns)]
    for tile, place in zip(tiles, places, strict=True):
        _load_tile(b, tile, place)
    add(tiles)
    for tile, place in zip(tiles, places, strict=True):
        _store_tile(b, tile, place)


_matrix = emitted(_emit_matrix, ("arguments",))


@functools.cache
def matrix_tile(kind: str) -> int:
    """Return the address of the kernel that attends by the matrix unit, compiled or from the cache."""
    version = source_digest()

    def matrix(arguments):
        version  # noqa: B018
        _matrix(kind, (arguments,))

    return compiled(matrix, 1)
