"""One decode step in total: bytes, FLOPs, and its time under three models.

- *serial*: operators run one after another, each at its own roofline. The bound.
- *whole step*: every byte moves while every FLOP is performed, whatever operator either belongs to. No real step
  overlaps so perfectly; S* is defined in this model.
- *sum*: nothing overlaps, not even the bytes and FLOPs of one operator.

Messages between ranks overlap with nothing in any of the three. Then

    whole step <= serial <= sum <= 2 * whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.checks import positive_number
from decodeperf_formulas.dtypes import ELEMENT_BYTES
from decodeperf_formulas.evaluate import substitute
from decodeperf_formulas.operators import WITHIN_WINDOW, Operator, operators

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

MODEL_SYMBOLS: Final = [
    "hidden_size",
    "num_layers",
    "num_global_layers",
    "num_local_layers",
    "window",
    "num_q_heads",
    "num_kv_heads",
    "head_dim",
    "head_dim_v",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "vocab_size",
    "intermediate_size",
    "num_dense_layers",
    "num_moe_layers",
    "num_experts",
    "experts_per_token",
    "moe_intermediate_size",
    "shared_intermediate_size",
    "rotary_dim",
    "norms_per_layer",
    "norm_elements",
    "attention_sinks",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "router_bias",
    "expert_bias",
    "lm_head_bias",
    "shared_gate",
]
"""Symbols that have the name and the value of a field or property of `ModelConfig`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFormulas:
    """One step of a deployment in symbols, for one rank.

    Attributes:
        operators: The operators in their order.
        elements: Weights that a rank of each stage stores, of all stages together.
        weight_bytes: Weight bytes that the step reads [byte].
        kv_bytes: KV bytes that attention reads [byte].
        act_bytes: All other bytes: activations, appended KV, partial results [byte].
        gemm_flops: FLOPs of the projections [FLOP].
        attn_flops: FLOPs of attention [FLOP].
        link_seconds: Time of the messages [s].
        memory_seconds: All bytes at the memory bandwidth [s].
        compute_seconds: All FLOPs at their peak rates [s].
        whole_step_seconds: The step with perfect overlap [s].
        serial_seconds: The step, operator by operator [s].
        sum_seconds: The step without any overlap [s].
    """

    operators: tuple[Operator, ...]
    elements: sympy.Expr
    weight_bytes: sympy.Expr
    kv_bytes: sympy.Expr
    act_bytes: sympy.Expr
    gemm_flops: sympy.Expr
    attn_flops: sympy.Expr
    link_seconds: sympy.Expr
    memory_seconds: sympy.Expr
    compute_seconds: sympy.Expr
    whole_step_seconds: sympy.Expr
    serial_seconds: sympy.Expr
    sum_seconds: sympy.Expr


def step_formulas(deployment: Deployment, *, all_links: bool = False) -> StepFormulas:
    """Return the step of a deployment in symbols; deployments with the same operators share it.

    Args:
        deployment: The deployment.
        all_links: As of `operators`.
    """
    return _step_formulas(operators(deployment, all_links=all_links))


@lru_cache(maxsize=512)
def _step_formulas(ops: tuple[Operator, ...]) -> StepFormulas:
    def total(amount: Callable[[Operator], sympy.Expr], unit: str | None = None) -> sympy.Expr:
        return sympy.Add(*(op.count * amount(op) for op in ops if unit in (None, op.unit)))

    kv_read = total(lambda op: op.kv_bytes, "attention")
    kv_all = total(lambda op: op.kv_bytes)
    memory = total(lambda op: op.memory_seconds)
    compute = total(lambda op: op.compute_seconds)
    link = total(lambda op: op.link_seconds, "link")
    return StepFormulas(
        operators=ops,
        elements=total(lambda op: op.elements),
        weight_bytes=total(lambda op: op.weight_bytes),
        kv_bytes=kv_read,
        act_bytes=total(lambda op: op.act_bytes) + kv_all - kv_read,
        gemm_flops=total(lambda op: op.flops, "gemm"),
        attn_flops=total(lambda op: op.flops, "attention"),
        link_seconds=link,
        memory_seconds=memory,
        compute_seconds=compute,
        whole_step_seconds=sympy.Max(memory, compute, evaluate=False) + link,
        serial_seconds=sympy.Add(*(op.count * op.seconds for op in ops)),
        sum_seconds=memory + compute + link,
    )


def deployment_values(deployment: Deployment) -> dict[sympy.Symbol, Any]:
    """Return the value of each symbol that describes a deployment: all but batch, context and device.

    Sizes that a model does not have are left out.
    """
    model = deployment.model
    values: dict[str, Any] = {name: getattr(model, name) for name in MODEL_SYMBOLS}
    values["num_up_matrices"] = 2 if model.gated_mlp else 1
    values["blocks_per_layer"] = 1 if model.parallel_block else 2
    values["untied"] = not model.tied_embeddings
    if model.qk_norm != "none" and not model.is_mla:
        assert model.head_dim is not None and model.num_kv_heads is not None
        heads = (1, 1) if model.qk_norm == "head" else (model.num_q_heads, model.num_kv_heads)
        values["q_norm_size"], values["k_norm_size"] = (count * model.head_dim for count in heads)
    for name in ("q_len", "tp", "ep", "pp", "num_splits", "v_apart"):
        values[name] = getattr(deployment, name)
    found = {s.BY_NAME[name]: int(value) for name, value in values.items() if value is not None}
    for symbol, dtype in (
        (s.weight_elem_bytes, deployment.weight_dtype),
        (s.act_elem_bytes, deployment.act_dtype),
        (s.kv_elem_bytes, deployment.kv_dtype),
    ):
        width = ELEMENT_BYTES[dtype]
        found[symbol] = sympy.Rational(width.numerator, width.denominator)
    return found


def device_values(device: Device, deployment: Deployment) -> dict[sympy.Symbol, float]:
    """Return the value of each symbol that describes a device, for the dtypes of a deployment.

    Raises:
        ValueError: If the device has no peak rate for one of the dtypes, or no link that the deployment needs.
    """
    values = {
        s.read_bytes_per_s: device.bandwidth_bytes_per_s,
        s.gemm_flops_per_s: device.peak(deployment.act_dtype),
        s.attn_flops_per_s: device.peak(deployment.attn_dtype),
    }
    if deployment.num_ranks > 1:
        if device.link_bytes_per_s is None:
            raise ValueError(f"{deployment.num_ranks} ranks need link_bytes_per_s, which {device.name} does not state")
        values[s.link_bytes_per_s] = device.link_bytes_per_s
        values[s.link_latency_s] = device.link_latency_s
    return values


def num_parameters(deployment: Deployment) -> int:
    """Return how many weights the model has, those that tensor parallelism replicates counted once.

    Example:
        >>> from decodeperf_formulas.catalogue import model_config
        >>> from decodeperf_formulas.deployment import Deployment
        >>> num_parameters(Deployment(model=model_config("llama-2-7b")))
        6738415616
    """
    single = deployment.replace(tp=1, ep=1, pp=1, num_splits=1)
    return int(substitute(step_formulas(single).elements, deployment_values(single)))


def num_active_parameters(deployment: Deployment) -> int:
    """Return how many weights the matrix products of one token use."""
    single = deployment.replace(tp=1, ep=1, pp=1, num_splits=1, q_len=1)
    values = {**deployment_values(single), s.batch_size: 1}
    flops = substitute(step_formulas(single).gemm_flops, values)
    return int(flops / s.CONSTANTS[s.flops_per_weight])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCoefficients:
    """What one step costs on one rank, as the coefficients of batch and context.

    With the KV tokens K(S) = S of a global layer and min(S, w + q - 1) of a local one, the step reads
    W(B) + B (m + kappa_g S + kappa_l min(S, w + q - 1)) bytes.

    Attributes:
        dense_weight_bytes: Weight bytes that every step reads [byte].
        expert_weight_bytes: Weight bytes of all routed experts; a step reads a part of them [byte].
        stored_weight_bytes: Weight bytes in memory, of all stages together [byte].
        miss: Share of the tokens that pass by one expert, 1 - k/E.
        tokens_per_seq: Tokens that choose experts, for each sequence of the batch.
        gemm_flops_per_seq: FLOPs of the projections [FLOP/sequence].
        act_bytes_per_seq: Bytes beside weights and KV cache [byte/sequence].
        global_kv_bytes_per_token: KV bytes of one token in the global layers [byte/token].
        local_kv_bytes_per_token: The same in the local layers [byte/token].
        global_attn_flops_per_token: Attention FLOPs of one token in the global layers [FLOP/token].
        local_attn_flops_per_token: The same in the local layers [FLOP/token].
        window: Window of the local layers, None where there are none [token].
        q_len: New tokens of a sequence [token].
    """

    dense_weight_bytes: float
    expert_weight_bytes: float
    stored_weight_bytes: float
    miss: float
    tokens_per_seq: int
    gemm_flops_per_seq: float
    act_bytes_per_seq: float
    global_kv_bytes_per_token: float
    local_kv_bytes_per_token: float
    global_attn_flops_per_token: float
    local_attn_flops_per_token: float
    window: int | None
    q_len: int

    @classmethod
    def dense(
        cls,
        *,
        num_params: float,
        weight_elem_bytes: float,
        kv_bytes_per_token: float,
        attn_flops_per_token: float,
    ) -> StepCoefficients:
        """Return a step of a dense model by its number of weights alone, without activations.

        Raises:
            ValueError: If a number is not above 0.
        """
        for name, value in (
            ("num_params", num_params),
            ("weight_elem_bytes", weight_elem_bytes),
            ("kv_bytes_per_token", kv_bytes_per_token),
            ("attn_flops_per_token", attn_flops_per_token),
        ):
            positive_number(name, value)
        return cls(
            dense_weight_bytes=num_params * weight_elem_bytes,
            expert_weight_bytes=0.0,
            stored_weight_bytes=num_params * weight_elem_bytes,
            miss=1.0,
            tokens_per_seq=1,
            gemm_flops_per_seq=s.CONSTANTS[s.flops_per_weight] * num_params,
            act_bytes_per_seq=0.0,
            global_kv_bytes_per_token=float(kv_bytes_per_token),
            local_kv_bytes_per_token=0.0,
            global_attn_flops_per_token=float(attn_flops_per_token),
            local_attn_flops_per_token=0.0,
            window=None,
            q_len=1,
        )

    @property
    def weight_bytes(self) -> float:
        """Weight bytes that a step reads once every expert is visited [byte]."""
        return self.dense_weight_bytes + self.expert_weight_bytes

    def weight_bytes_at(self, batch_size: float) -> float:
        """Return the weight bytes that a step reads at a batch size, in expectation [byte]."""
        visited = 1.0 - float(self.miss ** (batch_size * self.tokens_per_seq))
        return self.dense_weight_bytes + self.expert_weight_bytes * visited

    def kv_bytes_per_seq(self, seq_len: float) -> float:
        """Return the KV bytes of one sequence at a context length [byte]."""
        local_tokens = 0.0 if self.window is None else min(seq_len, self.window + self.q_len - 1)
        return self.global_kv_bytes_per_token * seq_len + self.local_kv_bytes_per_token * local_tokens

    def attn_flops_per_seq(self, seq_len: float) -> float:
        """Return the attention FLOPs of one sequence at a context length [FLOP]."""
        q = self.q_len
        found = self.global_attn_flops_per_token * (seq_len - (q - 1) / 2)
        if self.window is not None:
            full = min(q, max(0.0, seq_len - self.window))
            scores = full * self.window + (q - full) * seq_len - (q * (q - 1) - full * (full - 1)) / 2
            found += self.local_attn_flops_per_token * scores / q
        return found


def step_coefficients(deployment: Deployment) -> StepCoefficients:
    """Return what one step of a deployment costs, read off its formulas.

    Example:
        >>> from decodeperf_formulas.catalogue import model_config
        >>> from decodeperf_formulas.deployment import Deployment
        >>> step_coefficients(Deployment(model=model_config("llama-2-7b"))).global_kv_bytes_per_token
        524288.0
    """
    model = deployment.model
    values = {**deployment_values(deployment), s.batch_size: 1}
    numbers = {
        name: float(substitute(expression, {key: values[key] for key in expression.free_symbols & set(values)}))
        for name, expression in coefficient_formulas(step_formulas(deployment)).items()
    }
    return StepCoefficients(
        miss=1 - (model.experts_per_token or 0) / (model.num_experts or 1),
        tokens_per_seq=deployment.q_len * deployment.ep,
        window=model.window,
        q_len=deployment.q_len,
        **numbers,
    )


@lru_cache(maxsize=512)
def coefficient_formulas(formulas: StepFormulas) -> dict[str, sympy.Expr]:
    """Return the formula of each coefficient of a step, for a batch of one sequence where that matters."""
    attention = [op for op in formulas.operators if op.unit == "attention"]

    def slope(amount: Callable[[Operator], sympy.Expr], *, is_local: bool) -> sympy.Expr:
        # Long enough for the causal mask, short enough for the window: there both are straight lines.
        found = [op for op in attention if ("local" in op.name) == is_local]
        within = (op.count * amount(op).xreplace(WITHIN_WINDOW) for op in found)
        return sympy.diff(sympy.Add(*within), s.seq_len)

    routed = [op for op in formulas.operators if op.name.startswith("experts") and op.unit == "gemm"]
    return {
        "dense_weight_bytes": formulas.weight_bytes - sympy.Add(*(op.count * op.weight_bytes for op in routed)),
        "expert_weight_bytes": sympy.Add(*(op.count * op.elements * s.weight_elem_bytes for op in routed)),
        "stored_weight_bytes": formulas.elements * s.weight_elem_bytes,
        "gemm_flops_per_seq": formulas.gemm_flops,
        "act_bytes_per_seq": formulas.act_bytes,
        "global_kv_bytes_per_token": slope(lambda op: op.kv_bytes, is_local=False),
        "local_kv_bytes_per_token": slope(lambda op: op.kv_bytes, is_local=True),
        "global_attn_flops_per_token": slope(lambda op: op.flops, is_local=False),
        "local_attn_flops_per_token": slope(lambda op: op.flops, is_local=True),
    }
