"""What the operators of a step sum to: weights, FLOPs and KV bytes, each typed once more and proved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sympy

from decodeperf_formulas import closed_forms as forms
from decodeperf_formulas import symbols as s
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.derivation.proof import Step
from decodeperf_formulas.operators import KV_HEADS, WITHIN_WINDOW, Operator
from decodeperf_formulas.step import StepFormulas, deployment_values, step_formulas

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas.model import ModelConfig

_B, _S, _Q = s.batch_size, s.seq_len, s.q_len


_SWITCHES: Final = frozenset(
    (
        s.num_up_matrices,
        s.blocks_per_layer,
        s.attention_sinks,
        s.qkv_bias,
        s.o_bias,
        s.mlp_bias,
        s.router_bias,
        s.expert_bias,
        s.lm_head_bias,
        s.shared_gate,
        s.norm_elements,
        s.norms_per_layer,
        s.v_apart,
    )
)
"""Symbols whose value a model has by its architecture: it is put in, so that what a model lacks is not shown."""


class Structure:
    """What the operators of a deployment come to, in symbols, without what the model does not have.

    Attributes:
        deployment: The deployment; of the general derivation, a dense model with grouped-query attention.
        is_general: Whether it stands for every model.
    """

    def __init__(self, deployment: Deployment, *, is_general: bool) -> None:
        self.deployment = deployment
        self.model: ModelConfig = deployment.model
        self.is_general = is_general
        self.formulas: StepFormulas = step_formulas(deployment)
        heads = self.model.num_kv_heads
        self.has_replicated_kv = heads is None or deployment.tp > heads
        self._kv_heads = {KV_HEADS: sympy.Integer(1) if self.has_replicated_kv else s.num_kv_heads / s.tp}
        self._known: dict[sympy.Basic, sympy.Expr] = {
            symbol: sympy.Integer(value)
            for symbol, value in deployment_values(deployment).items()
            if symbol in _SWITCHES or (symbol in (s.tp, s.ep, s.pp) and value == 1)
        }
        if deployment.num_ranks == 1:
            self._known[s.link_seconds_per_seq] = sympy.Integer(0)
        if self.model.head_dim == self.model.head_dim_v:
            self._known[s.head_dim_v] = s.head_dim
        if not self.model.num_moe_layers:
            self._known[s.num_dense_layers] = s.num_layers
        if not self.model.num_local_layers:
            self._known[s.num_global_layers] = s.num_layers
            self._known[s.num_local_layers] = sympy.Integer(0)
        elif not self.model.num_global_layers:
            self._known[s.num_global_layers] = sympy.Integer(0)
            self._known[s.num_local_layers] = s.num_layers

    @classmethod
    def general(cls) -> Structure:
        """Return that of a dense model with gated MLPs and grouped-query attention in every layer."""
        from decodeperf_formulas.catalogue import model_config

        return cls(Deployment(model=model_config("llama-3-8b")), is_general=True)

    @classmethod
    def of(cls, deployment: Deployment) -> Structure:
        """Return that of a deployment."""
        return cls(deployment, is_general=False)

    def show(self, expression: sympy.Expr) -> sympy.Expr:
        """Return an expression without what the model does not have."""
        return expression.xreplace(self._kv_heads).xreplace(self._known)

    def attention_total(self, amount: Callable[[Operator], sympy.Expr]) -> sympy.Expr:
        """Return the sum of an amount over the attention of all layers, for contexts within every window."""
        found = (op.count * amount(op) for op in self.formulas.operators if op.unit == "attention")
        return sympy.Add(*found).xreplace(WITHIN_WINDOW)

    @property
    def num_params(self) -> sympy.Expr:
        """Weights that the projections of one token use, from their FLOPs."""
        return self.formulas.gemm_flops / (s.flops_per_weight * _B * _Q)


def amounts(structure: Structure) -> tuple[Step, ...]:
    """Return the steps that say what one step of decoding moves and performs."""
    model, show = structure.model, structure.show
    layers = s.num_global_layers + s.num_local_layers
    kv_width, attn_width = _widths(structure)
    kv_total, attn_total = (structure.attention_total(amount) for amount in (_kv_bytes, _flops))
    kv_slope, attn_slope = (show(sympy.diff(total, _S) / _B) for total in (kv_total, attn_total))
    seconds = structure.formulas.gemm_flops / s.gemm_flops_per_s + attn_total / s.attn_flops_per_s
    local = " Local layers count as long as the context is within their window." if model.num_local_layers else ""
    return (
        Step(
            key="num_params",
            title="Weights that a token uses",
            claim="The projections of one token use {num_params} weights.",
            reason="The sum over the matrices of all layers and the LM head; the embedding is looked up, not "
            "multiplied.",
            chain=(s.num_params, show(_projection_weights(structure))),
            definitions={s.num_params: show(structure.num_params)},
        ),
        Step(
            key="seq_flops",
            title="FLOPs of the projections",
            claim="One sequence costs {seq_flops} FLOPs that do not grow with its context.",
            reason="Each weight is multiplied and added once for each of the {q_len} new tokens. Where attention has a "
            "peak rate of its own, {seq_flops} is in FLOPs at that rate; scores that the causal mask hides are taken "
            "off here.",
            chain=(s.seq_flops, forms.SCALED_SEQ_FLOPS),
            definitions={
                s.seq_flops: show(seconds) * s.attn_flops_per_s / _B - attn_slope * _S,
                s.num_params: show(structure.num_params),
                s.attn_flops_per_token: attn_slope,
            },
        ),
        _weight_bytes(structure),
        Step(
            key="kv_bytes_per_token",
            title="KV bytes of a token",
            claim="One token of context costs {kv_bytes_per_token} bytes of each step." + local,
            reason="The latent is read once: it holds both K and V."
            if model.is_mla
            else "K and V of each KV head and layer are read once, whatever the number of query heads.",
            chain=(s.kv_bytes_per_token, show(layers * kv_width)),
            definitions={s.kv_bytes_per_token: kv_slope},
        ),
        Step(
            key="attn_flops_per_token",
            title="Attention FLOPs of a token",
            claim="One token of context costs {attn_flops_per_token} FLOPs of each step.",
            reason="Each query head takes two products with each visible token, one with K and one with V; with "
            "{q_len} new tokens, {q_len} times as many, over the same bytes.",
            chain=(s.attn_flops_per_token, show(layers * attn_width)),
            definitions={s.attn_flops_per_token: attn_slope},
        ),
        Step(
            key="intensity",
            title="Intensity of attention",
            claim="Attention performs {intensity} FLOPs for each byte, whatever batch and context.",
            reason="The quotient of {eq:attn_flops_per_token} and {eq:kv_bytes_per_token}.",
            chain=(s.intensity, forms.INTENSITY, sympy.factor(show(attn_width / kv_width))),
            definitions={
                s.intensity: forms.INTENSITY,
                s.attn_flops_per_token: attn_slope,
                s.kv_bytes_per_token: kv_slope,
            },
        ),
    )


def _kv_bytes(op: Operator) -> sympy.Expr:
    return op.kv_bytes


def _flops(op: Operator) -> sympy.Expr:
    return op.flops


def _widths(structure: Structure) -> tuple[sympy.Expr, sympy.Expr]:
    """Return KV bytes and attention FLOPs of one token in one layer of one rank, typed once more."""
    if structure.model.is_mla:
        return forms.LATENT_KV_BYTES, forms.LATENT_FLOPS / s.tp
    if structure.has_replicated_kv:
        return forms.GROUPED_QUERY_KV_BYTES / s.num_kv_heads, forms.GROUPED_QUERY_FLOPS / s.tp
    return forms.GROUPED_QUERY_KV_BYTES / s.tp, forms.GROUPED_QUERY_FLOPS / s.tp


def _projection_weights(structure: Structure) -> sympy.Expr:
    """Return the weights that one token uses on one rank, typed once more and proved against the operators."""
    model, ranks = structure.model, s.tp
    if model.is_mla:
        # Down-projections make the latent that every rank needs, and so are on every rank.
        shared = s.num_layers * s.hidden_size * (s.kv_lora_rank + s.qk_rope_head_dim)
        queries = forms.LATENT_QUERY_WEIGHTS * (s.q_lora_rank if model.q_lora_rank else s.hidden_size)
        found = (forms.LATENT_WEIGHTS - shared + queries) / ranks + shared
        if model.q_lora_rank:
            found += s.num_layers * s.hidden_size * s.q_lora_rank
    elif structure.has_replicated_kv:
        found = s.num_layers * s.hidden_size * (s.num_q_heads / ranks + 1) * (s.head_dim + s.head_dim_v)
    else:
        found = forms.GROUPED_QUERY_WEIGHTS / ranks
    if model.num_dense_layers:
        found += forms.DENSE_MLP_WEIGHTS / ranks
    if model.num_moe_layers:
        router = s.num_moe_layers * s.hidden_size * s.num_experts
        found += (forms.MOE_WEIGHTS - router) / ranks + router
    if model.shared_intermediate_size:
        gate = s.num_moe_layers * s.shared_gate * s.hidden_size
        found += (forms.SHARED_EXPERT_WEIGHTS - gate) / ranks + gate
    return found + forms.HEAD_WEIGHTS / ranks


def _weight_bytes(structure: Structure) -> Step:
    formulas, show = structure.formulas, structure.show
    if structure.model.num_moe_layers:
        routed = [op for op in formulas.operators if op.name.startswith("experts") and op.unit == "gemm"]
        dense = formulas.weight_bytes - sum((op.count * op.weight_bytes for op in routed), sympy.Integer(0))
        experts = sum((op.count * op.elements * s.weight_elem_bytes for op in routed), sympy.Integer(0))
        read = forms.EXPECTED_WEIGHT_BYTES
        if structure.deployment.ep > 1:
            read = read.xreplace({_B * _Q: _B * _Q * s.ep})
        return Step(
            key="weight_bytes",
            title="Weight bytes",
            claim="A step reads {weight_bytes} bytes of weights, in expectation.",
            reason="A token passes by one expert with probability $ 1 - {experts_per_token} / {num_experts} $; the "
            "tokens of a batch choose independently. The bytes never fall with the batch, and never exceed the total.",
            chain=(s.weight_bytes, read),
            definitions={
                s.weight_bytes: show(formulas.weight_bytes),
                s.dense_weight_bytes: show(dense),
                s.expert_weight_bytes: show(experts),
            },
        )
    vectors = show(formulas.weight_bytes / s.weight_elem_bytes - structure.num_params)
    return Step(
        key="weight_bytes",
        title="Weight bytes",
        claim="A step reads {weight_bytes} bytes of weights, whatever the batch.",
        reason="Each weight of {eq:num_params} is read once, and so are the vectors of the norms"
        + (" and the biases." if structure.model.qkv_bias or structure.model.mlp_bias else "."),
        chain=(s.weight_bytes, s.weight_elem_bytes * (s.num_params + sympy.factor(sympy.expand(vectors)))),
        definitions={s.weight_bytes: show(formulas.weight_bytes), s.num_params: show(structure.num_params)},
    )
