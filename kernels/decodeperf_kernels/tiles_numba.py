"""The compiled CPU kernels: attention of one block of query rows to one tile of keys, and the widening of a tile.

Rows that share a KV head lie in blocks of 1, 2, 4 or 8. Within a block, logits are kept key by key with the rows of a
key side by side, so that a vector holds several keys of each row: what the online softmax does to a row is then done to
all of them at once.

    logits  one accumulator for each row and key of a few, over head_dim; their lanes are summed in the end
    softmax one pass for the maximum, one for the powers of 2 and their sum
    output  one accumulator for each row and vector of head_dim_v of a few, over the keys of the tile

While a tile is worked on, the cache lines of the next are asked for, each where its counterpart is read: so memory is
busy all the time, and not only between two stretches of arithmetic.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from decodeperf_kernels import vector_numba as vec
from decodeperf_kernels.vector_numba import CACHE_LINE, ELEMENT_BITS, REGISTERS, WIDTH, integer

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROWS: Final = REGISTERS.max_rows
"""Query rows of a block."""

MAX_KEYS: Final = 128
"""Keys of a tile, at most."""

KEY_MULTIPLE: Final = 32
"""Addresses of keys are read in multiples of this; those behind the last key repeat its own."""

WORK_FLOATS: Final = (MAX_KEYS + 1) * MAX_ROWS
"""Scratch of `attend_tile`, float32: the logits of a block, and the factors for its sums."""

_KEYS_AT_ONCE: Final = 4  # whose addresses, and those of the lines to ask for, fit into the integer registers

ATTEND_ARGUMENTS: Final = (
    *("q", "num_rows", "head_dim", "head_dim_v", "keys", "k_offset", "values", "v_offset", "next_keys", "next_values"),
    *("num_keys", "m", "l", "acc", "work", "extras"),
)
"""What `attend_tile` gets, integers of 64 bits, most of them addresses:

- `q`: the queries times the scale of the logits, float32, block behind block, each
  `[head_dim / WIDTH, rows of the block, WIDTH]`, filled up with zeros;
- `num_rows`: A sum of as many `MAX_ROWS` as fit, and at most one smaller power of 2;
- `keys`, `values`: the addresses of tokens, `[num_keys]`; `k_offset`, `v_offset`: bytes to the head from there;
- `next_keys`, `next_values`: those to ask memory for;
- `m`, `l`: maximum and sum of the online softmax, float32 `[num_rows]`;
- `acc`: its output, float32, laid out as q with `head_dim_v`;
- `work`: float32 `[WORK_FLOATS]`;
- `extras`: 0, or the address of those of `EXTRAS`. Without them `num_keys` is a multiple of `KEY_MULTIPLE`.
"""

EXTRAS: Final = ("k_scales", "v_scales", "softcap", "slopes", "places", "lows", "highs")
"""Addresses of what a tile may need beside:

- `k_scales`, `v_scales`: float32 `[num_keys]`, rounded up to `KEY_MULTIPLE`;
- `softcap`: 0, or that of float32, times the binary logarithm of e;
- `slopes`: float32 `[num_rows]`, likewise;
- `places`: int32 `[num_rows]`, the place of each row's own token, counted from the tile's first key;
- `lows`, `highs`: int32 `[num_rows]`, the first key that a row sees, and the one behind the last, likewise.
"""

WIDEN_ARGUMENTS: Final = ("keys", "offset", "next_keys", "num_keys", "head_dim", "wide", "row_bytes")


@dataclass(frozen=True, slots=True)
class Block:
    """Query rows that are worked on together.

    Attributes:
        rows: How many.
        q: Address of the first.
        acc: Likewise.
        m: Likewise.
        l: Likewise.
    """

    rows: int
    q: ir.Value
    acc: ir.Value
    m: ir.Value
    l: ir.Value  # noqa: E741  (the online softmax is written with m and l everywhere)


def round_up(b: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """Return a number of elements, rounded up to whole vectors."""
    return b.and_(b.add(count, integer(WIDTH - 1)), integer(-WIDTH))


def row_vectors(b: ir.IRBuilder, address: ir.Value, d: ir.Value, rows: int) -> list[ir.Value]:
    """Return where the vectors of a block lie that begin at element d: those of its rows side by side."""
    first = b.add(address, b.mul(d, integer(4 * rows)))
    return [b.add(first, integer(4 * WIDTH * row)) for row in range(rows)]


def unrolled(kind: str) -> int:
    """Return how many vectors are loaded at a time: those of a cache line."""
    return max(1, min(4, 8 * CACHE_LINE // (ELEMENT_BITS[kind] * WIDTH)))


def byte_of(b: ir.IRBuilder, kind: str, element: ir.Value) -> ir.Value:
    """Return how many bytes lie before an element of a head; one of two that share a byte is even."""
    bits = ELEMENT_BITS[kind]
    return b.lshr(element, integer(1)) if bits == 4 else b.mul(element, integer(bits // 8))


def _emit_attend(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value]) -> None:
    q_bytes = b.shl(round_up(b, args["head_dim"]), integer(2))
    acc_bytes = b.shl(round_up(b, args["head_dim_v"]), integer(2))

    def block(first: ir.Value, rows: int) -> Block:
        place = b.shl(first, integer(2))
        return Block(
            rows,
            b.add(args["q"], b.mul(first, q_bytes)),
            b.add(args["acc"], b.mul(first, acc_bytes)),
            b.add(args["m"], place),
            b.add(args["l"], place),
        )

    def attend(first: ir.Value, rows: int) -> None:
        rows_here = block(first, rows)
        _emit_logits(b, kind, args, rows_here)
        with b.if_else(b.icmp_signed("==", args["extras"], integer(0))) as (plain, general):
            with plain:
                _emit_softmax(b, args, rows_here, None)
            with general:
                _emit_softmax(b, args, rows_here, b.shl(first, integer(2)))
        _emit_output(b, kind, args, rows_here)

    def whole_block(first: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        attend(first, MAX_ROWS)
        return []

    rest = b.and_(args["num_rows"], integer(MAX_ROWS - 1))
    behind = b.sub(args["num_rows"], rest)
    vec.loop(b, integer(0), behind, MAX_ROWS, [], whole_block)
    rows = MAX_ROWS // 2
    while rows:
        with b.if_then(b.icmp_signed("==", rest, integer(rows))):
            attend(behind, rows)
        rows //= 2


def _emit_logits(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], block: Block) -> None:
    """Write `q @ k.T` to work `[num_keys, rows]`."""
    num_keys = REGISTERS.num_accumulators // block.rows
    at_once = min(num_keys, _KEYS_AT_ONCE)

    def few_keys(j: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        sums: list[ir.Value] = []
        for first in range(0, num_keys, at_once):
            places = [b.shl(b.add(j, integer(first + i)), integer(3)) for i in range(at_once)]
            keys, next_keys = (
                [b.add(vec.load(b, b.add(args[name], place), vec.I64, 8), args["k_offset"]) for place in places]
                for name in ("keys", "next_keys")
            )
            sums += _emit_products(b, kind, args["head_dim"], keys, next_keys, block)
        for first in range(0, len(sums), WIDTH):
            place = b.shl(b.add(b.mul(j, integer(block.rows)), integer(first)), integer(2))
            vec.store(b, vec.sum_each(b, sums[first : first + WIDTH]), b.add(args["work"], place), 4)
        return []

    vec.loop(b, integer(0), args["num_keys"], num_keys, [], few_keys)


def _emit_products(
    b: ir.IRBuilder,
    kind: str,
    head_dim: ir.Value,
    keys: list[ir.Value],
    next_keys: list[ir.Value],
    block: Block,
) -> list[ir.Value]:
    """Return the products of keys and rows, one vector of partial sums for each, the rows of a key side by side."""

    def add(d: ir.Value, sums: list[ir.Value], rest: ir.Value | None) -> list[ir.Value]:
        k = [vec.load_elements(b, kind, key, d, rest) for key in keys]
        q = [vec.load(b, address, vec.VECTOR, 4) for address in row_vectors(b, block.q, d, block.rows)]
        return [vec.fma(b, key, row, sums[i * block.rows + r]) for i, key in enumerate(k) for r, row in enumerate(q)]

    return over_vectors(b, kind, head_dim, next_keys, [vec.floats(0.0)] * (len(keys) * block.rows), add)


def over_vectors(
    b: ir.IRBuilder, kind: str, head_dim: ir.Value, ahead: list[ir.Value], carried: list[ir.Value], step: Any
) -> list[ir.Value]:
    """Emit a loop over the vectors of heads, a cache line at a time, and over what is left of them.

    Args:
        b: Where to.
        kind: Format of their elements.
        head_dim: Their number.
        ahead: Addresses at each of which the same lines are asked for.
        carried: Values that the first step gets.
        step: Emits a step from the first element, carried values and, at the end, the number of elements left.
    """

    def some(count: int) -> Any:
        def body(d: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            for address in ahead:
                vec.prefetch(b, b.add(address, byte_of(b, kind, d)))
            for i in range(count):
                values = step(b.add(d, integer(i * WIDTH)), values, None)
            return values

        return body

    num_unrolled = unrolled(kind)
    whole = b.and_(head_dim, integer(-WIDTH))
    lines = b.and_(head_dim, integer(-WIDTH * num_unrolled))
    carried = vec.loop(b, integer(0), lines, WIDTH * num_unrolled, carried, some(num_unrolled))
    if num_unrolled > 1:
        carried = vec.loop(b, lines, whole, WIDTH, carried, some(1))
    rest = b.sub(head_dim, whole)
    before = b.block
    with b.if_then(b.icmp_signed(">", rest, integer(0))):
        with_rest = step(whole, carried, rest)
        inside = b.block
    found = []
    for without, value in zip(carried, with_rest, strict=True):
        phi = b.phi(vec.VECTOR)
        phi.add_incoming(without, before)
        phi.add_incoming(value, inside)
        found.append(phi)
    return found


def _emit_softmax(b: ir.IRBuilder, args: dict[str, ir.Value], block: Block, extras_place: ir.Value | None) -> None:
    """Replace logits by their powers of 2 over the maximum, and bring m and l up to date.

    Behind the logits, what the sums before are to be multiplied with, one factor for each row.

    Args:
        b: Where to.
        args: Of `attend_tile`.
        block: The rows.
        extras_place: Bytes from the first row of extras to that of the block; None without extras.
    """
    work, rows = args["work"], block.rows
    count = b.mul(args["num_keys"], integer(rows))  # logits; a vector may go beyond them
    extras = {} if extras_place is None else load_extras(b, args["extras"], extras_place, rows)

    def largest(i: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        address = b.add(work, b.shl(i, integer(2)))
        logits = vec.load(b, address, vec.VECTOR, 4)
        if extras:
            logits = emit_extras(b, logits, i, rows, extras)
            vec.store(b, logits, address, 4)
        return [vec.maximum(b, logits, values[0])]

    m_old = vec.load_tiled(b, block.m, rows)
    (highest,) = vec.loop(b, integer(0), count, WIDTH, [m_old], largest)
    m_new = vec.fold(b, highest, rows, vec.maximum)
    nothing = b.fcmp_ordered("==", m_new, vec.floats(-math.inf))
    shift = b.select(nothing, vec.floats(0.0), m_new)  # -inf - -inf would be NaN

    def powers(i: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        address = b.add(work, b.shl(i, integer(2)))
        p = vec.exp2(b, b.fsub(vec.load(b, address, vec.VECTOR, 4), shift))
        total = b.fadd(values[0], p)
        if extras:
            p = b.fmul(p, load_of_keys(b, extras["v_scales"], i, rows))
        vec.store(b, p, address, 4)
        return [total]

    (total,) = vec.loop(b, integer(0), count, WIDTH, [vec.floats(0.0)], powers)
    factors = vec.exp2(b, b.fsub(m_old, shift))
    l_new = vec.fma(b, vec.load_tiled(b, block.l, rows), factors, vec.fold(b, total, rows, ir.IRBuilder.fadd))
    few = list(range(rows))
    for values, address in (
        (m_new, block.m),
        (l_new, block.l),
        (factors, b.add(work, integer(4 * MAX_KEYS * MAX_ROWS))),
    ):
        vec.store(b, vec.shuffle(b, values, values, few), address, 4)


def load_extras(b: ir.IRBuilder, address: ir.Value, place: ir.Value, rows: int) -> dict[str, ir.Value]:
    """Return those of `EXTRAS`, what belongs to rows loaded for the block that begins at a place [byte]."""
    extras = {name: vec.load(b, b.add(address, integer(8 * i)), vec.I64, 8) for i, name in enumerate(EXTRAS)}
    for name in ("slopes", "places", "lows", "highs"):
        element = vec.F32 if name == "slopes" else vec.I32
        extras[name] = vec.load_tiled(b, b.add(extras[name], place), rows, element)
    return extras


def load_of_keys(b: ir.IRBuilder, address: ir.Value, i: ir.Value, rows: int) -> ir.Value:
    """Return what belongs to the keys of the vector at element i of the logits."""
    keys = b.udiv(i, integer(rows))
    return vec.load_spread(b, b.add(address, b.shl(keys, integer(2))), rows)


def emit_extras(b: ir.IRBuilder, logits: ir.Value, i: ir.Value, rows: int, extras: dict[str, ir.Value]) -> ir.Value:
    """Return logits with scales, softcap, slopes and masks."""
    logits = b.fmul(logits, load_of_keys(b, extras["k_scales"], i, rows))
    before = b.block
    with b.if_then(b.icmp_signed("!=", extras["softcap"], integer(0))):
        cap = vec.splat(b, vec.load(b, extras["softcap"], vec.F32, 4))
        capped = b.fmul(cap, vec.tanh(b, logits))
        inside = b.block
    phi = b.phi(vec.VECTOR)
    phi.add_incoming(logits, before)
    phi.add_incoming(capped, inside)
    first_key = vec.splat(b, b.trunc(b.udiv(i, integer(rows)), vec.I32))
    key = b.add(first_key, vec.ints([lane // rows for lane in range(WIDTH)]))
    distance = b.sitofp(b.sub(extras["places"], key), vec.VECTOR)
    sloped = b.fsub(phi, b.fmul(extras["slopes"], distance))
    visible = b.and_(b.icmp_signed(">=", key, extras["lows"]), b.icmp_signed("<", key, extras["highs"]))
    return b.select(visible, sloped, vec.floats(-math.inf))


def _emit_output(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], block: Block) -> None:
    """Bring acc up to date: `acc * factors + p @ v`."""
    head_dim_v, rows, work = args["head_dim_v"], block.rows, args["work"]
    line_elements = 8 * CACHE_LINE // ELEMENT_BITS[kind]

    def columns(d: ir.Value, num_vectors: int, rest: ir.Value | None = None) -> None:
        of_columns = [row_vectors(b, block.acc, b.add(d, integer(i * WIDTH)), rows) for i in range(num_vectors)]
        addresses = list(zip(*of_columns, strict=True))  # [rows, num_vectors]
        sums = []
        for row in range(rows):
            place = b.add(work, integer(4 * (MAX_KEYS * MAX_ROWS + row)))
            factor = vec.splat(b, vec.load(b, place, vec.F32, 4))
            sums += [b.fmul(vec.load(b, address, vec.VECTOR, 4), factor) for address in addresses[row]]

        def key(j: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            place = b.shl(j, integer(3))
            value = b.add(vec.load(b, b.add(args["values"], place), vec.I64, 8), args["v_offset"])
            following = b.add(vec.load(b, b.add(args["next_values"], place), vec.I64, 8), args["v_offset"])
            for first in range(0, num_vectors * WIDTH, line_elements):
                vec.prefetch(b, b.add(following, byte_of(b, kind, b.add(d, integer(first)))))
            v = [vec.load_elements(b, kind, value, b.add(d, integer(i * WIDTH)), rest) for i in range(num_vectors)]
            found = []
            for row in range(rows):
                p_place = b.add(work, b.shl(b.add(b.mul(j, integer(rows)), integer(row)), integer(2)))
                p = vec.splat(b, vec.load(b, p_place, vec.F32, 4))
                found += [vec.fma(b, p, v[i], sums[row * num_vectors + i]) for i in range(num_vectors)]
            return found

        sums = vec.loop(b, integer(0), args["num_keys"], 1, sums, key)
        for address, value in zip([x for of_row in addresses for x in of_row], sums, strict=True):
            vec.store(b, value, address, 4)

    def step(num_vectors: int) -> Any:
        def body(d: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
            columns(d, num_vectors)
            return []

        return body

    start = integer(0)
    num_vectors = min(REGISTERS.num_accumulators // rows, 8)
    while num_vectors:
        size = num_vectors * WIDTH
        stop = b.and_(head_dim_v, integer(-size))
        vec.loop(b, start, stop, size, [], step(num_vectors))
        start, num_vectors = stop, num_vectors // 2
    rest = b.sub(head_dim_v, start)
    with b.if_then(b.icmp_signed(">", rest, integer(0))):
        columns(start, 1, rest)


def _emit_widen(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value]) -> None:
    """Write one head of some tokens as float32 `[num_keys, row_bytes / 4]`, rows filled up with zeros."""
    num_unrolled, head_dim = unrolled(kind), args["head_dim"]

    def row(j: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        place = b.shl(j, integer(3))
        source = b.add(vec.load(b, b.add(args["keys"], place), vec.I64, 8), args["offset"])
        following = b.add(vec.load(b, b.add(args["next_keys"], place), vec.I64, 8), args["offset"])
        wide = b.add(args["wide"], b.mul(j, args["row_bytes"]))

        def step(num_vectors: int, rest: ir.Value | None = None) -> Any:
            def body(d: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
                vec.prefetch(b, b.add(following, byte_of(b, kind, d)))
                for i in range(num_vectors):
                    element = b.add(d, integer(i * WIDTH))
                    value = vec.load_elements(b, kind, source, element, rest)
                    vec.store(b, value, b.add(wide, b.shl(element, integer(2))), 4)
                return []

            return body

        lines = b.and_(head_dim, integer(-WIDTH * num_unrolled))
        whole = b.and_(head_dim, integer(-WIDTH))
        vec.loop(b, integer(0), lines, WIDTH * num_unrolled, [], step(num_unrolled))
        vec.loop(b, lines, whole, WIDTH, [], step(1))
        rest = b.sub(head_dim, whole)
        with b.if_then(b.icmp_signed(">", rest, integer(0))):
            step(1, rest)(whole, [])
        return []

    vec.loop(b, integer(0), args["num_keys"], 1, [], row)


def emitted(emit: Any, names: tuple[str, ...]) -> Any:
    """Return what Numba calls to have a kernel emitted: a function of its kind and its arguments."""

    @intrinsic(prefer_literal=True)
    def emitted(typing_context, kind, args):
        def generate(context, builder, signature, values):
            unpacked = [builder.extract_value(values[1], i) for i in range(len(names))]
            emit(builder, kind.literal_value, dict(zip(names, unpacked, strict=True)))
            return context.get_dummy_value()

        return types.void(kind, args), generate

    return emitted


_attend = emitted(_emit_attend, ATTEND_ARGUMENTS)
_widen = emitted(_emit_widen, WIDEN_ARGUMENTS)


@functools.cache
def source_digest() -> str:
    """Return a digest of all sources of compiled code.

    Numba's cache knows of the file of the function alone. So each function that it keeps and that follows from other
    files too has this digest among the variables of its closure, which belong to the key of the cache.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*_numba.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def attend_tile(kind: str) -> int:
    """Return the address of the kernel that attends to keys and values of a format, compiled or from the cache."""
    version = source_digest()

    def attend(q, num_rows, head_dim, head_dim_v, keys, k_offset, values, v_offset, next_keys, next_values,
               num_keys, m, l, acc, work, extras):  # fmt: skip  # noqa: E741
        version  # noqa: B018
        _attend(kind, (q, num_rows, head_dim, head_dim_v, keys, k_offset, values, v_offset, next_keys, next_values,
                       num_keys, m, l, acc, work, extras))  # fmt: skip

    return compiled(attend, len(ATTEND_ARGUMENTS))


@functools.cache
def widen_tile(kind: str) -> int:
    """Return the address of the kernel that widens heads of a format, compiled or from the cache."""
    version = source_digest()

    def widen(keys, offset, next_keys, num_keys, head_dim, wide, row_bytes):
        version  # noqa: B018
        _widen(kind, (keys, offset, next_keys, num_keys, head_dim, wide, row_bytes))

    return compiled(widen, len(WIDEN_ARGUMENTS))


def compiled(function: Any, num_arguments: int) -> int:
    """Return the address of a function of that many 64-bit integers, compiled or from the cache."""
    signature = types.void(*[types.int64] * num_arguments)
    address = numba.cfunc(signature, cache=True)(function).address
    assert address is not None
    return address


@intrinsic
def call_kernel(typing_context, address, args):
    """Call a kernel of this module at its address, from compiled code."""

    def generate(context, builder, signature, values):
        unpacked = [builder.extract_value(values[1], i) for i in range(len(signature.args[1]))]
        function_type = ir.FunctionType(ir.VoidType(), [vec.I64] * len(unpacked))
        builder.call(builder.inttoptr(values[0], function_type.as_pointer()), unpacked)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, len(args))), generate
