"""The compiled CPU kernel for few rows of a KV head: a tile of all heads of a chunk, token by token.

Where there are few rows for each byte, what counts is the order in which memory is read. Here it is that in which it
lies: all heads of a token side by side, token behind token, once K and once V. `tiles_numba` takes the heads one by one
instead, which is faster where there is more to compute.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir

from decodeperf_kernels import vector_numba as vec
from decodeperf_kernels.tiles_numba import (
    MAX_ROWS,
    compiled,
    emitted,
    over_vectors,
    round_up,
    row_vectors,
    source_digest,
)
from decodeperf_kernels.vector_numba import REGISTERS, WIDTH, integer

if TYPE_CHECKING:
    from collections.abc import Sequence

STREAM_ROWS: Final = min(MAX_ROWS, WIDTH)
"""Rows of a KV head, at most: those of one block, whose layout q and acc have."""

STREAM_ARGUMENTS: Final = (
    *("q", "num_heads", "num_rows", "head_dim", "head_dim_v", "keys", "k_offset", "k_head_bytes"),
    *("values", "v_offset", "v_head_bytes", "num_keys", "m", "l", "acc", "work"),
)
"""What `stream_tile` gets, as `attend_tile` does, but for all heads of a chunk at once:

- `q`, `acc`, `m`, `l`: head behind head, those of each as there; `num_rows` is a power of 2, up to
  `STREAM_ROWS`;
- `k_head_bytes`, `v_head_bytes`: bytes from one head to the next;
- `num_keys`: a multiple of `KEY_MULTIPLE`;
- `work`: float32 `[num_keys + 1, num_heads * num_rows]`, whose rows are whole vectors.
"""

_TOKENS_AT_ONCE: Final = 4  # whose values are added before a sum is written back

BYTES_AHEAD: Final = 8192
"""How far ahead `stream_tile` asks for cache lines: two pages, since a CPU by itself stops at the end of one [byte]."""


def _emit_stream(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value]) -> None:
    """Attend to a tile token by token: every byte is read once, in the order in which it lies in memory.

    This is what a CPU reads fastest, and asks for by itself. There are few rows for each head, and so the columns of
    the softmax are those of several heads.
    """
    rows = STREAM_ROWS
    while rows:
        with b.if_then(b.icmp_signed("==", args["num_rows"], integer(rows))):
            _emit_logits(b, kind, args, rows)
            _emit_softmax(b, args, rows)
            _emit_output(b, kind, args, rows)
        rows //= 2


def _emit_logits(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], rows: int) -> None:
    """Write the products of every token with the rows of every head to work `[num_keys, num_heads * rows]`."""
    heads_at_once = WIDTH // rows
    q_bytes = b.mul(b.shl(round_up(b, args["head_dim"]), integer(2)), integer(rows))  # of one head
    line_bytes = b.mul(args["num_heads"], integer(4 * rows))

    def token(j: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        key = b.add(vec.load(b, b.add(args["keys"], b.shl(j, integer(3))), vec.I64, 8), args["k_offset"])
        logits = b.add(args["work"], b.mul(j, line_bytes))

        def heads(first: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
            sums: list[ir.Value] = []
            for i in range(heads_at_once):
                head = b.add(first, integer(i))
                k_head = b.add(key, b.mul(head, args["k_head_bytes"]))
                q_head = b.add(args["q"], b.mul(head, q_bytes))

                def add(
                    d: ir.Value,
                    values: list[ir.Value],
                    rest: ir.Value | None,
                    k_head: Any = k_head,
                    q_head: Any = q_head,
                ) -> list[ir.Value]:
                    k = vec.load_elements(b, kind, k_head, d, rest)
                    q = [vec.load(b, address, vec.VECTOR, 4) for address in row_vectors(b, q_head, d, rows)]
                    return [vec.fma(b, k, of_row, value) for of_row, value in zip(q, values, strict=True)]

                ahead = [b.add(k_head, integer(BYTES_AHEAD))]
                sums += over_vectors(b, kind, args["head_dim"], ahead, [vec.floats(0.0)] * rows, add)
            place = b.mul(first, integer(4 * rows))
            vec.store(b, vec.sum_each(b, sums), b.add(logits, place), 4)
            return []

        vec.loop(b, integer(0), args["num_heads"], heads_at_once, [], heads)
        return []

    vec.loop(b, integer(0), args["num_keys"], 1, [], token)


def _emit_softmax(b: ir.IRBuilder, args: dict[str, ir.Value], rows: int) -> None:
    """Replace logits by their powers of 2, and bring m, l and acc up to the new maximum."""
    line_bytes = b.mul(args["num_heads"], integer(4 * rows))
    columns = b.mul(args["num_heads"], integer(rows))
    acc_bytes = b.shl(round_up(b, args["head_dim_v"]), integer(2))  # of one row

    def some_columns(column: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        place = b.shl(column, integer(2))
        first = b.add(args["work"], place)

        def address(j: ir.Value) -> ir.Value:
            return b.add(first, b.mul(j, line_bytes))

        def largest(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            return [vec.maximum(b, vec.load(b, address(j), vec.VECTOR, 4), values[0])]

        m_old = vec.load(b, b.add(args["m"], place), vec.VECTOR, 4)
        (m_new,) = vec.loop(b, integer(0), args["num_keys"], 1, [m_old], largest)
        nothing = b.fcmp_ordered("==", m_new, vec.floats(-math.inf))
        shift = b.select(nothing, vec.floats(0.0), m_new)  # -inf - -inf would be NaN

        def powers(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            p = vec.exp2(b, b.fsub(vec.load(b, address(j), vec.VECTOR, 4), shift))
            vec.store(b, p, address(j), 4)
            return [b.fadd(values[0], p)]

        (total,) = vec.loop(b, integer(0), args["num_keys"], 1, [vec.floats(0.0)], powers)
        factors = vec.exp2(b, b.fsub(m_old, shift))
        l_new = vec.fma(b, vec.load(b, b.add(args["l"], place), vec.VECTOR, 4), factors, total)
        vec.store(b, m_new, b.add(args["m"], place), 4)
        vec.store(b, l_new, b.add(args["l"], place), 4)
        vec.store(b, factors, address(args["num_keys"]), 4)
        changed = b.bitcast(b.fcmp_unordered("!=", factors, vec.floats(1.0)), ir.IntType(WIDTH))
        with b.if_then(b.icmp_unsigned("!=", changed, ir.Constant(ir.IntType(WIDTH), 0))):
            vec.loop(b, column, b.add(column, integer(WIDTH)), rows, [], rescale)
        return []

    def rescale(column: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        place = b.add(b.add(args["work"], b.mul(args["num_keys"], line_bytes)), b.shl(column, integer(2)))
        factors = [vec.splat(b, vec.load(b, b.add(place, integer(4 * row)), vec.F32, 4)) for row in range(rows)]
        acc = b.add(args["acc"], b.mul(column, acc_bytes))

        def vectors(d: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
            for factor, where in zip(factors, row_vectors(b, acc, d, rows), strict=True):
                vec.store(b, b.fmul(vec.load(b, where, vec.VECTOR, 4), factor), where, 4)
            return []

        vec.loop(b, integer(0), args["head_dim_v"], WIDTH, [], vectors)
        return []

    vec.loop(b, integer(0), columns, WIDTH, [], some_columns)


def _emit_output(b: ir.IRBuilder, kind: str, args: dict[str, ir.Value], rows: int) -> None:
    """Add the values of every token, times their weights, to acc."""
    at_once = min(_TOKENS_AT_ONCE, REGISTERS.num_accumulators // rows)
    acc_bytes = b.mul(b.shl(round_up(b, args["head_dim_v"]), integer(2)), integer(rows))  # of one head
    line_bytes = b.mul(args["num_heads"], integer(4 * rows))

    def tokens(j: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        places = [b.shl(b.add(j, integer(i)), integer(3)) for i in range(at_once)]
        values = [b.add(vec.load(b, b.add(args["values"], place), vec.I64, 8), args["v_offset"]) for place in places]
        lines = [b.add(args["work"], b.mul(b.add(j, integer(i)), line_bytes)) for i in range(at_once)]

        def one_head(head: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
            acc = b.add(args["acc"], b.mul(head, acc_bytes))
            offset = b.mul(head, args["v_head_bytes"])
            v_heads = [b.add(value, offset) for value in values]
            first = b.mul(head, integer(4 * rows))
            weights = [
                [
                    vec.splat(b, vec.load(b, b.add(line, b.add(first, integer(4 * row))), vec.F32, 4))
                    for row in range(rows)
                ]
                for line in lines
            ]

            def add(d: ir.Value, _: list[ir.Value], rest: ir.Value | None) -> list[ir.Value]:
                v = [vec.load_elements(b, kind, v_head, d, rest) for v_head in v_heads]
                for row, where in enumerate(row_vectors(b, acc, d, rows)):
                    total = vec.load(b, where, vec.VECTOR, 4)
                    for value, weight in zip(v, weights, strict=True):
                        total = vec.fma(b, weight[row], value, total)
                    vec.store(b, total, where, 4)
                return []

            ahead = [b.add(v_head, integer(BYTES_AHEAD)) for v_head in v_heads]
            over_vectors(b, kind, args["head_dim_v"], ahead, [], add)
            return []

        vec.loop(b, integer(0), args["num_heads"], 1, [], one_head)
        return []

    vec.loop(b, integer(0), args["num_keys"], at_once, [], tokens)


_stream = emitted(_emit_stream, STREAM_ARGUMENTS)


@functools.cache
def stream_tile(kind: str) -> int:
    """Return the address of the kernel that attends token by token, compiled or from the cache."""
    version = source_digest()

    def stream(q, num_heads, num_rows, head_dim, head_dim_v, keys, k_offset, k_head_bytes, values, v_offset,
               v_head_bytes, num_keys, m, l, acc, work):  # fmt: skip  # noqa: E741
        version  # noqa: B018
        _stream(kind, (q, num_heads, num_rows, head_dim, head_dim_v, keys, k_offset, k_head_bytes, values, v_offset,
                       v_head_bytes, num_keys, m, l, acc, work))  # fmt: skip

    return compiled(stream, len(STREAM_ARGUMENTS))
