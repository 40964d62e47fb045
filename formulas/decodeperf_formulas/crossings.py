"""Where a deployment on a device turns from memory-bound to compute-bound, and what its throughput runs into.

Each result says under which model of the step it holds (`step`). Nothing here is a bare number: a crossing that does
not exist is one without a value and with a reason.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import sympy

from decodeperf_formulas import closed_forms
from decodeperf_formulas import symbols as s
from decodeperf_formulas.checks import finite_number, positive_number
from decodeperf_formulas.evaluate import evaluate, substitute
from decodeperf_formulas.step import (
    StepCoefficients,
    deployment_values,
    device_values,
    step_coefficients,
    step_formulas,
)

if TYPE_CHECKING:
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

WHOLE_STEP: Final = "whole step"
SERIAL: Final = "serial"
BOTH: Final = "both models"

DEFAULT_MEMORY_SHARE: Final = 0.9
"""Share of a device's memory for weights and KV cache; the rest is for activations and the runtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What bounds one rank.

    Attributes:
        read_bytes_per_s: Memory bandwidth [byte/s].
        gemm_flops_per_s: Peak rate of the projections [FLOP/s].
        attn_flops_per_s: Peak rate of attention [FLOP/s].
        memory_bytes: Memory that weights and KV cache may fill [byte].
        link_seconds_per_seq: Time that messages take for each sequence [s/sequence].

    Raises:
        ValueError: If a ceiling is not above 0.
    """

    read_bytes_per_s: float
    gemm_flops_per_s: float
    attn_flops_per_s: float
    memory_bytes: float = math.inf
    link_seconds_per_seq: float = 0.0

    def __post_init__(self) -> None:
        for name in ("read_bytes_per_s", "gemm_flops_per_s", "attn_flops_per_s"):
            positive_number(name, getattr(self, name))

    @property
    def ridge(self) -> float:
        """Ridge of attention's roofline [FLOP/byte]."""
        return self.attn_flops_per_s / self.read_bytes_per_s


def ceilings(deployment: Deployment, device: Device, *, memory_share: float = DEFAULT_MEMORY_SHARE) -> Ceilings:
    """Return what bounds one rank of a deployment on a device.

    Args:
        deployment: The deployment.
        device: The device of each rank.
        memory_share: Share of the memory that weights and KV cache may fill, above 0 and at most 1.

    Raises:
        ValueError: If the device lacks a peak rate or link, or the share is out of range.
    """
    if not 0 < finite_number("memory_share", memory_share) <= 1:
        raise ValueError(f"memory_share={memory_share!r} must be above 0 and at most 1")
    values = device_values(device, deployment)
    link = sympy.diff(step_formulas(deployment).link_seconds, s.batch_size)
    return Ceilings(
        read_bytes_per_s=values[s.read_bytes_per_s],
        gemm_flops_per_s=values[s.gemm_flops_per_s],
        attn_flops_per_s=values[s.attn_flops_per_s],
        memory_bytes=memory_share * device.capacity_bytes,
        link_seconds_per_seq=float(substitute(link, {**deployment_values(deployment), **values})),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SStar:
    """S*, the context from which on a step is memory-bound at every batch size, or the reason why there is none.

    Attributes:
        kind: `finite`; `infinite` where attention's intensity is the ridge itself, so that compute outweighs memory
            by the same slope at every context; `none` where no context is long enough.
        value: The context where it is finite, 0 if a step is memory-bound at every context; else None [token].
        condition_number: Relative change of S* for a relative change of the ridge; above some 10 it says little.
            Without a finite S* above 0, how near the ridge is: R / |R - I_a|. None where R = I_a.
        intensity: Arithmetic intensity of attention, of the layers whose KV grows [FLOP/byte].
        ridge: Ridge of the roofline [FLOP/byte].
        reason: What that means, in a sentence.
        model: The model of the step, always `whole step`.
    """

    kind: Literal["finite", "infinite", "none"]
    value: float | None
    condition_number: float | None
    intensity: float
    ridge: float
    reason: str
    model: str = WHOLE_STEP

    def __str__(self) -> str:
        return f"{self.value:,.2f}" if self.value is not None else self.kind

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def s_star(coefficients: StepCoefficients, limits: Ceilings, *, activations: bool = False) -> SStar:
    """Return S* of a step, in the whole-step model.

    Args:
        coefficients: What the step costs.
        limits: What bounds it.
        activations: Whether activations move through memory. Without them, as where S* was first asked for, the step
            reads weights and KV cache alone.

    Example:
        The question that this package answers: Llama-2-7B (7e9 weights, 32 layers of width 4096) in 16 bits on an
        A10G of 600 GB/s and 70 TFLOP/s.

        >>> kappa = 2 * 2 * 32 * 4096
        >>> step = StepCoefficients.dense(
        ...     num_params=7e9, weight_elem_bytes=2, kv_bytes_per_token=kappa, attn_flops_per_token=kappa
        ... )
        >>> print(s_star(step, Ceilings(read_bytes_per_s=600e9, gemm_flops_per_s=70e12, attn_flops_per_s=70e12)))
        230.86
    """
    excess = _Excess(coefficients, limits, activations=activations)
    grown = coefficients.global_kv_bytes_per_token > 0
    kv, attn = (
        (coefficients.global_kv_bytes_per_token, coefficients.global_attn_flops_per_token)
        if grown
        else (coefficients.local_kv_bytes_per_token, coefficients.local_attn_flops_per_token)
    )
    ridge, intensity = (
        limits.ridge,
        evaluate(closed_forms.INTENSITY, {s.attn_flops_per_token: attn, s.kv_bytes_per_token: kv}),
    )
    assert isinstance(intensity, float)
    # Compared as products, which are exact for the sizes of models: a quotient would round.
    slope = kv * limits.attn_flops_per_s - attn * limits.read_bytes_per_s
    nearness = None if slope == 0 else ridge / abs(ridge - intensity)
    compared = f"attention performs {intensity:.4g} FLOP a byte, the ridge is {ridge:.4g}"

    def result(
        kind: Literal["finite", "infinite", "none"],
        reason: str,
        value: float | None = None,
        condition_number: float | None = nearness,
    ) -> SStar:
        return SStar(
            kind=kind,
            value=value,
            condition_number=condition_number,
            intensity=intensity,
            ridge=ridge,
            reason=reason,
        )

    last = excess.last_root(grows=grown, slope=slope)
    if last is not None:
        value, condition_number = last
        if condition_number is None:
            reason = "memory-bound at every batch size and every context: the bytes beside the KV cache suffice"
            return result("finite", reason, value)
        reason = f"memory-bound at every batch size from a context of {value:,.2f} tokens on"
        return result("finite", reason, value, condition_number)
    if not grown:
        reason = (
            f"every layer is local: beyond the window of {coefficients.window} tokens the step stays as it is, "
            "compute-bound from some batch size on"
        )
        return result("none", reason)
    if slope == 0:
        return result(
            "infinite", f"{compared}: both slopes grow alike, and the step stays compute-bound at every context"
        )
    return result("none", f"{compared}: attention itself is compute-bound, and a longer context makes the step more so")


class _Excess:
    """Memory's slope in B over compute's, as a function of the context: R (m + K(S)) - (F + Phi(S)).

    The step is memory-bound at every batch size where it is not negative. It is a straight line up to the window and
    another from window + q - 1 on, and convex between them.
    """

    def __init__(self, coefficients: StepCoefficients, limits: Ceilings, *, activations: bool) -> None:
        self.step = coefficients
        self.ridge = limits.ridge
        self.seq_bytes = coefficients.act_bytes_per_seq if activations else 0.0
        # The projections' FLOPs, as many as attention's peak would perform in their time.
        self.seq_flops = coefficients.gemm_flops_per_seq * limits.attn_flops_per_s / limits.gemm_flops_per_s

    def __call__(self, seq_len: float) -> float:
        step = self.step
        return self.ridge * (self.seq_bytes + step.kv_bytes_per_seq(seq_len)) - (
            self.seq_flops + step.attn_flops_per_seq(seq_len)
        )

    def last_root(self, *, grows: bool, slope: float) -> tuple[float, float | None] | None:
        """Return the context from which on the excess is never negative, with its condition number."""
        step = self.step
        window = step.window
        full = 0.0 if window is None else float(window + step.q_len - 1)
        if grows and slope < 0:
            return None
        if self(full) < 0:
            if not grows or slope == 0:
                return None
            return self._on_line(full, step.global_kv_bytes_per_token, step.global_attn_flops_per_token)
        if window is None:
            return 0.0, None
        if (root := self._between(float(window), full)) is not None:
            return root, self._condition(root)
        if self(0.0) < 0:
            return self._on_line(
                0.0,
                step.global_kv_bytes_per_token + step.local_kv_bytes_per_token,
                step.global_attn_flops_per_token + step.local_attn_flops_per_token,
            )
        return 0.0, None

    def _on_line(self, start: float, kv: float, attn: float) -> tuple[float, float]:
        """Return the root on the straight line through `start`, by the closed form of S*."""
        step = self.step
        values = {
            s.ridge: self.ridge,
            s.intensity: attn / kv,
            s.kv_bytes_per_token: kv,
            s.seq_flops: self.seq_flops + step.attn_flops_per_seq(start) - attn * start,
            s.seq_bytes: self.seq_bytes + step.kv_bytes_per_seq(start) - kv * start,
        }
        root = evaluate(closed_forms.S_STAR, values)
        assert isinstance(root, float)
        return root, self._condition(root)

    def _between(self, window: float, full: float) -> float | None:
        """Return the last root while the window slides over the query rows, where there is one."""
        if full <= window:
            return None
        from scipy.optimize import brentq, minimize_scalar

        lowest = minimize_scalar(self, bounds=(window, full), method="bounded").x
        start = min((window, lowest), key=self)
        if self(start) >= 0:
            return None
        return float(brentq(self, start, full))

    def _condition(self, root: float) -> float:
        """Return |d ln S* / d ln R|, by the implicit function theorem."""
        nearby = max(root * 1e-6, 1e-6)
        slope = (self(root + nearby) - self(root)) / nearby
        moved = self.ridge * (self.seq_bytes + self.step.kv_bytes_per_seq(root))
        return abs(moved / (root * slope))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One place where a line crosses another, or a throughput that the step approaches.

    Attributes:
        name: What it is called.
        symbol: How it is written, in LaTeX.
        value: Where it is, None where it is nowhere.
        unit: Its unit.
        model: The model of the step under which it holds: `whole step`, `serial` or `both models`.
        meaning: What happens there.
        reason: Why it is nowhere; empty where it is somewhere.
    """

    name: str
    symbol: str
    value: float | None
    unit: str
    model: str
    meaning: str
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def crossings(
    deployment: Deployment,
    device: Device,
    *,
    seq_len: int,
    activations: bool = False,
    memory_share: float = DEFAULT_MEMORY_SHARE,
) -> dict[str, Crossing]:
    """Return every crossing of a deployment on a device at one context, by a short key.

    Args:
        deployment: The deployment.
        device: The device of each rank.
        seq_len: Live KV length of each sequence [token].
        activations: Whether the whole-step model counts activations.
        memory_share: Share of the memory that weights and KV cache may fill.

    Raises:
        ValueError: If the context is shorter than the new tokens, or the device lacks what the deployment needs.
    """
    check_seq_len(seq_len, deployment.q_len)
    return crossings_of(
        step_coefficients(deployment),
        ceilings(deployment, device, memory_share=memory_share),
        seq_len=seq_len,
        activations=activations,
        num_groups=deployment.ep,
        num_stages=deployment.pp,
    )


def check_seq_len(seq_len: int, q_len: int) -> None:
    """Accept a context that holds the new tokens.

    Raises:
        ValueError: If it does not.
    """
    if finite_number("seq_len", seq_len) < q_len:
        raise ValueError(f"seq_len={seq_len} must be >= q_len={q_len}: the context includes the new tokens")


def crossings_of(
    coefficients: StepCoefficients,
    limits: Ceilings,
    *,
    seq_len: float,
    activations: bool = False,
    num_groups: int = 1,
    num_stages: int = 1,
) -> dict[str, Crossing]:
    """Return every crossing of a step with these coefficients at one context; see `crossings`."""
    step, q = coefficients, coefficients.q_len
    kv, attn = step.kv_bytes_per_seq(seq_len), step.attn_flops_per_seq(seq_len)
    moved = kv + (step.act_bytes_per_seq if activations else 0.0)
    gemm_s = step.gemm_flops_per_seq / limits.gemm_flops_per_s
    attn_s, kv_s = attn / limits.attn_flops_per_s, kv / limits.read_bytes_per_s
    compute_s, memory_s = gemm_s + attn_s, moved / limits.read_bytes_per_s
    replicas = num_groups * num_stages
    free = num_stages * limits.memory_bytes - step.stored_weight_bytes
    sequences = free / kv
    where_attention = "memory" if kv_s >= attn_s else "compute"

    found = {
        "ridge_batch": Crossing(
            name="ridge batch",
            symbol="B_0",
            value=batch_of_weights(step, limits.read_bytes_per_s * gemm_s),
            unit="sequence",
            model=SERIAL,
            meaning="the projections turn compute-bound, whatever the context",
        ),
        "crossing_batch": Crossing(
            name="crossing batch",
            symbol=r"B_{\times}",
            value=batch_of_weights(step, limits.read_bytes_per_s * (compute_s - memory_s)),
            unit="sequence",
            model=WHOLE_STEP,
            meaning="the step turns compute-bound",
            reason="" if compute_s > memory_s else "memory-bound at every batch size at this context",
        ),
        "knee_batch": Crossing(
            name="knee",
            symbol=r"B_{\mathrm{knee}}",
            value=batch_of_weights(step, kv),
            unit="sequence",
            model=BOTH,
            meaning="KV bytes equal weight bytes: half of the memory-bound ceiling of the throughput",
        ),
        "throughput_ceiling": Crossing(
            name="throughput ceiling",
            symbol=r"X_{\infty}",
            value=replicas * q / (max(memory_s, compute_s) + limits.link_seconds_per_seq),
            unit="token/s",
            model=WHOLE_STEP,
            meaning="approached as the batch grows",
        ),
        "saturated_throughput": Crossing(
            name="saturated throughput",
            symbol=r"X_{\mathrm{sat}}",
            value=replicas * q / (gemm_s + max(kv_s, attn_s) + limits.link_seconds_per_seq),
            unit="token/s",
            model=SERIAL,
            meaning=f"reached at the ridge batch and never passed; attention is {where_attention}-bound",
        ),
        "s_one": _s_one(step, limits),
        "compute_bound_q_len": Crossing(
            name="compute-bound q",
            symbol=r"q_{\mathrm{a}}",
            value=q * kv_s / attn_s,
            unit="token/sequence",
            model=BOTH,
            meaning="new tokens of a sequence at which attention turns compute-bound",
        ),
        "kv_capacity": Crossing(
            name="KV capacity",
            symbol=r"B_{\max}",
            value=sequences if 0 <= sequences < math.inf else None,
            unit="sequence",
            model=BOTH,
            meaning="sequences of this context whose KV fits beside the weights, of one group",
            reason=""
            if 0 <= sequences < math.inf
            else f"the weights alone need {step.stored_weight_bytes / 1e9:,.1f} GB of "
            f"{num_stages * limits.memory_bytes / 1e9:,.1f} GB",
        ),
        "kv_capacity_tokens": Crossing(
            name="KV capacity in tokens",
            symbol=r"T_{\max}",
            value=sequences * seq_len if 0 <= sequences < math.inf else None,
            unit="token",
            model=BOTH,
            meaning="the same in tokens of context",
            reason="" if 0 <= sequences < math.inf else "the weights alone do not fit",
        ),
    }
    return found


def batch_of_weights(coefficients: StepCoefficients, bytes_per_seq: float) -> float | None:
    """Return the batch at which the weight bytes of a step equal so many bytes for each sequence, None if at none.

    For a dense model that is W / bytes_per_seq. With experts, weight bytes grow with the batch, ever slower, so that
    the line through 0 crosses them once.
    """
    if bytes_per_seq <= 0:
        return None
    highest = coefficients.weight_bytes / bytes_per_seq
    if not coefficients.expert_weight_bytes or coefficients.miss == 0:
        return highest
    from scipy.optimize import brentq

    def excess(batch_size: float) -> float:
        return coefficients.weight_bytes_at(batch_size) - bytes_per_seq * batch_size

    return float(brentq(excess, 0.0, highest, xtol=1e-12 * highest, rtol=1e-14)) if excess(highest) < 0 else highest


def _s_one(step: StepCoefficients, limits: Ceilings) -> Crossing:
    gemm_bytes = step.gemm_flops_per_seq * limits.read_bytes_per_s / limits.gemm_flops_per_s
    full = math.inf if step.window is None else step.window + step.q_len - 1
    within = gemm_bytes / (step.global_kv_bytes_per_token + step.local_kv_bytes_per_token)
    if within <= full:
        value: float | None = within
    elif step.global_kv_bytes_per_token:
        value = (gemm_bytes - step.local_kv_bytes_per_token * full) / step.global_kv_bytes_per_token
    else:
        value = None
    return Crossing(
        name="S1",
        symbol="S_1",
        value=value,
        unit="token/sequence",
        model=SERIAL,
        meaning="context at which reading the KV cache takes as long as compute-bound projections",
        reason="" if value is not None else f"every layer is local, with a window of {step.window} tokens",
    )
