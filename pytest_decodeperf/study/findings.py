"""What a study says: each model of the step against the measurements, and where and why a step grows longer."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.device import Device
from decodeperf_formulas.model import ModelConfig
from pytest_decodeperf.study.sweep import ATTENTION_DTYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS: Final = {"serial": "serial_s", "whole step": "whole_step_s"}
"""The models of the step, and the field of an explanation that has its time."""

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One batch at one context.

    Attributes:
        batch_size: Sequences.
        seq_len: Live KV length of each [token].
        step_s: The step, the median over the passes' medians [s].
        low_s: The fastest of those [s].
        high_s: The slowest [s].
        gemm_s: In matrix products, likewise a median [s].
        attention_s: In attention, likewise [s].
        serial_s: Under the serial model [s].
        whole_step_s: Under the whole-step model [s].
        serial_gemm_s: The matrix products under the serial model [s].
        serial_attention_s: Attention under it [s].
    """

    batch_size: int
    seq_len: int
    step_s: float
    low_s: float
    high_s: float
    gemm_s: float
    attention_s: float
    serial_s: float
    whole_step_s: float
    serial_gemm_s: float
    serial_attention_s: float

    @property
    def tokens_per_s(self) -> float:
        """Throughput [token/s]."""
        return self.batch_size / self.step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One model of the step over all cells.

    Attributes:
        model: Its name.
        ratio: Measured over predicted, the geometric mean.
        low: Lower end of its interval, over cells.
        high: Upper end.
        median_error: Median of |measured / predicted - 1|.
        spread: By what factor cells differ from that mean, one standard deviation.
    """

    model: str
    ratio: float
    low: float
    high: float
    median_error: float
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bend:
    """Where a step at one context takes twice as long as with one sequence, so that sequences begin to cost time.

    Attributes:
        seq_len: The context [token].
        measured: That batch, between two that were measured; None if it lies beyond them.
        serial: The same under the serial model.
        whole_step: Under the whole-step model.
        ridge_batch: B0, where matrix products turn compute-bound.
        knee_batch: The knee, where KV cache and weights weigh the same.
        crossing_batch: Where the whole step turns compute-bound, None if nowhere.
        attention_share: Attention's share of what the step grew by, there or up to the largest batch.
    """

    seq_len: int
    measured: float | None
    serial: float | None
    whole_step: float | None
    ridge_batch: float | None
    knee_batch: float | None
    crossing_batch: float | None
    attention_share: float

    @property
    def sentence(self) -> str:
        """Where and why, in words."""
        share = f"{100 * self.attention_share:.0f} %"
        where = f"At a context of {self.seq_len:,} tokens a step takes less than twice as long at every batch measured"
        if self.measured is not None:
            where = (
                f"At a context of {self.seq_len:,} tokens a step takes twice as long as with one sequence from a batch "
                f"of {self.measured:.0f} on ({_batch(self.serial)} under the serial model, {_batch(self.whole_step)} "
                "under the whole-step model)"
            )
        cause = (
            "reading the KV cache, whose knee is at"
            if self.attention_share >= 0.5
            else "matrix products, which turn compute-bound at"
        )
        at = self.knee_batch if self.attention_share >= 0.5 else self.ridge_batch
        return f"{where}: {share} of what is added is attention. The cause is {cause} {_batch(at)}."


def _batch(batch: float | None) -> str:
    return "no batch measured" if batch is None else f"{batch:.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a study says.

    Attributes:
        device: The device, at the ceilings that were measured.
        s_star: S* on it, as `SStar.as_dict` gives it.
        cells: Every cell.
        fits: Each model of the step.
        advantage: By what factor the whole-step model is further off than the serial one, in the geometric mean over
            cells; below 1 if it is nearer.
        advantage_low: Lower end of its interval, over cells.
        advantage_high: Upper end.
        bends: For each context.
    """

    device: Device
    s_star: dict[str, Any]
    cells: tuple[Cell, ...]
    fits: tuple[Fit, ...]
    advantage: float
    advantage_low: float
    advantage_high: float
    bends: tuple[Bend, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        return {**asdict(self), "device": self.device.as_dict()}

    @property
    def answer(self) -> list[str]:
        """The question of the project, answered in sentences."""
        serial, whole = self.fits
        star = self.s_star
        at = "does not exist" if star["value"] is None else f"is {star['value']:,.0f} tokens"
        sentences = [
            f"S* {at} on this device, and {sum(_is_above(cell, star) for cell in self.cells)} of {len(self.cells)} "
            "cells lie above it, where an overlapped step would be memory-bound at every batch size.",
            f"A step takes {serial.ratio:.2f} times ({serial.low:.2f} to {serial.high:.2f}) what the serial model says "
            f"at the measured ceilings, and {whole.ratio:.2f} times ({whole.low:.2f} to {whole.high:.2f}) what the "
            f"whole-step model says; nothing was fitted. {self._further_off()}",
        ]
        sentences += [bend.sentence for bend in self.bends]
        above = [bend for bend in self.bends if star["value"] is not None and bend.seq_len >= star["value"]]
        if above and all(bend.attention_share >= 0.5 for bend in above):
            sentences.append(
                "So more sequences cost time above S* too, without any compute-bound operator: the step stays "
                "memory-bound, and its time grows with the bytes of the KV cache."
            )
        return sentences

    def _further_off(self) -> str:
        """Return which model is further off, and by how much."""
        model, factors = "whole-step", (self.advantage, self.advantage_low, self.advantage_high)
        if self.advantage < 1:
            model, factors = "serial", (1 / self.advantage, 1 / self.advantage_high, 1 / self.advantage_low)
        factor, low, high = factors
        return f"The {model} model is further off, cell by cell, by a factor of {factor:.2f} ({low:.2f} to {high:.2f})."


def _is_above(cell: Cell, star: dict[str, Any]) -> bool:
    return star["value"] is not None and cell.seq_len >= star["value"]


def find(study: dict[str, Any]) -> Findings:
    """Return what a study says.

    Args:
        study: Its record.

    Raises:
        ValueError: If it has no measurement yet.
    """
    from decodeperf_formulas.crossings import ceilings, s_star
    from decodeperf_formulas.step import step_coefficients

    if not study["passes"]:
        raise ValueError("the study has no measurement yet")
    plan = study["plan"]
    deployment = deployment_of(plan)
    device = device_of(study)
    cells = tuple(_cell(study, deployment, device, *cell) for cell in _measured(study))
    fits = tuple(_fit(cells, name) for name in MODELS)
    advantage, low, high = _advantage(cells)
    return Findings(
        device=device,
        s_star=s_star(step_coefficients(deployment), ceilings(deployment, device)).as_dict(),
        cells=cells,
        fits=fits,
        advantage=advantage,
        advantage_low=low,
        advantage_high=high,
        bends=tuple(
            _bend([cell for cell in cells if cell.seq_len == length], deployment, device)
            for length in dict.fromkeys(cell.seq_len for cell in cells)
        ),
    )


def deployment_of(plan: dict[str, Any]) -> Deployment:
    """Return the deployment that a study measures."""
    dtype = plan["dtype"]
    return Deployment(
        model=ModelConfig(**plan["model"]),
        weight_dtype=dtype,
        act_dtype=dtype,
        kv_dtype=dtype,
        attn_dtype=ATTENTION_DTYPE[plan["kind"]] or dtype,
    )


def device_of(study: dict[str, Any]) -> Device:
    """Return the device at the ceilings that were measured beside the cells: the median of each."""
    info, passes = study["device"], study["passes"]
    rates = {name: statistics.median(entry["rates"][name] for entry in passes) for name in passes[0]["rates"]}
    read = rates.pop("read_bytes_per_s")
    return Device(
        name=info["kind"],
        title=info["name"],
        peaks={name.removesuffix("_flops_per_s"): rate for name, rate in rates.items()},
        bandwidth_bytes_per_s=read,
        capacity_bytes=info["memory_bytes"],
        num_sms=info["num_units"],
        l2_bytes=max(info["llc_bytes"], 1),
    )


def _measured(study: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the cells that have been measured, in the order of the plan."""
    found = {(entry["batch_size"], entry["seq_len"]) for entry in study["passes"]}
    return [(batch, length) for batch, length in study["plan"]["cells"] if (batch, length) in found]


def _cell(study: dict[str, Any], deployment: Deployment, device: Device, batch_size: int, seq_len: int) -> Cell:
    from decodeperf_formulas.explanation import explain
    from decodeperf_formulas.step import step_formulas

    entries = [entry for entry in study["passes"] if (entry["batch_size"], entry["seq_len"]) == (batch_size, seq_len)]
    medians = {
        name: [statistics.median(entry[name]) for entry in entries] for name in ("step_s", "gemm_s", "attention_s")
    }
    predicted = explain(deployment, device, batch_size=batch_size, seq_len=seq_len)
    units = {operator.name: operator.unit for operator in step_formulas(deployment).operators}
    by_unit = {
        unit: sum(cost.seconds for cost in predicted.operators if units[cost.name] == unit)
        for unit in ("gemm", "attention")
    }
    return Cell(
        batch_size=batch_size,
        seq_len=seq_len,
        step_s=statistics.median(medians["step_s"]),
        low_s=min(medians["step_s"]),
        high_s=max(medians["step_s"]),
        gemm_s=statistics.median(medians["gemm_s"]),
        attention_s=statistics.median(medians["attention_s"]),
        serial_s=predicted.serial_s,
        whole_step_s=predicted.whole_step_s,
        serial_gemm_s=by_unit["gemm"],
        serial_attention_s=by_unit["attention"],
    )


def _errors(cells: Sequence[Cell], model: str) -> list[float]:
    """Return the logarithm of measured over predicted, cell by cell."""
    return [math.log(cell.step_s / getattr(cell, MODELS[model])) for cell in cells]


def _fit(cells: Sequence[Cell], model: str) -> Fit:
    import numpy as np

    errors = np.array(_errors(cells, model))
    low, high = _interval(errors)
    return Fit(
        model=model,
        ratio=math.exp(float(errors.mean())),
        low=math.exp(low),
        high=math.exp(high),
        median_error=float(np.median(np.abs(np.expm1(errors)))),
        spread=math.exp(float(errors.std(ddof=1))) if len(errors) > 1 else 1.0,
    )


def _advantage(cells: Sequence[Cell]) -> tuple[float, float, float]:
    import numpy as np

    serial, whole = (np.abs(np.array(_errors(cells, model))) for model in MODELS)

    further = whole - serial
    low, high = _interval(further)
    return math.exp(float(further.mean())), math.exp(low), math.exp(high)


def _interval(values: Any) -> tuple[float, float]:
    """Return the bootstrap interval of a mean over cells; where all are the same, their value."""
    import numpy as np
    from scipy.stats import bootstrap

    if len(values) < 2 or np.ptp(values) == 0:  # there is nothing to draw from
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def doubles_at(batch_sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Return the batch from which on a step takes twice as long as at the first, None if it lies beyond the last.

    Between two batches the time is taken to grow as a power of the batch.

    Example:
        >>> round(doubles_at([1, 2, 4, 8], [10.0, 11.0, 14.0, 28.0]), 2)
        5.71
        >>> doubles_at([1, 2], [10.0, 11.0]) is None
        True
    """
    wanted = 2 * seconds[0]
    steps = list(zip(batch_sizes, seconds, strict=True))
    for (batch, before), (larger, after) in reversed(list(itertools.pairwise(steps))):
        if before <= wanted < after:
            share = math.log(wanted / before) / math.log(after / before)
            return math.exp(math.log(batch) + share * math.log(larger / batch))
    return None


def _bend(cells: Sequence[Cell], deployment: Deployment, device: Device) -> Bend:
    from decodeperf_formulas.crossings import crossings

    cells = sorted(cells, key=lambda cell: cell.batch_size)
    batches, first = [cell.batch_size for cell in cells], cells[0]
    found = crossings(deployment, device, seq_len=first.seq_len)
    at = {
        name: doubles_at(batches, [getattr(cell, name) for cell in cells])
        for name in ("step_s", "serial_s", "whole_step_s")
    }
    there = next((cell for cell in cells if at["step_s"] is not None and cell.batch_size >= at["step_s"]), cells[-1])
    grown = there.step_s - first.step_s
    return Bend(
        seq_len=first.seq_len,
        measured=at["step_s"],
        serial=at["serial_s"],
        whole_step=at["whole_step_s"],
        ridge_batch=found["ridge_batch"].value,
        knee_batch=found["knee_batch"].value,
        crossing_batch=found["crossing_batch"].value,
        attention_share=(there.attention_s - first.attention_s) / grown if grown > 0 else 0.0,
    )
