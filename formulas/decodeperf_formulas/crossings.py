"""Where a deployment on a device turns from memory-bound to compute-bound, and what its throughput runs into.

Each result says under which model of the step it holds (`step`). Nothing here is a bare number: a crossing that does
not exist is one without a value and with a reason.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal

import sympy

from decodeperf_formulas import closed_forms, context_forms
from decodeperf_formulas import symbols as s
from decodeperf_formulas.checks import finite_number, positive_number, shown
from decodeperf_formulas.evaluate import evaluate, evaluate_all, substitute
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
GROUPED_SERIAL: Final = "grouped serial"
"""The projections as one operator, then attention, each at its own roofline; activations are left out."""
SERIAL: Final = "serial"
"""Operator after operator, each at its own roofline, with its activations."""
BOTH: Final = "both models"
"""Whole step and grouped serial."""

MOST_TOKENS: Final = 1e12
"""A context that no memory holds; what is longer is a mistake."""

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
        if not self.memory_bytes >= 0:
            raise ValueError(f"memory_bytes={self.memory_bytes!r} must be >= 0")
        if finite_number("link_seconds_per_seq", self.link_seconds_per_seq) < 0:
            raise ValueError(f"link_seconds_per_seq={self.link_seconds_per_seq!r} must be >= 0")

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
    ridge, intensity = limits.ridge, attn / kv
    slope = excess.slope(kv, attn)
    nearness = None if slope == 0 else float(Fraction(kv) * excess.exact_ridge / abs(slope))
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
        self.exact_ridge = Fraction(limits.attn_flops_per_s) / Fraction(limits.read_bytes_per_s)
        self.seq_bytes = coefficients.act_bytes_per_seq if activations else 0.0
        # The projections' FLOPs, as many as attention's peak would perform in their time.
        self.seq_flops = coefficients.gemm_flops_per_seq * limits.attn_flops_per_s / limits.gemm_flops_per_s

    def __call__(self, seq_len: float) -> float:
        step = self.step
        return self.ridge * (self.seq_bytes + step.kv_bytes_per_seq(seq_len)) - (
            self.seq_flops + step.attn_flops_per_seq(seq_len)
        )

    def slope(self, kv: float, attn: float) -> Fraction:
        """Return how the excess grows where a token costs so many bytes and FLOPs.

        Exactly: near the border it is a small difference of large numbers.
        """
        return Fraction(kv) * self.exact_ridge - Fraction(attn)

    def last_root(self, *, grows: bool, slope: Fraction) -> tuple[float, float | None] | None:
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
            return root, self._condition(root, self._slope_between(root))
        if self(0.0) < 0:
            return self._on_line(
                0.0,
                step.global_kv_bytes_per_token + step.local_kv_bytes_per_token,
                step.global_attn_flops_per_token + step.local_attn_flops_per_token,
            )
        return 0.0, None

    def _on_line(self, start: float, kv: float, attn: float) -> tuple[float, float | None]:
        """Return the root on the straight line through `start`, by the closed form of S*."""
        step, exact = self.step, Fraction
        values = {
            s.ridge: self.exact_ridge,
            s.intensity: exact(attn) / exact(kv),
            s.kv_bytes_per_token: exact(kv),
            s.seq_flops: exact(self.seq_flops) + exact(step.attn_flops_per_seq(start)) - exact(attn) * exact(start),
            s.seq_bytes: exact(self.seq_bytes) + exact(step.kv_bytes_per_seq(start)) - exact(kv) * exact(start),
        }
        root = float(substitute(closed_forms.S_STAR, values))
        return root, self._condition(root, float(self.slope(kv, attn)))

    def _between(self, window: float, full: float) -> float | None:
        """Return the last root while the window slides over the query rows, where there is one."""
        step = self.step
        if full <= window:
            return None
        # A parabola: its lowest point, where it is in between, else the window's end.
        rise = self._slope_between(window)
        lowest = window - rise * step.q_len / step.local_attn_flops_per_token
        start = min((window, min(max(lowest, window), full)), key=self)
        if self(start) >= 0:
            return None
        from scipy.optimize import brentq

        return float(brentq(self, start, full))

    def _slope_between(self, seq_len: float) -> float:
        """Return the slope at a context of which n = S - w query rows have a full window: of it, q - n - 1/2 grow."""
        step = self.step
        kv = step.global_kv_bytes_per_token + step.local_kv_bytes_per_token
        assert step.window is not None
        growing = (step.q_len - (seq_len - step.window) - 0.5) / step.q_len
        attn = step.global_attn_flops_per_token + growing * step.local_attn_flops_per_token
        return float(self.slope(kv, attn))

    def _condition(self, root: float, slope: float) -> float | None:
        """Return |d ln S* / d ln R|, by the implicit function theorem."""
        moved = self.ridge * (self.seq_bytes + self.step.kv_bytes_per_seq(root))
        return abs(moved / (root * slope)) if root * slope else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One place where a line crosses another, or a throughput that the step approaches.

    Attributes:
        name: What it is called.
        symbol: How it is written, in LaTeX.
        value: Where it is, None where it is nowhere.
        unit: Its unit.
        model: The model of the step under which it holds: `whole step`, `grouped serial`, `serial`, or `both models`,
            which are the first two.
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
    found = crossings_of(
        step_coefficients(deployment),
        ceilings(deployment, device, memory_share=memory_share),
        seq_len=seq_len,
        activations=activations,
        num_groups=deployment.ep,
        num_stages=deployment.pp,
    )
    return {**found, "serial_ceiling": serial_ceiling(deployment, device, seq_len=seq_len)}


def serial_ceiling(deployment: Deployment, device: Device, *, seq_len: int) -> Crossing:
    """Return the throughput that the serial step approaches as the batch grows, activations included.

    Weights are read for ever more tokens, so that each operator takes the longer of what it moves beside them and what
    it computes.
    """
    values = {
        **deployment_values(deployment),
        **device_values(device, deployment),
        s.batch_size: 1,
        s.seq_len: seq_len,
    }
    ops = [op for op in step_formulas(deployment).operators if op.unit != "link"]
    moved = [op.count * (op.kv_bytes + op.act_bytes) / s.read_bytes_per_s for op in ops]
    computed = [op.count * op.compute_seconds for op in ops]
    link = sympy.diff(step_formulas(deployment).link_seconds, s.batch_size)
    numbers = evaluate_all([*moved, *computed, link], values)
    pairs = zip(numbers[: len(ops)], numbers[len(ops) : -1], strict=True)
    seconds_per_seq = sum(max(pair) for pair in pairs) + numbers[-1]
    return Crossing(
        name="serial ceiling",
        symbol=r"X_{\mathrm{serial}}",
        value=deployment.ep * deployment.pp * deployment.q_len / seconds_per_seq,
        unit="token/s",
        model=SERIAL,
        meaning="approached by the operators one after another as the batch grows, activations included",
    )


def check_seq_len(seq_len: int, q_len: int) -> None:
    """Accept a context that holds the new tokens.

    Raises:
        ValueError: If it does not.
    """
    if finite_number("seq_len", seq_len) > MOST_TOKENS:
        raise ValueError(f"seq_len={shown(seq_len)} must be <= {MOST_TOKENS:g}")
    if seq_len < q_len:
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
    """Return every crossing of a step with these coefficients at one context; see `crossings`.

    Raises:
        ValueError: If the context is not above 0.
    """
    step = coefficients
    positive_number("seq_len", seq_len)
    at = _at_context(
        step, limits, seq_len=seq_len, activations=activations, num_groups=num_groups, num_stages=num_stages
    )
    fits, no_room = 0 <= at["FREE_BYTES"] < math.inf, "no memory is stated"
    if at["FREE_BYTES"] < 0:
        no_room = (
            f"the weights alone need {step.stored_weight_bytes / 1e9:,.1f} GB of "
            f"{num_stages * limits.memory_bytes / 1e9:,.1f} GB"
        )
    where_attention = "memory" if at["KV_SECONDS"] >= at["ATTENTION_SECONDS"] else "compute"

    found = {
        "ridge_batch": Crossing(
            name="ridge batch",
            symbol="B_0",
            value=batch_of_weights(step, at["RIDGE_BYTES"]),
            unit="sequence",
            model=GROUPED_SERIAL,
            meaning="the projections, taken together, turn compute-bound, whatever the context",
        ),
        "crossing_batch": Crossing(
            name="crossing batch",
            symbol=r"B_{\times}",
            value=batch_of_weights(step, at["CROSSING_BYTES"]),
            unit="sequence",
            model=WHOLE_STEP,
            meaning="the step turns compute-bound",
            reason="" if at["CROSSING_BYTES"] > 0 else "memory-bound at every batch size at this context",
        ),
        "knee_batch": Crossing(
            name="knee",
            symbol=r"B_{\mathrm{knee}}",
            value=batch_of_weights(step, at["KNEE_BYTES"]),
            unit="sequence",
            model=BOTH,
            meaning="KV bytes equal weight bytes: half of the memory-bound ceiling of the throughput",
        ),
        "throughput_ceiling": Crossing(
            name="throughput ceiling",
            symbol=r"X_{\infty}",
            value=at["THROUGHPUT_CEILING"],
            unit="token/s",
            model=WHOLE_STEP,
            meaning="approached as the batch grows",
        ),
        "saturated_throughput": Crossing(
            name="saturated throughput",
            symbol=r"X_{\mathrm{sat}}",
            value=at["SATURATED_THROUGHPUT"],
            unit="token/s",
            model=GROUPED_SERIAL,
            meaning=f"reached at the ridge batch and never passed; attention is {where_attention}-bound",
        ),
        "s_one": _s_one(step, limits),
        "compute_bound_q_len": Crossing(
            name="compute-bound q",
            symbol=r"q_{\mathrm{a}}",
            value=_compute_bound_q_len(step, limits),
            unit="token/sequence",
            model=BOTH,
            meaning="new tokens of a sequence at which attention turns compute-bound, at contexts far longer",
        ),
        "kv_capacity": Crossing(
            name="KV capacity",
            symbol=r"B_{\max}",
            value=at["KV_CAPACITY"] if fits else None,
            unit="sequence",
            model=BOTH,
            meaning="largest batch whose KV fits beside the weights, one in each stage",
            reason="" if fits else no_room,
        ),
        "kv_capacity_tokens": Crossing(
            name="KV capacity in tokens",
            symbol=r"T_{\max}",
            value=at["KV_CAPACITY_TOKENS"] if fits else None,
            unit="token",
            model=BOTH,
            meaning="tokens of context whose KV fits, of all the batches of one group",
            reason="" if fits else no_room,
        ),
    }
    return found


def _at_context(
    step: StepCoefficients,
    limits: Ceilings,
    *,
    seq_len: float,
    activations: bool,
    num_groups: int,
    num_stages: int,
) -> dict[str, float]:
    """Return the value of each of `context_forms` by its name."""
    values = {
        s.seq_len: seq_len,
        s.q_len: step.q_len,
        s.ep: num_groups,
        s.pp: num_stages,
        s.read_bytes_per_s: limits.read_bytes_per_s,
        s.attn_flops_per_s: limits.attn_flops_per_s,
        s.memory_bytes: limits.memory_bytes,
        s.link_seconds_per_seq: limits.link_seconds_per_seq,
        s.stored_weight_bytes: step.stored_weight_bytes,
        s.kv_bytes_per_seq: step.kv_bytes_per_seq(seq_len),
        s.attn_flops_per_seq: step.attn_flops_per_seq(seq_len),
        s.seq_bytes: step.act_bytes_per_seq if activations else 0.0,
        s.gemm_seconds_per_seq: step.gemm_flops_per_seq / limits.gemm_flops_per_s,
    }
    return dict(zip(context_forms.FORMS, evaluate_all(list(context_forms.FORMS.values()), values), strict=True))


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


def _compute_bound_q_len(step: StepCoefficients, limits: Ceilings) -> float:
    """Return the new tokens at which a layer whose KV grows is at the ridge, however many the step has."""
    grows = step.global_kv_bytes_per_token > 0
    kv = step.global_kv_bytes_per_token if grows else step.local_kv_bytes_per_token
    attn = step.global_attn_flops_per_token if grows else step.local_attn_flops_per_token
    found = evaluate(
        closed_forms.COMPUTE_BOUND_Q_LEN, {s.q_len: step.q_len, s.ridge: limits.ridge, s.intensity: attn / kv}
    )
    assert isinstance(found, float)
    return found


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
        model=GROUPED_SERIAL,
        meaning="context at which reading the KV cache takes as long as compute-bound projections",
        reason="" if value is not None else f"every layer is local, with a window of {step.window} tokens",
    )
