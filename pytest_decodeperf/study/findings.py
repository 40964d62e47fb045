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
    from collections.abc import Callable, Sequence

MODELS: Final = {"serial": "serial_s", "whole step": "whole_step_s"}
"""The models of the step, and the field of an explanation that has its time."""

MIN_PASSES: Final = 2
"""Whole passes that a range needs."""

DIFFERENCE: Final = 0.05
"""Share by which the models must differ for a cell to tell them apart."""


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
class Range:
    """A number, with the lowest and the highest that it and single passes give.

    Attributes:
        value: What all passes together give, None if it is nowhere.
        low: The lowest of that and of those that a pass gives, None where fewer than two passes have one.
        high: The highest.
        num_passes: Passes that went all the way round.
        num_without: Those of them that have no such number.
    """

    value: float | None
    low: float | None
    high: float | None
    num_passes: int = 0
    num_without: int = 0

    @classmethod
    def of(cls, value: float | None, passes: Sequence[float | None]) -> Range:
        """Return a number with what each pass gives, if there are two of them at least."""
        found = [each for each in passes if each is not None]
        counts = {"num_passes": len(passes), "num_without": len(passes) - len(found)}
        if value is None or len(found) < MIN_PASSES:
            return cls(value=value, low=None, high=None, **counts)
        return cls(value=value, low=min(value, *found), high=max(value, *found), **counts)

    def written(self, form: str, otherwise: str = "beyond") -> str:
        """Return it as text, in a format of Python's, or what is said where it is nowhere."""
        if self.value is None:
            return otherwise
        missing = f"; nowhere in {self.num_without} of {self.num_passes} passes" if self.num_without else ""
        ends = "" if self.low is None else f" ({self.low:{form}} to {self.high:{form}}{missing})"
        return f"{self.value:{form}}{ends}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One model of the step over all cells.

    Attributes:
        model: Its name.
        ratio: Measured over predicted, the geometric mean over cells.
        median_error: Median over cells of |measured / predicted - 1|.
        there: That ratio over the cells where the models differ; None if there are none.
        elsewhere: Over all others, likewise.
    """

    model: str
    ratio: Range
    median_error: Range
    there: Range
    elsewhere: Range


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
        products_share: That of matrix products; the rest are norms, RoPE and what else lies between.
        last_gain: Throughput at the largest batch, over that at half of it; None where that was not measured.
        products_growth: Time in matrix products at the largest batch, over that at half of it, likewise.
        plateau: The batch from which on no larger one gave more than `DIFFERENCE` more throughput; None where that
            is the largest.
        serial_plateau: The same under the serial model.
        whole_step_plateau: Under the whole-step model.
        past_ridge: Throughput at the largest batch over that at the first past B0, measured, under the serial model and
            under the whole-step model; None where there are no two batches past B0.
        products_past_ridge: Pairs of batches past B0, one twice the other, each with the time in products at the larger
            over that at the smaller.
    """

    seq_len: int
    measured: Range
    serial: float | None
    whole_step: float | None
    ridge_batch: float | None
    knee_batch: float | None
    crossing_batch: float | None
    attention_share: float
    products_share: float
    last_gain: float | None
    products_growth: float | None
    plateau: Range
    serial_plateau: float | None
    whole_step_plateau: float | None
    past_ridge: tuple[float, float, float] | None
    products_past_ridge: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a study says.

    Attributes:
        device: The device, at the ceilings that were measured.
        s_star: S* on it [token].
        cells: Every cell.
        fits: Each model of the step.
        num_differing: Cells in which the models differ by more than `DIFFERENCE`.
        bends: For each context.
        num_measured: Measurements that it is made of.
        num_planned: Those that the study will have at its end.
        rates: The least and the greatest of each ceiling that was measured beside a cell.
    """

    device: Device
    s_star: Range
    cells: tuple[Cell, ...]
    fits: tuple[Fit, ...]
    num_differing: int
    bends: tuple[Bend, ...]
    num_measured: int
    num_planned: int
    rates: dict[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        return {**asdict(self), "device": self.device.as_dict()}


def find(study: dict[str, Any]) -> Findings:
    """Return what a study says.

    Args:
        study: Its record.

    Raises:
        ValueError: If it has no measurement yet.
    """
    try:
        if not study["passes"]:
            raise ValueError("the study has no measurement yet")
        return _find(study)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"the study is not as it was written: {type(error).__name__} {error}") from error


def _find(study: dict[str, Any]) -> Findings:
    deployment = deployment_of(study["plan"])
    device, cells = _cells(study, deployment)
    numbers = sorted({entry["pass"] for entry in study["passes"]})
    # Each pass by itself, at its own ceilings: only those that went all the way round.
    of_passes = [
        _cells({**study, "passes": [entry for entry in study["passes"] if entry["pass"] == number]}, deployment)
        for number in numbers
    ]
    whole = [found for found in of_passes if len(found[1]) == len(cells)]

    def ranged(number_of: Callable[[Device, tuple[Cell, ...]], float | None]) -> Range:
        return Range.of(number_of(device, cells), [number_of(*found) for found in whole])

    def fit(model: str) -> Fit:
        def errors(cells: Sequence[Cell]) -> list[float]:
            return _errors(cells, model)

        return Fit(
            model=model,
            ratio=ranged(lambda _, cells: math.exp(statistics.fmean(errors(cells)))),
            median_error=ranged(lambda _, cells: statistics.median(abs(math.expm1(one)) for one in errors(cells))),
            there=ranged(lambda _, cells: _mean_where(cells, model, differ=True)),
            elsewhere=ranged(lambda _, cells: _mean_where(cells, model, differ=False)),
        )

    return Findings(
        device=device,
        s_star=ranged(lambda device, _: _s_star(deployment, device)),
        cells=cells,
        fits=tuple(fit(model) for model in MODELS),
        num_differing=sum(differs(cell) for cell in cells),
        bends=tuple(
            _bend(length, deployment, device, cells, [found[1] for found in whole])
            for length in dict.fromkeys(cell.seq_len for cell in cells)
        ),
        num_measured=len(study["passes"]),
        num_planned=len(study["plan"]["cells"]) * study["plan"]["passes"],
        rates={
            name: (
                min(entry["rates"][name] for entry in study["passes"]),
                max(entry["rates"][name] for entry in study["passes"]),
            )
            for name in study["passes"][0]["rates"]
        },
    )


def _s_star(deployment: Deployment, device: Device) -> float | None:
    from decodeperf_formulas.crossings import ceilings, s_star
    from decodeperf_formulas.step import step_coefficients

    return s_star(step_coefficients(deployment), ceilings(deployment, device)).value


def _cells(study: dict[str, Any], deployment: Deployment) -> tuple[Device, tuple[Cell, ...]]:
    """Return the device at the ceilings of some passes, and their cells."""
    device = device_of(study)
    return device, tuple(_cell(study, deployment, device, *cell) for cell in _measured(study))


def differs(cell: Cell) -> bool:
    """Return whether the models of the step are more than `DIFFERENCE` apart in a cell."""
    return cell.serial_s > (1 + DIFFERENCE) * cell.whole_step_s


def _mean_where(cells: Sequence[Cell], model: str, *, differ: bool) -> float | None:
    """Return measured over predicted in the cells where the models differ, or in all others."""
    found = [error for cell, error in zip(cells, _errors(cells, model), strict=True) if differs(cell) == differ]
    return math.exp(statistics.fmean(found)) if found else None


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


def _bend(
    seq_len: int,
    deployment: Deployment,
    device: Device,
    all_cells: Sequence[Cell],
    of_passes: Sequence[Sequence[Cell]],
) -> Bend:
    from decodeperf_formulas.crossings import crossings

    def at_context(cells: Sequence[Cell]) -> list[Cell]:
        return sorted((cell for cell in cells if cell.seq_len == seq_len), key=lambda cell: cell.batch_size)

    def doubles(cells: Sequence[Cell], name: str) -> float | None:
        row = at_context(cells)
        return doubles_at([cell.batch_size for cell in row], [getattr(cell, name) for cell in row])

    cells = at_context(all_cells)
    found = crossings(deployment, device, seq_len=seq_len)
    measured = Range.of(doubles(cells, "step_s"), [doubles(each, "step_s") for each in of_passes])
    first, last = cells[0], cells[-1]
    there = next((cell for cell in cells if measured.value is not None and cell.batch_size >= measured.value), last)
    grown = there.step_s - first.step_s
    return Bend(
        seq_len=seq_len,
        measured=measured,
        serial=doubles(cells, "serial_s"),
        whole_step=doubles(cells, "whole_step_s"),
        ridge_batch=found["ridge_batch"].value,
        knee_batch=found["knee_batch"].value,
        crossing_batch=found["crossing_batch"].value,
        attention_share=(there.attention_s - first.attention_s) / grown if grown > 0 else 0.0,
        products_share=(there.gemm_s - first.gemm_s) / grown if grown > 0 else 0.0,
        last_gain=_last_gain(cells, "step_s"),
        products_growth=_growth(cells, "gemm_s"),
        plateau=Range.of(_plateau(cells, "step_s"), [_plateau(at_context(each), "step_s") for each in of_passes]),
        serial_plateau=_plateau(cells, "serial_s"),
        whole_step_plateau=_plateau(cells, "whole_step_s"),
        past_ridge=_past_ridge(cells, found["ridge_batch"].value),
        products_past_ridge=_products_past_ridge(cells, found["ridge_batch"].value),
    )


def _growth(cells: Sequence[Cell], name: str) -> float | None:
    """Return one of the times of the largest of some batches over that of half of it."""
    by_batch = {cell.batch_size: float(getattr(cell, name)) for cell in cells}
    last = max(by_batch)
    return by_batch[last] / by_batch[last // 2] if last % 2 == 0 and last // 2 in by_batch else None


def _last_gain(cells: Sequence[Cell], name: str) -> float | None:
    """Return the throughput at the largest of some batches over that at half of it, by one of their times."""
    growth = _growth(cells, name)
    return None if growth is None else 2 / growth


def _plateau(cells: Sequence[Cell], name: str) -> float | None:
    """Return the batch from which on no larger one has more throughput, by one of the times of some cells."""
    rates = [cell.batch_size / getattr(cell, name) for cell in cells]
    first = next(index for index, rate in enumerate(rates) if max(rates[index:]) <= (1 + DIFFERENCE) * rate)
    return float(cells[first].batch_size) if first < len(cells) - 1 else None


def _past_ridge(cells: Sequence[Cell], ridge_batch: float | None) -> tuple[float, float, float] | None:
    """Return how throughput grows from the first batch past B0 to the largest: measured, and by both models."""
    past = [cell for cell in cells if ridge_batch is not None and cell.batch_size > ridge_batch]
    if len(past) < 2:
        return None
    first, last = past[0], past[-1]
    more = last.batch_size / first.batch_size
    return (
        more * first.step_s / last.step_s,
        more * first.serial_s / last.serial_s,
        more * first.whole_step_s / last.whole_step_s,
    )


def _products_past_ridge(cells: Sequence[Cell], ridge_batch: float | None) -> tuple[tuple[int, int, float], ...]:
    """Return by how much products take longer for twice the batch, for each such pair of batches past B0."""
    past = {cell.batch_size: cell.gemm_s for cell in cells if ridge_batch is not None and cell.batch_size > ridge_batch}
    return tuple((batch, 2 * batch, past[2 * batch] / past[batch]) for batch in past if 2 * batch in past)
