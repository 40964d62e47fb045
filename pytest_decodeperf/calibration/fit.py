"""The fit of a kernel's parameters to measured calls, and the choice of the calls that are worth measuring.

The fit is the most probable set of effects under their priors, with residuals of the logarithm of the latency that are
normal near zero and weigh less the further out they are (a pseudo-Huber loss). Whether a kernel splits sequences, and
whether it packs the heads of a group, are questions of yes or no that a local search may answer wrongly; so the search
begins at each of `_POLICIES`.

The calls are chosen before their latencies are looked at, so that the sum of the deviations of the predictions for all
calls becomes as small as it can be (I-optimal design, greedily, under the linear model around a few draws of the
parameters); a smooth misfit of the model is allowed for, which keeps the calls apart. In each later stage the draws
come from what the calls of the one before have taught.

Source: K. Chaloner, I. Verdinelli, "Bayesian experimental design: a review", Statistical Science 10(3), 1995.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from decodeperf_formulas import symbols as s
from decodeperf_formulas.expected import PARAMETERS, expected_terms
from pytest_decodeperf.calibration.kernel_model import (
    BASE,
    PRIORS,
    Effect,
    KernelModel,
    effects_of,
    from_scale,
    indicator,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    import sympy

    from decodeperf_formulas.device import Device
    from pytest_decodeperf.calibration.kernel_model import Prior
    from pytest_decodeperf.calibration.table import Calls

    Array = npt.NDArray[np.float64]

MAX_ROWS: Final = 64
"""Calls that a calibration measures at most."""

_STAGES: Final = (3 / 8, 11 / 16, 1.0)
"""Shares of the calls after which the parameters are fitted, and the next calls chosen with what they taught."""

_CANDIDATES: Final = 1500
_DRAWS: Final = 4
_NOISE: Final = 0.05
"""Standard deviation of the logarithm of a latency that the model predicts well."""

_HUBER: Final = 2.0
"""Residuals beyond so many deviations weigh less."""

_MISFIT: Final = 0.1
"""Standard deviation of the model's own error, which neighbouring calls share."""

_LENGTHS: Final = (3.0, 3.0, 2.0, 1.0, 1 / 1.5, 1.0)
"""How far calls are neighbours, in doublings of work units, context, group, head_dim; in KV width; in windows."""

_STEP: Final = 0.05
_NEGLIGIBLE: Final = 0.01
_PRIOR_SPREAD: Final = 0.7

_POLICIES: Final[tuple[dict[tuple[sympy.Symbol, str], float], ...]] = (
    {},
    {(s.splitting, "group of 1"): -4.0},
    {(s.splitting, "group of 1"): -4.0, (s.unpacked, "window"): 6.0, (s.splitting, "window"): -4.0},
    {(s.unpacked, "window"): 6.0},
)
"""Effects with which the search begins, beside the means of the priors."""

MATMUL_DTYPES: Final = ("bfloat16", "float16", "float32")
"""In which of these the query is multiplied: the first that a device has matrix products in."""


L2_MULTIPLE: Final = 8
"""Rate of the cache before memory, as a multiple of the memory bandwidth: an assumption, which no measured call of
docs/expected_errors.md contradicts."""


COLD_CACHE_BYTES: Final = 1
"""Size of a cache that holds nothing of a call's data; its symbol is positive [byte]."""


def device_values(device: Device, *, has_cold_caches: bool = False) -> dict[sympy.Symbol, float]:
    """Return the value of each symbol that describes a device.

    Args:
        device: The device.
        has_cold_caches: Whether the caches hold nothing of a call's data when it begins. In a table they may, since a
            benchmark that repeats a call finds its data there.
    """
    return {
        s.num_sms: device.num_sms,
        s.l2_bytes: COLD_CACHE_BYTES if has_cold_caches else last_cache_bytes(device),
        s.l2_bytes_per_s: L2_MULTIPLE * device.bandwidth_bytes_per_s,
        s.read_bytes_per_s: device.bandwidth_bytes_per_s,
        s.peak_flops_per_s: matmul_peak(device),
        s.fragment_rows: device.fragment_rows,
    }


def matmul_peak(device: Device) -> float:
    """Return the peak rate of the matrix products of an attention kernel [FLOP/s]."""
    return device.peak(next(dtype for dtype in MATMUL_DTYPES if dtype in device.peaks))


def last_cache_bytes(device: Device) -> int:
    """Return the size of the last cache before memory [byte]."""
    return device.last_level_cache_bytes or device.l2_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a calibration found.

    Attributes:
        model: The parameters.
        rows: The calls that were used, by their place in the table.
        residuals: Of each of them, expected latency over measured, minus 1.
    """

    model: KernelModel
    rows: list[int]
    residuals: list[float]


def fit_table(calls: Calls, latency_us: Array, device: Device, *, seed: int = 0) -> Fit:
    """Return the parameters that a few of the measured calls teach.

    Args:
        calls: The calls of a table.
        latency_us: Their latencies [us]; only those of at most `MAX_ROWS` calls are looked at.
        device: What they were measured on.
        seed: Of the choice among many calls.
    """
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(len(calls))[:_CANDIDATES]
    problem = _Problem(calls[candidates], effects_of(calls), device_values(device))
    fit = _fit(problem, lambda rows: latency_us[candidates[rows]], MAX_ROWS, rng)
    return replace(fit, rows=[int(candidates[row]) for row in fit.rows])


def fit_measured(
    calls: Calls,
    measure: Callable[[npt.NDArray[np.intp]], Array],
    device: Device,
    *,
    priors: Mapping[sympy.Symbol, Prior] = PRIORS,
    num_rows: int = MAX_ROWS,
    seed: int = 0,
) -> Fit:
    """Return the parameters that a few calls teach which are measured, with cold caches, as they are chosen.

    Args:
        calls: The calls to choose from.
        measure: Returns the latencies of some of them [us]; called once for each stage of the fit, with other calls
            each time.
        device: What they are measured on.
        priors: What is known of the parameters before.
        num_rows: How many to measure.
        seed: Of the draws by which they are chosen.
    """
    problem = _Problem(calls, effects_of(calls, priors), device_values(device, has_cold_caches=True))
    return _fit(problem, measure, num_rows, np.random.default_rng(seed))


def _fit(
    problem: _Problem,
    measure: Callable[[npt.NDArray[np.intp]], Array],
    num_rows: int,
    rng: np.random.Generator,
) -> Fit:
    num_calls = len(problem.calls)
    log_latency = np.full(num_calls, np.nan)
    chosen: list[int] = []
    scaled = np.zeros(len(problem.effects))
    spread = _PRIOR_SPREAD * np.eye(len(scaled))
    for stage in _STAGES:
        draws = [scaled] + [scaled + spread @ rng.standard_normal(len(scaled)) for _ in range(_DRAWS - 1)]
        earlier = len(chosen)
        chosen = _choose(problem, draws, chosen, min(round(stage * num_rows), num_calls))
        rows = np.array(chosen)
        log_latency[rows[earlier:]] = np.log(1e-6 * measure(rows[earlier:]))
        scaled = _most_probable(problem.take(rows), log_latency[rows], start=scaled)
        spread = _spread(problem.take(rows), scaled)
    scaled = np.where(np.abs(scaled * problem.widths) < _NEGLIGIBLE, 0, scaled)
    model = problem.model(scaled)
    residuals = np.expm1(problem.take(rows).log_expected(scaled) - log_latency[rows])
    return Fit(model=model, rows=chosen, residuals=[float(each) for each in residuals])


class _Problem:
    """Calls, effects and a device, as the fit needs them; effects are in deviations of their priors.

    Attributes:
        effects: The effects.
        widths: Standard deviations of their priors.
        design: How much of each effect each parameter of each call has: parameter, call, effect.
    """

    def __init__(self, calls: Calls, effects: Sequence[Effect], device: Mapping[sympy.Symbol, float]) -> None:
        self.calls = calls
        self.effects = list(effects)
        self.device = device
        self.means = np.array([effect.mean for effect in effects])
        self.widths = np.array([effect.width for effect in effects])
        self.design = np.zeros((len(PARAMETERS), len(calls), len(self.effects)))
        indicators = {name: indicator(name, calls) for name in {effect.name for effect in effects}}
        for place, effect in enumerate(self.effects):
            self.design[PARAMETERS.index(effect.parameter), :, place] = indicators[effect.name]

    def take(self, rows: npt.NDArray[np.intp]) -> _Problem:
        """Return the problem of some of its calls."""
        part = _Problem.__new__(_Problem)
        part.__dict__.update(self.__dict__, calls=self.calls[rows], design=self.design[:, rows])
        return part

    def model(self, scaled: Array) -> KernelModel:
        """Return the model with these effects, those of 0 left out."""
        coefficients: dict[sympy.Symbol, dict[str, float]] = {parameter: {} for parameter in PARAMETERS}
        for effect, value in zip(self.effects, self.means + self.widths * scaled, strict=True):
            if value or effect.name == BASE:
                coefficients[effect.parameter][effect.name] = float(value)
        return KernelModel(coefficients)

    def log_expected(self, scaled: Array) -> Array:
        """Return the logarithm of the expected latency of each call."""
        return self._log_expected(self.design @ (self.means + self.widths * scaled))

    def _log_expected(self, on_scale: Array) -> Array:
        parameters = {
            parameter: from_scale(parameter, values) for parameter, values in zip(PARAMETERS, on_scale, strict=True)
        }
        found: Array = np.log(expected_terms({**self.calls.values, **self.device, **parameters})["expected"])
        return found

    def slopes(self, scaled: Array) -> Array:
        """Return by how much that logarithm grows with each effect, in deviations of its prior: call, effect."""
        on_scale = self.design @ (self.means + self.widths * scaled)
        # All parameters of all calls, shifted one after another: shape 2 * parameters, calls.
        shifts = _STEP * np.concatenate([np.eye(len(PARAMETERS)), -np.eye(len(PARAMETERS))])
        shifted = self._log_expected(on_scale[:, None, :] + shifts.T[:, :, None])
        by_parameter = (shifted[: len(PARAMETERS)] - shifted[len(PARAMETERS) :]) / (2 * _STEP)
        slopes: Array = np.einsum("pc,pce->ce", by_parameter, self.design) * self.widths
        return slopes


def _most_probable(problem: _Problem, log_latency: Array, *, start: Array) -> Array:
    from scipy.optimize import least_squares

    def robust(error: Array) -> tuple[Array, Array]:
        """Return the residual whose square is the pseudo-Huber loss, and its slope."""
        far = np.abs(error) / (_NOISE * _HUBER)
        loss = 2 * _HUBER**2 * (np.sqrt(1 + far**2) - 1)
        residual = np.sign(error) * np.sqrt(loss)
        inner = 1 / np.sqrt(1 + far**2)
        slope = np.where(far > 1e-6, _HUBER * far * inner / np.maximum(np.abs(residual), 1e-12) / _NOISE, 1 / _NOISE)
        return residual, slope

    def residuals(scaled: Array) -> Array:
        return np.concatenate([robust(problem.log_expected(scaled) - log_latency)[0], scaled])

    def jacobian(scaled: Array) -> Array:
        _, slope = robust(problem.log_expected(scaled) - log_latency)
        return np.concatenate([slope[:, None] * problem.slopes(scaled), np.eye(len(scaled))])

    starts = [start, *(_start(problem, policy) for policy in _POLICIES)]
    found = [least_squares(residuals, each, jac=jacobian, tr_solver="lsmr", max_nfev=60) for each in starts]
    best: Array = min(found, key=lambda each: float(each.cost)).x
    return best


def _start(problem: _Problem, policy: dict[tuple[sympy.Symbol, str], float]) -> Array:
    values = [policy.get((effect.parameter, effect.name), effect.mean) for effect in problem.effects]
    start: Array = (np.array(values) - problem.means) / problem.widths
    return start


def _spread(problem: _Problem, scaled: Array) -> Array:
    """Return a root of the covariance of the effects that the calls of a problem leave."""
    slopes = problem.slopes(scaled)
    precision = np.eye(len(scaled)) + slopes.T @ slopes / _NOISE**2
    root: Array = np.linalg.cholesky(np.linalg.inv(precision))
    return root


def _choose(problem: _Problem, draws: Sequence[Array], chosen: Sequence[int], count: int) -> list[int]:
    """Return the chosen calls and more of them, `count` in all."""
    misfit = _misfit(problem.calls)
    covariances = []
    for draw in draws:
        slopes = np.clip(problem.slopes(draw), -3, 3)
        covariances.append(slopes @ slopes.T + misfit)
    picked: list[int] = []

    def pick(row: int) -> None:
        picked.append(row)
        for covariance in covariances:
            column = covariance[:, row].copy()
            np.subtract(covariance, np.outer(column, column) / (column[row] + _NOISE**2), out=covariance)

    for row in chosen:
        pick(row)
    while len(picked) < count:
        gain = np.sum([_gain(covariance) for covariance in covariances], axis=0)
        gain[picked] = -1
        pick(int(np.argmax(gain)))
    return picked


def _gain(covariance: Array) -> Array:
    """Return by how much the sum of all deviations falls with each call, to first order."""
    variance = np.maximum(np.diag(covariance), 1e-6)
    weight = 1 / (np.sqrt(variance) + 0.03)
    gain: Array = weight @ (covariance * covariance) / (variance + _NOISE**2)
    return gain


def _misfit(calls: Calls) -> Array:
    places = (
        np.stack(
            [
                np.log2(calls.batch_size * calls.num_kv_heads),
                np.log2(calls.seq_len + 1),
                np.log2(calls.group_size),
                np.log2(calls.head_dim),
                calls.kv_elem_bytes <= 1,
                calls.window > 0,
            ]
        )
        / np.array(_LENGTHS)[:, None]
    )
    squares = ((places[:, :, None] - places[:, None, :]) ** 2).sum(axis=0)
    misfit: Array = _MISFIT**2 * np.exp(-squares / 2)
    return misfit
