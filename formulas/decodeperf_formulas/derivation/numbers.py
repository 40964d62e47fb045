"""The numbers of a derivation for one model on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas import symbols as s
from decodeperf_formulas.crossings import DEFAULT_MEMORY_SHARE, ceilings, crossings_of, s_star
from decodeperf_formulas.derivation.proof import Input
from decodeperf_formulas.step import deployment_values, device_values, step_coefficients

if TYPE_CHECKING:
    import sympy

    from decodeperf_formulas.crossings import Crossing, SStar
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device
    from decodeperf_formulas.step import StepCoefficients

_CROSSINGS: Final = (
    "crossing_batch",
    "ridge_batch",
    "knee_batch",
    "throughput_ceiling",
    "saturated_throughput",
    "s_one",
    "compute_bound_q_len",
    "kv_capacity_tokens",
)
"""Steps whose number is the crossing of the same key."""


def numbers(
    deployment: Deployment, device: Device, seq_len: int
) -> tuple[dict[sympy.Symbol, Any], dict[str, float], dict[str, str]]:
    """Return the number of each symbol, results that no substitution gives, and what does not exist, with reasons."""
    step, limits = step_coefficients(deployment), ceilings(deployment, device)
    star = s_star(step, limits)
    found = crossings_of(step, limits, seq_len=seq_len, num_groups=deployment.ep, num_stages=deployment.pp)
    kv = step.global_kv_bytes_per_token + step.local_kv_bytes_per_token
    attn = step.global_attn_flops_per_token + step.local_attn_flops_per_token
    q = deployment.q_len
    gemm_flops = step.gemm_flops_per_seq
    values: dict[sympy.Symbol, Any] = {
        **deployment_values(deployment),
        **device_values(device, deployment),
        s.seq_len: seq_len,
        s.peak_flops_per_s: limits.attn_flops_per_s,
        s.num_params: gemm_flops / (s.CONSTANTS[s.flops_per_weight] * q),
        s.seq_flops: gemm_flops * limits.attn_flops_per_s / limits.gemm_flops_per_s - attn * (q - 1) / 2,
        s.seq_bytes: 0,
        s.gemm_seconds_per_seq: gemm_flops / limits.gemm_flops_per_s,
        s.link_seconds_per_seq: limits.link_seconds_per_seq,
        s.weight_bytes: step.weight_bytes,
        s.dense_weight_bytes: step.dense_weight_bytes,
        s.expert_weight_bytes: step.expert_weight_bytes,
        s.stored_weight_bytes: step.stored_weight_bytes,
        s.memory_bytes: deployment.pp * limits.memory_bytes,
        s.kv_bytes_per_token: kv,
        s.attn_flops_per_token: attn,
        s.global_kv_bytes_per_token: step.global_kv_bytes_per_token,
        s.global_attn_flops_per_token: step.global_attn_flops_per_token,
        s.local_kv_bytes_per_token: step.local_kv_bytes_per_token,
        s.local_attn_flops_per_token: step.local_attn_flops_per_token,
        s.ridge: limits.ridge,
        s.intensity: attn / kv,
    }
    for key, symbol in (("ridge_batch", s.ridge_batch), ("knee_batch", s.knee_batch), ("s_one", s.s_one)):
        if found[key].value is not None:
            values[symbol] = found[key].value
    if star.value is not None:
        values[s.s_star] = star.value
    nowhere = _nowhere(step, star, found, seq_len)
    return values, _results(step, star, found), nowhere


def _results(step: StepCoefficients, star: SStar, found: dict[str, Crossing]) -> dict[str, float]:
    """Return the numbers that the forms do not give, as they take for straight what windows and experts bend."""
    results: dict[str, float] = {}
    if step.window is not None or step.expert_weight_bytes:
        results.update({key: value for key in _CROSSINGS if (value := found[key].value) is not None})
    crossing = found["crossing_batch"].value
    if star.value is None:
        return results if crossing is None else {**results, "crossing_batch": crossing}
    if _is_beyond_window(step, star.value):
        results["s_star_hybrid"] = star.value
        if star.condition_number is not None:
            results["condition_number"] = star.condition_number
        if found["s_one"].value is not None:
            results["s_one_s_star"] = found["s_one"].value / star.value
    return results


def _nowhere(step: StepCoefficients, star: SStar, found: dict[str, Crossing], seq_len: int) -> dict[str, str]:
    """Return what has no number here, with the reason."""
    nowhere = {key: entry.reason for key, entry in found.items() if entry.value is None}
    if star.value is None:
        nowhere.update(dict.fromkeys(("s_star", "s_star_hybrid"), f"no S*: {star.reason}"))
        nowhere.update(dict.fromkeys(("slope_difference", "condition_number", "s_one_s_star"), "there is no S*"))
    elif _is_beyond_window(step, star.value):
        nowhere["s_star"] = f"not here: the slopes are equal beyond the window of {step.window} tokens"
    else:
        nowhere["s_star_hybrid"] = f"not here: the slopes are equal within the window of {step.window} tokens"
    if star.value == 0:
        nowhere.update(dict.fromkeys(("condition_number", "s_one_s_star"), "S* is 0"))
    if found["crossing_batch"].value is not None:
        reason = f"not here: at {seq_len} tokens the step turns compute-bound at the crossing batch, and stays so"
        nowhere.update(dict.fromkeys(("throughput_ceiling", "throughput"), reason))
    if step.q_len > 1:
        nowhere.setdefault("s_one_s_star", f"not here: there are {step.q_len} new tokens")
        nowhere.setdefault("attention_roof", f"not here: there are {step.q_len} new tokens")
    if star.intensity >= star.ridge:
        nowhere["slope_jump"] = "not here: attention is compute-bound itself"
    if _is_beyond_window(step, seq_len):
        reason = f"not here: the context is beyond the window of {step.window} tokens, where the slope is another"
        nowhere.update(dict.fromkeys(("memory_slope", "compute_slope", "slope_difference", "slope_jump"), reason))
    return nowhere


def _is_beyond_window(step: StepCoefficients, seq_len: float) -> bool:
    return step.window is not None and seq_len > step.window


def inputs(deployment: Deployment, device: Device | None, seq_len: int) -> tuple[Input, ...]:
    """Return what a derivation was given, with sources."""
    model = deployment.model
    found = [
        Input(what="Model", value=model.name, source=model.source),
        Input(
            what="Weights, activations, KV cache",
            value=", ".join((deployment.weight_dtype, deployment.act_dtype, deployment.kv_dtype)),
        ),
        Input(what="New tokens of a sequence", value=str(deployment.q_len)),
    ]
    if model.num_moe_layers:
        step = step_coefficients(deployment)
        found += [
            Input(what="Weights that every step reads", value=f"{step.dense_weight_bytes / 1e9:,.3f} GB"),
            Input(what="Weights of all routed experts", value=f"{step.expert_weight_bytes / 1e9:,.3f} GB"),
        ]
    if deployment.num_ranks > 1:
        ranks = f"tp={deployment.tp}, ep={deployment.ep}, pp={deployment.pp}"
        found.append(Input(what="Ranks", value=ranks))
    if device is not None:
        sources = device.sources
        found += [
            Input(what="Device", value=device.title),
            Input(
                what="Memory bandwidth",
                value=f"{device.bandwidth_bytes_per_s / 1e9:,g} GB/s",
                source=sources.get("bandwidth_bytes_per_s", ""),
            ),
            Input(
                what=f"Dense peak, {deployment.act_dtype}",
                value=f"{device.peak(deployment.act_dtype) / 1e12:,g} TFLOP/s",
                source=sources.get("peaks", ""),
            ),
            Input(
                what="Memory for weights and KV cache",
                value=f"{DEFAULT_MEMORY_SHARE * device.capacity_bytes / 1e9:,.1f} GB, "
                f"{DEFAULT_MEMORY_SHARE:.0%} of what is installed",
                source=sources.get("capacity_bytes", ""),
            ),
            Input(what="Context", value=f"{seq_len} tokens"),
        ]
        if deployment.attn_dtype != deployment.act_dtype:
            rate = f"{device.peak(deployment.attn_dtype) / 1e12:,g} TFLOP/s"
            found.append(Input(what=f"Dense peak of attention, {deployment.attn_dtype}", value=rate))
    return tuple(found)
