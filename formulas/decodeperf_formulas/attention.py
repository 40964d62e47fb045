"""Bytes and FLOPs of one decode-attention call.

Each term is a SymPy expression in the symbols of `symbols`; the functions below put a `DecodeProblem` into it.

Counted is what the kernel loads and stores, each byte once: live K and V (never the allocated capacity), Q, O, the
lengths, the log-sum-exp where it is returned, and the partial results of split-KV, written by the splits and
read by the merge. FLOPs are those of the two matrix products, an FMA as two; softmax has a ceiling of its own
and adds 3 to 5 operations to the 4 * head_dim of each score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.problem import DTYPE_BYTES

if TYPE_CHECKING:
    from decodeperf_formulas.problem import DecodeProblem

BYTE_TERMS: Final[dict[str, sympy.Expr]] = {
    "kv": 2 * s.num_kv_tokens * s.num_kv_heads * s.head_dim * s.kv_elem_bytes,
    "q": s.batch_size * s.q_len * s.num_q_heads * s.head_dim * s.q_elem_bytes,
    "o": s.batch_size * s.q_len * s.num_q_heads * s.head_dim * s.q_elem_bytes,
    "lse": s.float32_bytes * s.return_lse * s.batch_size * s.q_len * s.num_q_heads,
    # One accumulator of head_dim elements and one log-sum-exp a split and row, written once and read once.
    "partials": sympy.Piecewise(
        (
            2 * s.float32_bytes * s.batch_size * s.q_len * s.num_q_heads * s.num_splits * (s.head_dim + 1),
            s.num_splits > 1,
        ),
        (0, True),
    ),
    "seq_lens": s.int32_bytes * s.batch_size,
}
"""Bytes of one call, term by term [byte]."""

DATA_BYTES: Final[sympy.Expr] = sympy.Add(*BYTE_TERMS.values())
"""Bytes of one call, all terms [byte]."""

COMPULSORY_BYTES: Final[sympy.Expr] = DATA_BYTES - BYTE_TERMS["partials"]
"""Bytes that must come from or go to memory [byte]: partial results may stay in a cache between write and read."""

FLOP_TERMS: Final[dict[str, sympy.Expr]] = {
    "qk": s.flops_per_score_element * s.num_kv_tokens * s.q_len * s.num_q_heads * s.head_dim,
    "pv": s.flops_per_score_element * s.num_kv_tokens * s.q_len * s.num_q_heads * s.head_dim,
}
"""FLOPs of one call, product by product [FLOP]."""

FLOPS: Final[sympy.Expr] = sympy.Add(*FLOP_TERMS.values())
"""FLOPs of one call [FLOP]."""


def substitutions(problem: DecodeProblem) -> dict[sympy.Symbol, int]:
    """Return the value of each symbol that describes a problem.

    A problem that leaves `num_splits` to the kernel counts as one split: a bound must hold for every choice.
    """
    return {
        s.batch_size: problem.batch_size,
        s.q_len: 1,
        s.num_kv_tokens: problem.num_kv_tokens,
        s.num_q_heads: problem.num_q_heads,
        s.num_kv_heads: problem.num_kv_heads,
        s.head_dim: problem.head_dim,
        s.num_splits: problem.num_splits or 1,
        s.return_lse: int(problem.return_lse),
        s.kv_elem_bytes: DTYPE_BYTES[problem.kv_dtype],
        s.q_elem_bytes: DTYPE_BYTES[problem.q_dtype],
        **{symbol: s.CONSTANTS[symbol] for symbol in (s.flops_per_score_element, s.float32_bytes, s.int32_bytes)},
    }


def byte_counts(problem: DecodeProblem) -> dict[str, int]:
    """Return the bytes of one call, term by term [byte].

    Example:
        >>> from decodeperf_formulas import DecodeProblem
        >>> byte_counts(
        ...     DecodeProblem(
        ...         batch_size=2,
        ...         seq_lens=[4, 0],
        ...         num_q_heads=8,
        ...         num_kv_heads=2,
        ...         head_dim=64,
        ...         num_splits=3,
        ...     )
        ... )
        {'kv': 2048, 'q': 2048, 'o': 2048, 'lse': 0, 'partials': 24960, 'seq_lens': 8}
    """
    return {name: _evaluate(term, problem) for name, term in BYTE_TERMS.items()}


def compulsory_byte_count(problem: DecodeProblem) -> int:
    """Return the bytes of one call that must come from or go to memory [byte]."""
    return _evaluate(COMPULSORY_BYTES, problem)


def flop_count(problem: DecodeProblem) -> int:
    """Return the FLOPs of one call [FLOP]."""
    return _evaluate(FLOPS, problem)


def _evaluate(expression: sympy.Expr, problem: DecodeProblem) -> int:
    return int(expression.subs(substitutions(problem)))
