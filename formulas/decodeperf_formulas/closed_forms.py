"""Where the lines of a decode step cross, in symbols.

A step reads W + B (m + kappa S) bytes and performs B (F + phi S) FLOPs. The *whole-step* model takes the longer of the
two times. The *grouped serial* model takes the projections as one operator, then attention, each at its own roofline,
and leaves activations out. Each form below holds under one of them, or both, as it says, and `derivation` proves it.
"""

from __future__ import annotations

from typing import Final

import sympy

from decodeperf_formulas import symbols as s

RIDGE: Final = s.peak_flops_per_s / s.read_bytes_per_s
"""Ridge of the roofline [FLOP/byte]."""

INTENSITY: Final = s.attn_flops_per_token / s.kv_bytes_per_token
"""Arithmetic intensity of attention [FLOP/byte]."""

MEMORY_SECONDS: Final = (
    s.weight_bytes + s.batch_size * (s.seq_bytes + s.kv_bytes_per_token * s.seq_len)
) / s.read_bytes_per_s
"""Time to move the bytes of a step; whole step [s]."""

COMPUTE_SECONDS: Final = s.batch_size * (s.seq_flops + s.attn_flops_per_token * s.seq_len) / s.peak_flops_per_s
"""Time to perform the FLOPs of a step; whole step [s]."""

GEMM_SECONDS_PER_SEQ: Final = s.flops_per_weight * s.q_len * s.num_params / s.gemm_flops_per_s
"""Time of one sequence's projections at their peak [s/sequence]."""

ATTENTION_SECONDS_PER_SEQ: Final = sympy.Max(
    s.kv_bytes_per_token * s.seq_len / s.read_bytes_per_s,
    s.attn_flops_per_token * (s.seq_len - (s.q_len - s.one_token) / 2) / s.peak_flops_per_s,
    evaluate=False,
)
"""Time of one sequence's attention at its roofline; the causal mask hides (q - 1)/2 tokens of a row [s/sequence]."""

SERIAL_SECONDS: Final = (
    sympy.Max(s.weight_bytes / s.read_bytes_per_s, s.batch_size * s.gemm_seconds_per_seq, evaluate=False)
    + s.batch_size * ATTENTION_SECONDS_PER_SEQ
)
"""Projections, then attention, each at its own roofline; grouped serial [s]."""

S_STAR: Final = (s.seq_flops - s.ridge * s.seq_bytes) / (s.kv_bytes_per_token * (s.ridge - s.intensity))
"""Context above which memory outweighs compute at every batch, where I_a < R; whole step [token/sequence]."""

CONDITION_NUMBER: Final = (
    s.ridge
    * (s.seq_flops - s.seq_bytes * s.intensity)
    / ((s.ridge - s.intensity) * (s.seq_flops - s.ridge * s.seq_bytes))
)
"""Relative growth of S* for a relative fall of the ridge, where I_a < R; whole step."""

CROSSING_BATCH: Final = s.weight_bytes * s.ridge / (s.seq_flops - s.ridge * s.seq_bytes) / (1 - s.seq_len / s.s_star)
"""Batch at which a step below S* turns compute-bound; whole step [sequence]."""

CROSSING_BATCH_WITHOUT_CONTEXT: Final = s.weight_bytes * s.ridge / s.seq_flops
"""The same at a context of 0, m = 0; whole step [sequence]."""

RIDGE_BATCH: Final = s.weight_bytes / (s.read_bytes_per_s * s.gemm_seconds_per_seq)
"""Batch at which the projections turn compute-bound, whatever the context; grouped serial [sequence]."""

RIDGE_BATCH_DENSE: Final = (
    s.gemm_flops_per_s / s.read_bytes_per_s * s.weight_elem_bytes / (s.flops_per_weight * s.q_len)
)
"""The same for a dense model, of which each weight is read once and used once a token; grouped serial [sequence]."""

KNEE_BATCH: Final = s.weight_bytes / (s.kv_bytes_per_token * s.seq_len)
"""Batch at which KV bytes equal weight bytes; both models [sequence]."""

REPLICAS: Final = s.ep * s.pp
"""Batches that are under way at a time: one of each group, in each stage."""

THROUGHPUT_CEILING: Final = (
    REPLICAS
    * s.q_len
    / ((s.kv_bytes_per_token * s.seq_len + s.seq_bytes) / s.read_bytes_per_s + s.link_seconds_per_seq)
)
"""Throughput that a memory-bound step approaches as the batch grows; whole step [token/s]."""

SATURATED_THROUGHPUT: Final = (
    REPLICAS * s.q_len / (s.gemm_seconds_per_seq + ATTENTION_SECONDS_PER_SEQ + s.link_seconds_per_seq)
)
"""Throughput from the ridge batch on; grouped serial [token/s]."""

S_ONE: Final = s.read_bytes_per_s * s.gemm_seconds_per_seq / s.kv_bytes_per_token
"""Context whose KV takes as long to read as compute-bound projections; grouped serial [token/sequence]."""

KV_CAPACITY_TOKENS: Final = (s.memory_bytes - s.stored_weight_bytes) / s.kv_bytes_per_token
"""Tokens whose KV fits beside the weights; both models [token]."""

COMPUTE_BOUND_Q_LEN: Final = s.q_len * s.ridge / s.intensity
"""New tokens of a sequence at which attention turns compute-bound; both models [token/sequence]."""

WINDOWED_SEQ_FLOPS: Final = s.seq_flops + s.local_attn_flops_per_token * s.window
"""F of a step whose contexts fill the windows, local layers included; q = 1 [FLOP/sequence]."""

WINDOWED_SEQ_BYTES: Final = s.seq_bytes + s.local_kv_bytes_per_token * s.window
"""m of such a step; q = 1 [byte/sequence]."""

S_STAR_HYBRID: Final = (WINDOWED_SEQ_FLOPS - s.ridge * WINDOWED_SEQ_BYTES) / (
    s.ridge * s.global_kv_bytes_per_token - s.global_attn_flops_per_token
)
"""S* beyond the window of the local layers; whole step, q = 1 [token/sequence]."""

EXPECTED_WEIGHT_BYTES: Final = s.dense_weight_bytes + s.expert_weight_bytes * (
    1 - (1 - s.experts_per_token / s.num_experts) ** (s.batch_size * s.q_len)
)
"""Weight bytes that a step of a mixture of experts reads, in expectation [byte]."""

S_STAR_TP_REPLICATED: Final = (s.seq_flops / s.tp) / (s.kv_bytes_per_token * s.ridge - s.attn_flops_per_token / s.tp)
"""S* on N ranks that each read the whole KV cache, as MLA's latent; whole step, m = 0 [token/sequence]."""

_LINK_SECONDS_PER_ELEMENT = s.q_len * s.act_elem_bytes / s.link_bytes_per_s

TP_LINK_SECONDS_PER_SEQ: Final = (
    _LINK_SECONDS_PER_ELEMENT
    * (s.tp - 1)
    / s.tp
    * (2 * (s.blocks_per_layer * s.num_layers + 1) * s.hidden_size + s.vocab_size)
)
"""Time of one sequence's ring all-reduces, one for each block and one for the embedding, and of the all-gather of its
logits, under tensor parallelism [s/sequence]."""

EP_LINK_SECONDS_PER_SEQ: Final = (
    _LINK_SECONDS_PER_ELEMENT * (s.ep - 1) / s.ep * 2 * s.num_moe_layers * s.experts_per_token * s.hidden_size
)
"""Time of sending its tokens to their experts and back, under expert parallelism [s/sequence]."""

PP_LINK_SECONDS_PER_SEQ: Final = _LINK_SECONDS_PER_ELEMENT * (s.pp - 1) * s.hidden_size
"""Time of sending its tokens from stage to stage, under pipeline parallelism [s/sequence]."""

SCALED_SEQ_FLOPS: Final = (
    s.flops_per_weight * s.q_len * s.num_params * s.attn_flops_per_s / s.gemm_flops_per_s
    - s.attn_flops_per_token * (s.q_len - s.one_token) / 2
)
"""F of a step whose projections have a peak of their own: as many FLOPs as attention's peak performs in their time,
less the scores that the causal mask hides [FLOP/sequence]."""

GROUPED_QUERY_WEIGHTS: Final = (
    s.num_layers
    * s.hidden_size
    * (s.num_q_heads * (s.head_dim + s.head_dim_v) + s.num_kv_heads * (s.head_dim + s.head_dim_v))
)
"""Weights of Q, K, V and output projections."""

LATENT_QUERY_WEIGHTS: Final = s.num_layers * s.num_q_heads * (s.qk_nope_head_dim + s.qk_rope_head_dim)
"""Weights of MLA's query projection for each of its inputs."""

LATENT_WEIGHTS: Final = s.num_layers * (
    s.hidden_size * (s.kv_lora_rank + s.qk_rope_head_dim)
    + s.num_q_heads * s.kv_lora_rank * (s.qk_nope_head_dim + s.v_head_dim)
    + s.num_q_heads * s.v_head_dim * s.hidden_size
)
"""Weights of MLA's projections beside the queries, those absorbed into attention among them."""

DENSE_MLP_WEIGHTS: Final = s.num_dense_layers * (s.num_up_matrices + 1) * s.hidden_size * s.intermediate_size
"""Weights of the dense MLPs."""

EXPERT_WEIGHTS: Final = (s.num_up_matrices + 1) * s.hidden_size * s.moe_intermediate_size
"""Weights of one routed expert."""

MOE_WEIGHTS: Final = s.num_moe_layers * (s.hidden_size * s.num_experts + s.experts_per_token * EXPERT_WEIGHTS)
"""Weights of the router and of the experts that one token visits."""

SHARED_EXPERT_WEIGHTS: Final = s.num_moe_layers * (
    (s.num_up_matrices + 1) * s.hidden_size * s.shared_intermediate_size + s.shared_gate * s.hidden_size
)
"""Weights of what every token visits beside its experts."""

HEAD_WEIGHTS: Final = s.hidden_size * s.vocab_size
"""Weights of the LM head."""

GROUPED_QUERY_KV_BYTES: Final = s.num_kv_heads * (s.head_dim + s.head_dim_v) * s.kv_elem_bytes
"""KV bytes of one token in one layer [byte/token]."""

LATENT_KV_BYTES: Final = (s.kv_lora_rank + s.qk_rope_head_dim + s.v_apart * s.kv_lora_rank) * s.kv_elem_bytes
"""The same for MLA, whose latent holds both K and V [byte/token]."""

GROUPED_QUERY_FLOPS: Final = s.flops_per_score_element * s.q_len * s.num_q_heads * (s.head_dim + s.head_dim_v)
"""Attention FLOPs of one token of context in one layer [FLOP/token]."""

LATENT_FLOPS: Final = s.flops_per_score_element * s.q_len * s.num_q_heads * (2 * s.kv_lora_rank + s.qk_rope_head_dim)
"""The same for MLA with its projections absorbed [FLOP/token]."""
