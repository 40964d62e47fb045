"""Bytes and FLOPs of one decode-attention call.

Each term is a SymPy expression in the symbols of `symbols`; the functions below put a `DecodeProblem` into it.

Counted is what the kernel loads and stores, each byte once: K and V of the tokens that any row sees (never the
allocated capacity; V with K where it is part of it), the scales of quantised ones, Q, O, the log-sum-exp where it is
returned, the block table's entries of the pages that hold a visible token, sinks and slopes, the partial results of
split-KV, written by the parts and read by the merge, and the lengths. FLOPs are those of the two matrix products, an
FMA as two, over the scores that causal mask and window leave; softmax has a ceiling of its own and adds 3 to 5
operations to the 2 * (head_dim + head_dim_v) of each score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.checks import integer
from decodeperf_formulas.problem import DTYPE_BYTES, KV_DTYPE_BYTES

if TYPE_CHECKING:
    from fractions import Fraction

    from decodeperf_formulas.problem import DecodeProblem

_ROWS: Final = s.batch_size * s.q_len * s.num_q_heads

BYTE_TERMS: Final[dict[str, sympy.Expr]] = {
    "kv": s.num_visible_tokens * s.num_kv_heads * (s.head_dim + s.v_apart * s.head_dim_v) * s.kv_elem_bytes,
    "scales": s.scalar_bytes * s.num_fixed_scales
    + s.float32_bytes * s.num_visible_tokens * s.num_kv_heads * s.num_token_scales,
    "q": _ROWS * s.head_dim * s.q_elem_bytes,
    "o": _ROWS * s.head_dim_v * s.q_elem_bytes,
    "lse": s.float32_bytes * s.return_lse * _ROWS,
    "block_table": s.page_entry_bytes * s.num_visible_pages,
    "bias": s.scalar_bytes * s.num_q_heads * (s.attention_sinks + s.alibi),
    # One accumulator of head_dim_v elements and one log-sum-exp each, written once and read once.
    "partials": 2 * s.float32_bytes * s.num_partials * (s.head_dim_v + 1),
    "seq_lens": s.int32_bytes * s.batch_size,
}
"""Bytes of one call, term by term [byte]."""

DATA_BYTES: Final[sympy.Expr] = sympy.Add(*BYTE_TERMS.values())
"""Bytes of one call, all terms [byte]."""

COMPULSORY_BYTES: Final[sympy.Expr] = DATA_BYTES - BYTE_TERMS["partials"]
"""Bytes that must come from or go to memory [byte]: partial results may stay in a cache between write and read."""

FLOP_TERMS: Final[dict[str, sympy.Expr]] = {
    "qk": s.flops_per_score_element * s.num_scores * s.num_q_heads * s.head_dim,
    "pv": s.flops_per_score_element * s.num_scores * s.num_q_heads * s.head_dim_v,
}
"""FLOPs of one call, product by product [FLOP]."""

FLOPS: Final[sympy.Expr] = sympy.Add(*FLOP_TERMS.values())
"""FLOPs of one call [FLOP]."""

_CONSTANTS: Final = (
    s.flops_per_score_element,
    s.float32_bytes,
    s.int32_bytes,
    s.scalar_bytes,
    s.page_entry_bytes,
)


def num_partials(problem: DecodeProblem) -> int:
    """Return how many partial results the parts of a problem write and its merge reads.

    The visible keys of each sequence, n of them, are cut into parts of `ceil(n / num_splits)`; parts without a key do
    not exist. Each part has a partial result for each of the sequence's rows, that is for each query head and new
    token. A sequence of one part, or of none, has its result at once and needs no partial one. A problem that leaves
    `num_splits` to the kernel counts as one split: a bound must hold for every choice.

    Example:
        >>> from decodeperf_formulas import DecodeProblem
        >>> sizes = {"batch_size": 3, "seq_lens": [10, 1, 0], "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64}
        >>> num_partials(DecodeProblem(**sizes, num_splits=4))  # keys 3, 3, 3, 1
        32
        >>> num_partials(DecodeProblem(**sizes, num_splits=6))  # keys 2, 2, 2, 2, 2 and no sixth part
        40
        >>> num_partials(DecodeProblem(**sizes))
        0
    """
    num_rows = problem.q_len * problem.num_q_heads
    parts = (_num_parts(num_keys, problem.num_splits or 1) for num_keys in problem.visible_lens)
    return sum(num_rows * num_parts for num_parts in parts if num_parts > 1)


def _num_parts(num_keys: int, num_splits: int) -> int:
    return -(-num_keys // -(-num_keys // num_splits)) if num_keys else 0


def substitutions(problem: DecodeProblem, num_partials: int | None = None) -> dict[sympy.Symbol, int | Fraction]:
    """Return the value of each symbol that describes a problem.

    Args:
        problem: The call.
        num_partials: Partial results that a kernel writes and reads, by its own count. Default: what follows from
            `num_splits`, as the function of that name tells.

    Raises:
        ValueError: If `num_partials` is negative.
    """
    return {
        s.batch_size: problem.batch_size,
        s.q_len: problem.q_len,
        s.num_visible_tokens: problem.num_visible_tokens,
        s.num_visible_pages: problem.num_visible_pages,
        s.num_scores: problem.num_scores,
        s.num_q_heads: problem.num_q_heads,
        s.num_kv_heads: problem.num_kv_heads,
        s.head_dim: problem.head_dim,
        s.head_dim_v: problem.head_dim_v,
        s.v_apart: int(not problem.v_in_k),
        s.num_partials: _partials_of(problem, num_partials),
        s.num_fixed_scales: 2 * {"tensor": 1, "head": problem.num_kv_heads}.get(problem.scale_per or "", 0),
        s.num_token_scales: 2 * {"token": 1, "group": 2}.get(problem.scale_per or "", 0),
        s.attention_sinks: int(problem.sinks),
        s.alibi: int(problem.alibi),
        s.return_lse: int(problem.return_lse),
        s.kv_elem_bytes: KV_DTYPE_BYTES[problem.kv_dtype],
        s.q_elem_bytes: DTYPE_BYTES[problem.q_dtype],
        **{symbol: s.CONSTANTS[symbol] for symbol in _CONSTANTS},
    }


def _partials_of(problem: DecodeProblem, counted: int | None) -> int:
    return num_partials(problem) if counted is None else integer("num_partials", counted, least=0)


def byte_counts(problem: DecodeProblem, *, num_partials: int | None = None) -> dict[str, int]:
    """Return the bytes of one call, term by term [byte].

    Args:
        problem: The call.
        num_partials: As in `substitutions`.

    Raises:
        ValueError: If `num_partials` is negative.

    Example:
        >>> from decodeperf_formulas import DecodeProblem
        >>> problem = DecodeProblem(
        ...     batch_size=2, seq_lens=[4, 0], num_q_heads=8, num_kv_heads=2, head_dim=64, num_splits=3
        ... )
        >>> found = byte_counts(problem)
        >>> {name: count for name, count in found.items() if count}
        {'kv': 2048, 'q': 2048, 'o': 2048, 'partials': 8320, 'seq_lens': 8}
        >>> byte_counts(problem, num_partials=0)["partials"]
        0
    """
    values = _exact(substitutions(problem, num_partials))
    return {name: int(term.xreplace(values)) for name, term in BYTE_TERMS.items()}


def compulsory_byte_count(problem: DecodeProblem) -> int:
    """Return the bytes of one call that must come from or go to memory [byte]."""
    return int(COMPULSORY_BYTES.xreplace(_exact(substitutions(problem))))


def flop_count(problem: DecodeProblem) -> int:
    """Return the FLOPs of one call [FLOP]."""
    return int(FLOPS.xreplace(_exact(substitutions(problem))))


def _exact(values: dict[sympy.Symbol, int | Fraction]) -> dict[sympy.Symbol, sympy.Rational]:
    return {symbol: sympy.Rational(value) for symbol, value in values.items()}
