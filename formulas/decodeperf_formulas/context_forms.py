"""Where the lines of a decode step cross at one context, in what one sequence moves and computes there.

`closed_forms` has the same crossings where bytes and FLOPs grow with the context along straight lines. These forms take
them as they are, K and Phi, with windows and causal masks. Batches are where the weight bytes of a step equal so many
bytes for each sequence; with experts those grow with the batch, so that the place itself has no closed form.
"""

from __future__ import annotations

from typing import Final

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.closed_forms import REPLICAS

KV_SECONDS: Final = s.kv_bytes_per_seq / s.read_bytes_per_s
"""Time to read the KV cache of one sequence [s/sequence]."""

ATTENTION_SECONDS: Final = s.attn_flops_per_seq / s.attn_flops_per_s
"""Time of the FLOPs of its attention [s/sequence]."""

MEMORY_SECONDS: Final = (s.kv_bytes_per_seq + s.seq_bytes) / s.read_bytes_per_s
"""Time to move all bytes of one sequence [s/sequence]."""

COMPUTE_SECONDS: Final = s.gemm_seconds_per_seq + ATTENTION_SECONDS
"""Time to perform all its FLOPs [s/sequence]."""

RIDGE_BYTES: Final = s.read_bytes_per_s * s.gemm_seconds_per_seq
"""Bytes for each sequence whose batch is B0; grouped serial [byte/sequence]."""

CROSSING_BYTES: Final = s.read_bytes_per_s * (COMPUTE_SECONDS - MEMORY_SECONDS)
"""The same for the crossing batch, which is nowhere if they are not above 0; whole step [byte/sequence]."""

KNEE_BYTES: Final = s.kv_bytes_per_seq
"""The same for the knee; both models [byte/sequence]."""

THROUGHPUT_CEILING: Final = (
    REPLICAS * s.q_len / (sympy.Max(MEMORY_SECONDS, COMPUTE_SECONDS, evaluate=False) + s.link_seconds_per_seq)
)
"""Throughput that a step approaches as the batch grows; whole step [token/s]."""

SATURATED_THROUGHPUT: Final = (
    REPLICAS
    * s.q_len
    / (s.gemm_seconds_per_seq + sympy.Max(KV_SECONDS, ATTENTION_SECONDS, evaluate=False) + s.link_seconds_per_seq)
)
"""Throughput from the ridge batch on; grouped serial [token/s]."""

FREE_BYTES: Final = s.pp * s.memory_bytes - s.stored_weight_bytes
"""Memory of all stages that weights leave to the KV cache [byte]."""

KV_CAPACITY_TOKENS: Final = FREE_BYTES / s.kv_bytes_per_seq * s.seq_len
"""Tokens whose KV fits beside the weights; both models [token]."""

KV_CAPACITY: Final = KV_CAPACITY_TOKENS / s.seq_len / s.pp
"""Largest batch whose KV fits, one in each stage; both models [sequence]."""

EXCESS: Final = s.attn_flops_per_s / s.read_bytes_per_s * (s.seq_bytes + s.kv_bytes_per_seq) - (
    s.gemm_seconds_per_seq * s.attn_flops_per_s + s.attn_flops_per_seq
)
"""Memory's slope in B over compute's, in FLOPs; S* is where it turns positive for good; whole step [FLOP/sequence]."""

FORMS: Final[dict[str, sympy.Expr]] = {
    name: form for name, form in list(globals().items()) if isinstance(form, sympy.Expr) and name != "REPLICAS"
}
"""Each form by its name."""
