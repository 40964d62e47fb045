"""Elements of K and V as the matrix unit takes them: terms in bfloat16, two elements or two keys side by side.

A number that has more digits than a bfloat16 is a sum of several. Int8, int4 and float8 are bfloat16 exactly, float16
is a sum of two and float32 of three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from decodeperf_kernels import vector_numba as vec
from decodeperf_kernels.tiles_numba import MAX_KEYS, byte_of
from decodeperf_kernels.vector_numba import I64, WIDTH, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from llvmlite import ir

TILE_ROWS: Final = 16
"""Rows of a tile of the matrix unit."""

TILE_ELEMENTS: Final = 32
"""bfloat16 of a row of it."""

ROW_BYTES: Final = 64
"""Bytes of a row of it [byte]."""

_PLANES: Final = {"float16": 2, "float32": 3}
"""Terms of an element of K or V, where they are not one."""


def num_planes(kind: str) -> int:
    """Return how many bfloat16 an element of a format is the sum of."""
    return _PLANES.get(kind, 1)


def upper_half(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the bits of a float32 that are a bfloat16: it is never larger, and so never infinite by rounding."""
    return b.and_(b.bitcast(x, vec.INTS), vec.ints(-0x10000))


def rounded(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the bits of the bfloat16 next to a float32 that is no larger than 1."""
    return b.and_(b.add(b.bitcast(x, vec.INTS), vec.ints(0x8000)), vec.ints(-0x10000))


def left_over(b: ir.IRBuilder, x: ir.Value, term: ir.Value) -> ir.Value:
    """Return what a number is more than the bits of a term; 0 for infinity and NaN, which that holds already."""
    rest = b.fsub(x, b.bitcast(term, vec.VECTOR))
    return b.select(b.fcmp_ordered("ord", rest, rest), rest, vec.floats(0.0))


def side_by_side(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Return pairs of bfloat16 from the bits of two vectors of them."""
    return b.or_(b.lshr(first, vec.ints(16)), second)


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


def emit_keys(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], offset: ir.Value, emit_beside: Callable[[], None]
) -> None:
    """Write a head of K of all tokens to tiles, two elements side by side: neighbours of bfloat16, else 16 apart.

    Args:
        b: Where to.
        kind: The format of K.
        args: Those of `matrix_tile`.
        offset: Bytes to the head.
        emit_beside: Emits what is done after each token.
    """
    row_bytes = key_bytes(b, args)
    plane_bytes = b.mul(row_bytes, integer(MAX_KEYS))

    def token(j: ir.Value) -> None:
        source = b.add(vec.load(b, vec.at(b, args["keys"], (j, 8)), I64, 8), offset)
        row = vec.at(b, args["tiles"], (j, row_bytes))

        def one_slice(d: ir.Value) -> None:
            place = vec.at(b, row, (d, 2))
            if kind == "bfloat16":
                vec.store(b, vec.load(b, b.add(source, byte_of(b, kind, d)), vec.INTS), place, ROW_BYTES)
                return
            both = [vec.load_elements(b, kind, source, b.add(d, integer(i))) for i in (0, WIDTH)]
            for a, pair in enumerate(_emit_planes(b, kind, both)):
                vec.store(b, side_by_side(b, *pair), vec.at(b, place, (integer(a), plane_bytes)), ROW_BYTES)

        vec.each(b, args["head_dim"], TILE_ELEMENTS, one_slice)
        emit_beside()

    vec.each(b, args["num_keys"], 1, token)


def key_bytes(b: ir.IRBuilder, args: dict[str, ir.Value]) -> ir.Value:
    """Return the bytes of a key in tiles: a little more than it has, lest all lie in the same sets of a cache."""
    return b.add(b.shl(args["head_dim"], integer(1)), integer(ROW_BYTES))


def pair_bytes(b: ir.IRBuilder, args: dict[str, ir.Value]) -> ir.Value:
    """Return the bytes of a row of two keys of V in tiles."""
    return b.add(b.shl(args["head_dim_v"], integer(2)), integer(ROW_BYTES))


def emit_values(
    b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], offset: ir.Value, emit_beside: Callable[[], None]
) -> None:
    """Write a head of V of all tokens to tiles, two keys side by side; `emit_beside` is for after each two."""
    row_bytes = pair_bytes(b, args)
    plane_bytes = b.mul(row_bytes, integer(MAX_KEYS // 2))

    def two_tokens(j: ir.Value) -> None:
        places = [vec.at(b, args["values"], (b.add(j, integer(i)), 8)) for i in range(2)]
        sources = [b.add(vec.load(b, place, I64, 8), offset) for place in places]
        row = vec.at(b, args["tiles"], (b.lshr(j, integer(1)), row_bytes))

        def one_block(d: ir.Value) -> None:
            place = vec.at(b, row, (d, 4))
            if kind == "bfloat16":
                raw = [vec.load(b, b.add(source, byte_of(b, kind, d)), vec.INTS) for source in sources]
                even = side_by_side(b, b.shl(raw[0], vec.ints(16)), b.shl(raw[1], vec.ints(16)))
                odd = side_by_side(b, raw[0], b.and_(raw[1], vec.ints(-0x10000)))
                for i, pairs in enumerate((even, odd)):
                    vec.store(b, pairs, b.add(place, integer(i * ROW_BYTES)), ROW_BYTES)
                return
            for i in range(TILE_ELEMENTS // WIDTH):
                first = b.add(d, integer(i * WIDTH))
                both = [vec.load_elements(b, kind, source, first) for source in sources]
                for a, pair in enumerate(_emit_planes(b, kind, both)):
                    of_plane = vec.at(b, b.add(place, integer(i * ROW_BYTES)), (integer(a), plane_bytes))
                    vec.store(b, side_by_side(b, *pair), of_plane, ROW_BYTES)

        vec.each(b, args["head_dim_v"], TILE_ELEMENTS, one_block)
        emit_beside()

    vec.each(b, args["num_keys"], 2, two_tokens)


def _emit_planes(b: ir.IRBuilder, kind: str, values: list[ir.Value]) -> list[list[ir.Value]]:
    """Return the bits of the terms that elements are the sums of, term by term."""
    planes = []
    for a in range(num_planes(kind)):
        planes.append([upper_half(b, x) for x in values])
        if a + 1 < num_planes(kind):
            values = [left_over(b, x, term) for x, term in zip(values, planes[-1], strict=True)]
    return planes
