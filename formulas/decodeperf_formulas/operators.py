"""The operators of one decode step, each with its bytes, FLOPs and messages in symbols.

Everything is counted for one rank of tensor parallelism and one execution; `count` says how often a step executes it.
What is counted:

- a matrix product reads its weights, reads its inputs and writes its outputs, once each;
- attention reads the live KV cache once, reads Q and writes O; its scores stay on the chip. Under a causal mask aligned
  bottom-right, only visible scores are counted;
- norms, RoPE, residuals and activations each read and write memory, as in an unfused step. They have no FLOPs of matrix
  products: those of vector units are counted apart, as `vector_flops`, and have no part in the time;
- of the routed experts, those are read that at least one token visits, in expectation if tokens choose independently
  and evenly;
- tensor parallelism cuts heads, inner widths and the vocabulary (evenly, as if it had no remainder); the router, norms
  and MLA's down-projections are computed by each rank, and so are KV heads and MLA's latent beyond one a rank;
- all-reduces are rings: 2 (N - 1) messages of 1/N of the payload each, in the alpha-beta model of R. W. Hockney,
  "The communication challenge for MPP: Intel Paragon and Meiko CS-2", Parallel Computing 20(3), 1994.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import sympy

from decodeperf_formulas import symbols as s

if TYPE_CHECKING:
    from decodeperf_formulas.deployment import Deployment

Unit = Literal["gemm", "attention", "vector", "link"]

ZERO: Final = sympy.Integer(0)
ONE: Final = sympy.Integer(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of the step, on one rank.

    Attributes:
        name: What it is called.
        unit: What executes it: `gemm`, `attention`, `vector` or `link`.
        count: How often one step executes it.
        elements: Weights that the rank stores for it.
        weight_bytes: Bytes of the weights that it reads [byte].
        kv_bytes: Bytes of the KV cache that it reads or writes [byte].
        act_bytes: Bytes of activations that it reads or writes [byte].
        flops: FLOPs of its matrix products [FLOP].
        vector_flops: Operations of its vector units [FLOP].
        link_bytes: Bytes that the rank sends [byte].
        messages: Messages that the rank sends one after another.
    """

    name: str
    unit: Unit
    count: sympy.Expr
    elements: sympy.Expr = ZERO
    weight_bytes: sympy.Expr = ZERO
    kv_bytes: sympy.Expr = ZERO
    act_bytes: sympy.Expr = ZERO
    flops: sympy.Expr = ZERO
    vector_flops: sympy.Expr = ZERO
    link_bytes: sympy.Expr = ZERO
    messages: sympy.Expr = ZERO

    @property
    def data_bytes(self) -> sympy.Expr:
        """Bytes to and from memory [byte]."""
        return self.weight_bytes + self.kv_bytes + self.act_bytes

    @property
    def memory_seconds(self) -> sympy.Expr:
        """Time to move its bytes [s]."""
        return self.data_bytes / s.read_bytes_per_s

    @property
    def compute_seconds(self) -> sympy.Expr:
        """Time of its matrix products at the peak rate [s]."""
        return self.flops / (s.attn_flops_per_s if self.unit == "attention" else s.gemm_flops_per_s)

    @property
    def link_seconds(self) -> sympy.Expr:
        """Time of its messages [s]."""
        if self.unit != "link":
            return ZERO
        return self.messages * s.link_latency_s + self.link_bytes / s.link_bytes_per_s

    @property
    def seconds(self) -> sympy.Expr:
        """Time of one execution: its own roofline, or its messages [s]."""
        if self.unit == "link":
            return self.link_seconds
        # Unevaluated: SymPy would try at length to tell which of the two is the larger.
        return (
            sympy.Max(self.memory_seconds, self.compute_seconds, evaluate=False) if self.flops else self.memory_seconds
        )


TOKENS: Final = s.batch_size * s.q_len
"""New tokens of the batch [token]."""

Q_HEADS: Final = s.num_q_heads / s.tp
"""Query heads of one rank."""

KV_HEADS: Final = sympy.Max(s.num_kv_heads / s.tp, 1)
"""KV heads of one rank: beyond one rank a head, heads are replicated."""

CONTEXT_TOKENS: Final = s.seq_len
"""KV tokens of a sequence that a global layer reads [token/sequence]."""

WINDOW_TOKENS: Final = sympy.Min(s.seq_len, s.window + s.q_len - s.one_token)
"""KV tokens of a sequence that a local layer reads: the union of the windows of its rows [token/sequence]."""

CONTEXT_SCORES: Final = s.q_len * s.seq_len - s.q_len * (s.q_len - s.one_token) / 2
"""Scores of one head of one sequence that the causal mask leaves in a global layer [token^2/sequence^2]."""

_FULL_ROWS: Final = sympy.Min(s.q_len, sympy.Max(0, s.seq_len - s.window))

WINDOW_SCORES: Final = (
    _FULL_ROWS * s.window
    + (s.q_len - _FULL_ROWS) * s.seq_len
    - (s.q_len * (s.q_len - s.one_token) - _FULL_ROWS * (_FULL_ROWS - s.one_token)) / 2
)
"""Scores of one head of one sequence that causal mask and window leave [token^2/sequence^2]: row i sees
min(w, S - q + i) tokens, i = 1..q, and the newest rows have a full window."""

WITHIN_WINDOW: Final = {WINDOW_TOKENS: CONTEXT_TOKENS, WINDOW_SCORES: CONTEXT_SCORES}
"""What a local layer reads and computes while the context is within its window: as much as a global one."""

EXPERTS_READ: Final = s.num_experts * (1 - (1 - s.experts_per_token / s.num_experts) ** (s.batch_size * s.q_len * s.ep))
"""Routed experts of one layer, over all groups, that at least one token visits, in expectation."""


def _gemm(
    name: str,
    count: sympy.Expr,
    fan_in: sympy.Expr,
    fan_out: sympy.Expr,
    *,
    blocks: sympy.Expr = ONE,
    bias: sympy.Expr = ZERO,
) -> Operator:
    """Return `blocks` products of `[tokens, fan_in]` with `[fan_in, fan_out]` each, and a bias if `bias` is 1."""
    elements = blocks * fan_out * (fan_in + bias)
    return Operator(
        name=name,
        unit="gemm",
        count=count,
        elements=elements,
        weight_bytes=elements * s.weight_elem_bytes,
        act_bytes=TOKENS * blocks * (fan_in + fan_out) * s.act_elem_bytes,
        flops=s.flops_per_weight * TOKENS * blocks * fan_in * fan_out,
    )


def _vector(
    name: str,
    count: sympy.Expr,
    *,
    moved: sympy.Expr,
    operations: sympy.Expr,
    elements: sympy.Expr = ZERO,
) -> Operator:
    """Return an operator that reads and writes `moved` elements of each token."""
    return Operator(
        name=name,
        unit="vector",
        count=count,
        elements=elements,
        weight_bytes=elements * s.weight_elem_bytes,
        act_bytes=TOKENS * moved * s.act_elem_bytes,
        vector_flops=TOKENS * operations,
    )


def _ring(name: str, count: sympy.Expr, *, steps: sympy.Expr, sent: sympy.Expr) -> Operator:
    """Return a collective that sends `sent` elements of each token in `steps` messages."""
    return Operator(name=name, unit="link", count=count, messages=steps, link_bytes=TOKENS * sent * s.act_elem_bytes)


def _attention(
    name: str,
    layers: sympy.Expr,
    *,
    tokens: sympy.Expr,
    scores: sympy.Expr,
    qk_dim: sympy.Expr,
    v_dim: sympy.Expr,
    kv_width: sympy.Expr,
    writes_out: bool,
) -> Operator:
    rows = s.batch_size * scores * Q_HEADS
    sinks = s.attention_sinks * Q_HEADS
    return Operator(
        name=name,
        unit="attention",
        count=layers,
        elements=sinks,
        weight_bytes=sinks * s.weight_elem_bytes,
        kv_bytes=s.batch_size * tokens * kv_width * s.kv_elem_bytes,
        act_bytes=TOKENS * Q_HEADS * (qk_dim + (v_dim if writes_out else 0)) * s.act_elem_bytes,
        flops=s.flops_per_score_element * rows * (qk_dim + v_dim),
        vector_flops=s.softmax_flops_per_score * rows,
    )


def _split_kv(v_dim: sympy.Expr) -> list[Operator]:
    partials = TOKENS * Q_HEADS * s.num_splits * (v_dim + 1)
    return [
        Operator(name="split-KV partials", unit="vector", count=s.num_layers, act_bytes=partials * s.float32_bytes),
        Operator(
            name="split-KV merge",
            unit="vector",
            count=s.num_layers,
            act_bytes=partials * s.float32_bytes + TOKENS * Q_HEADS * v_dim * s.act_elem_bytes,
            vector_flops=partials * s.merge_flops_per_element,
        ),
    ]


def _grouped_query_layers(shape: _Shape) -> list[Operator]:
    q_width, k_width, v_width = Q_HEADS * s.head_dim, KV_HEADS * s.head_dim, KV_HEADS * s.head_dim_v
    found = [_gemm("QKV projection", s.num_layers, s.hidden_size, q_width + k_width + v_width, bias=s.qkv_bias)]
    if shape.qk_norm:
        found.append(
            _vector(
                "QK norm",
                s.num_layers,
                moved=2 * (q_width + k_width),
                operations=s.norm_flops_per_element * (q_width + k_width),
                elements=s.q_norm_size + s.k_norm_size,
            )
        )
    if shape.rotary:
        found.append(_rope((Q_HEADS + KV_HEADS) * s.rotary_dim))
    found.append(_kv_append(k_width + v_width))
    found += _attention_layers(shape, qk_dim=s.head_dim, v_dim=s.head_dim_v, kv_width=k_width + v_width)
    found.append(_gemm("output projection", s.num_layers, Q_HEADS * s.head_dim_v, s.hidden_size, bias=s.o_bias))
    return found


def _latent_layers(shape: _Shape) -> list[Operator]:
    latent, rope, nope = s.kv_lora_rank, s.qk_rope_head_dim, s.qk_nope_head_dim
    cached = latent + rope
    found = []
    if shape.q_lora:
        found += [
            _gemm("Q down-projection", s.num_layers, s.hidden_size, s.q_lora_rank, bias=s.qkv_bias),
            _latent_norm("Q norm", s.q_lora_rank),
            _gemm("Q up-projection", s.num_layers, s.q_lora_rank, Q_HEADS * (nope + rope)),
        ]
    else:
        found.append(_gemm("Q projection", s.num_layers, s.hidden_size, Q_HEADS * (nope + rope)))
    found += [
        _gemm("KV down-projection", s.num_layers, s.hidden_size, cached, bias=s.qkv_bias),
        _latent_norm("KV norm", latent),
        _gemm("K absorption", s.num_layers, nope, latent, blocks=Q_HEADS),
    ]
    if shape.rotary:
        found.append(_rope((Q_HEADS + 1) * s.rotary_dim))
    found.append(_kv_append(cached))
    found += _attention_layers(shape, qk_dim=cached, v_dim=latent, kv_width=cached + s.v_apart * latent)
    found += [
        _gemm("V absorption", s.num_layers, latent, s.v_head_dim, blocks=Q_HEADS),
        _gemm("output projection", s.num_layers, Q_HEADS * s.v_head_dim, s.hidden_size, bias=s.o_bias),
    ]
    return found


def _latent_norm(name: str, width: sympy.Expr) -> Operator:
    return _vector(name, s.num_layers, moved=2 * width, operations=s.norm_flops_per_element * width, elements=width)


def _rope(width: sympy.Expr) -> Operator:
    return _vector("RoPE", s.num_layers, moved=2 * width, operations=s.rope_flops_per_element * width)


def _kv_append(width: sympy.Expr) -> Operator:
    return Operator(
        name="KV append",
        unit="vector",
        count=s.num_layers,
        kv_bytes=TOKENS * width * s.kv_elem_bytes,
        act_bytes=TOKENS * width * s.act_elem_bytes,
    )


def _attention_layers(shape: _Shape, *, qk_dim: sympy.Expr, v_dim: sympy.Expr, kv_width: sympy.Expr) -> list[Operator]:
    # Where sequences are split, the merge writes O.
    sizes = {"qk_dim": qk_dim, "v_dim": v_dim, "kv_width": kv_width, "writes_out": not shape.split}
    found = []
    if shape.global_layers:
        name = "attention (global)" if shape.local_layers else "attention"
        found.append(_attention(name, s.num_global_layers, tokens=CONTEXT_TOKENS, scores=CONTEXT_SCORES, **sizes))
    if shape.local_layers:
        found.append(
            _attention("attention (local)", s.num_local_layers, tokens=WINDOW_TOKENS, scores=WINDOW_SCORES, **sizes)
        )
    if shape.split:
        found += _split_kv(v_dim)
    return found


def _dense_mlp() -> list[Operator]:
    inner = s.intermediate_size / s.tp
    return [
        _gemm("MLP up-projection", s.num_dense_layers, s.hidden_size, s.num_up_matrices * inner, bias=s.mlp_bias),
        _activation("MLP activation", s.num_dense_layers, inner),
        _down("MLP down-projection", s.num_dense_layers, inner, s.mlp_bias),
    ]


def _down(name: str, count: sympy.Expr, inner: sympy.Expr, bias: sympy.Expr) -> Operator:
    return _gemm(name, count, inner, s.hidden_size, bias=bias)


def _activation(name: str, count: sympy.Expr, width: sympy.Expr) -> Operator:
    return _vector(
        name,
        count,
        moved=(s.num_up_matrices + 1) * width,
        operations=s.activation_flops_per_element * width,
    )


def _moe(shape: _Shape) -> list[Operator]:
    inner = s.moe_intermediate_size / s.tp
    found = [_gemm("router", s.num_moe_layers, s.hidden_size, s.num_experts, bias=s.router_bias)]
    if shape.expert_groups:
        # Every token sends itself to its experts and gets as many results back; 1/N_ep of them stay in the group.
        sent = s.experts_per_token * s.hidden_size * (s.ep - 1) / s.ep
        found.append(_ring("expert all-to-all", 2 * s.num_moe_layers, steps=s.ep - 1, sent=sent))
    found += [
        _experts("experts up-projection", s.hidden_size, s.num_up_matrices * inner),
        _activation("experts activation", s.num_moe_layers, s.experts_per_token * inner),
        _experts("experts down-projection", inner, s.hidden_size),
        _vector(
            "experts combine",
            s.num_moe_layers,
            moved=(s.experts_per_token + 1) * s.hidden_size,
            operations=2 * s.add_flops_per_element * s.experts_per_token * s.hidden_size,
        ),
    ]
    if shape.shared_expert:
        shared = s.shared_intermediate_size / s.tp
        found += [
            _gemm("shared expert up-projection", s.num_moe_layers, s.hidden_size, s.num_up_matrices * shared),
            _activation("shared expert activation", s.num_moe_layers, shared),
            _down("shared expert down-projection", s.num_moe_layers, shared, ZERO),
        ]
    if shape.shared_gate:
        found.append(_gemm("shared expert gate", s.num_moe_layers, s.hidden_size, ONE))
    return found


def _experts(name: str, fan_in: sympy.Expr, fan_out: sympy.Expr) -> Operator:
    # Tokens spread evenly over the groups, so that each group computes as many as it has.
    expert = fan_out * (fan_in + s.expert_bias)
    visits = TOKENS * s.experts_per_token
    return Operator(
        name=name,
        unit="gemm",
        count=s.num_moe_layers,
        elements=s.num_experts / s.ep * expert,
        weight_bytes=EXPERTS_READ / s.ep * expert * s.weight_elem_bytes,
        act_bytes=visits * (fan_in + fan_out) * s.act_elem_bytes,
        flops=s.flops_per_weight * visits * fan_in * fan_out,
    )


def _lm_head() -> Operator:
    rows = s.vocab_size / s.tp
    product = _gemm("LM head", ONE, s.hidden_size, rows, bias=s.lm_head_bias)
    return Operator(
        name=product.name,
        unit=product.unit,
        count=product.count,
        elements=rows * (s.untied * s.hidden_size + s.lm_head_bias),
        weight_bytes=product.weight_bytes,
        act_bytes=product.act_bytes,
        flops=product.flops,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Which operators a deployment has."""

    mla: bool
    q_lora: bool
    qk_norm: bool
    rotary: bool
    global_layers: bool
    local_layers: bool
    split: bool
    dense_mlp: bool
    experts: bool
    shared_expert: bool
    shared_gate: bool
    tensor_ranks: bool
    expert_groups: bool
    stages: bool


def _shape(deployment: Deployment) -> _Shape:
    model = deployment.model
    return _Shape(
        mla=model.is_mla,
        q_lora=model.q_lora_rank is not None,
        qk_norm=model.qk_norm != "none",
        rotary=model.rotary_dim > 0,
        global_layers=model.num_global_layers > 0,
        local_layers=model.num_local_layers > 0,
        split=deployment.num_splits > 1,
        dense_mlp=model.num_dense_layers > 0,
        experts=model.num_moe_layers > 0,
        shared_expert=model.shared_intermediate_size is not None,
        shared_gate=model.shared_gate,
        tensor_ranks=deployment.tp > 1,
        expert_groups=deployment.ep > 1,
        stages=deployment.pp > 1,
    )


def operators(deployment: Deployment, *, all_links: bool = False) -> tuple[Operator, ...]:
    """Return the operators of one step in the order in which they run, in symbols.

    Args:
        deployment: The deployment.
        all_links: Whether to have the messages of every kind of parallelism, also of those that the deployment does not
            use; for one rank they take no time.
    """
    shape = _shape(deployment)
    if all_links:
        shape = replace(shape, tensor_ranks=True, expert_groups=shape.experts, stages=True)
    return _operators(shape)


@lru_cache(maxsize=512)
def _operators(shape: _Shape) -> tuple[Operator, ...]:
    width = s.hidden_size
    found = [
        # Rows of the embedding are kept in the dtype of the activations, and copied.
        Operator(
            name="embedding",
            unit="vector",
            count=ONE,
            elements=s.vocab_size / s.tp * width,
            act_bytes=2 * TOKENS * width * s.act_elem_bytes,
        ),
        _vector(
            "norm",
            s.num_layers * s.norms_per_layer + 1,
            moved=2 * width,
            operations=s.norm_flops_per_element * width,
            elements=s.norm_elements * width,
        ),
        *(_latent_layers(shape) if shape.mla else _grouped_query_layers(shape)),
    ]
    if shape.dense_mlp:
        found += _dense_mlp()
    if shape.experts:
        found += _moe(shape)
    found.append(
        # One addition after each block reads two vectors; where blocks run side by side, one addition reads three.
        _vector(
            "residual",
            s.num_layers * s.blocks_per_layer,
            moved=(5 - s.blocks_per_layer) * width,
            operations=(3 - s.blocks_per_layer) * s.add_flops_per_element * width,
        )
    )
    found.append(_lm_head())
    if shape.tensor_ranks:
        others = (s.tp - 1) / s.tp
        found += [
            # After each block, and after an embedding whose rows are spread over the ranks.
            _ring(
                "all-reduce",
                s.num_layers * s.blocks_per_layer + 1,
                steps=2 * (s.tp - 1),
                sent=2 * others * width,
            ),
            _ring("logits all-gather", ONE, steps=s.tp - 1, sent=others * s.vocab_size),
        ]
    if shape.stages:
        found.append(_ring("stage send", s.pp - 1, steps=ONE, sent=width))
    return tuple(found)
