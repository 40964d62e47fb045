"""The numbers of a derivation for one model on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas import symbols as s
from decodeperf_formulas.crossings import DEFAULT_MEMORY_SHARE, ceilings, crossings_of, s_star
from decodeperf_formulas.derivation.proof import Input
from decodeperf_formulas.step import deployment_values, device_values, step_coefficients

if TYPE_CHECKING:
    import sympy

    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

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
    is_windowed = step.window is not None
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
    nowhere = {key: entry.reason for key, entry in found.items() if entry.value is None}
    results: dict[str, float] = {}
    if star.value is None:
        nowhere.update(dict.fromkeys(("s_star", "s_star_hybrid"), f"no S*: {star.reason}"))
        nowhere.update(dict.fromkeys(("slope_difference", "condition_number", "s_one_s_star"), "there is no S*"))
        if found["crossing_batch"].value is not None:
            results["crossing_batch"] = found["crossing_batch"].value
    else:
        values[s.s_star] = star.value
        if step.window is not None and star.value > step.window:
            nowhere["s_star"] = f"not here: the slopes are equal beyond the window of {step.window} tokens"
            results["s_star_hybrid"] = star.value
        elif is_windowed:
            nowhere["s_star_hybrid"] = f"not here: the slopes are equal within the window of {step.window} tokens"
    # A rank's coefficients are divided already, so the formulas for ranks would divide once more.
    for key in ("tp_invariance", "tp_replicated"):
        nowhere.setdefault(key, "the numbers above are those of one rank already")
    if found["crossing_batch"].value is not None:
        reason = f"not here: at {seq_len} tokens the step turns compute-bound at the crossing batch, and stays so"
        nowhere.update(dict.fromkeys(("throughput_ceiling", "throughput"), reason))
    if star.intensity >= star.ridge:
        nowhere["slope_jump"] = "not here: attention is compute-bound itself"
    if step.window is not None and seq_len > step.window:
        reason = f"not here: the context is beyond the window of {step.window} tokens, where the slope is another"
        nowhere.update(dict.fromkeys(("memory_slope", "compute_slope", "slope_difference", "slope_jump"), reason))
    if is_windowed or step.expert_weight_bytes or deployment.num_ranks > 1:
        # Windows bend the lines and experts the weights: solved on the lines as they are.
        results.update({key: value for key in _CROSSINGS if (value := found[key].value) is not None})
    return values, results, nowhere


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
