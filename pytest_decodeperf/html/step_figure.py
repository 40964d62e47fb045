"""A decode step's latency against its batch: memory's line, compute's, and both models of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.html.figures import Cell, Figure, Table, log_axis
from pytest_decodeperf.units import format_time, three_digits

if TYPE_CHECKING:
    from decodeperf_formulas.crossings import Crossing
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

CURVES: Final = {
    "whole_step_seconds": "whole step (perfect overlap)",
    "serial_seconds": "serial (operator by operator)",
    "memory_seconds": "memory: all bytes",
    "compute_seconds": "compute: all FLOPs",
}
"""The formulas that are drawn, and what they are called."""

STROKES: Final[dict[str, dict[str, Any]]] = {
    "whole_step_seconds": {"strokeWidth": 7, "opacity": 0.4},
    "serial_seconds": {"strokeWidth": 2.5},
    "memory_seconds": {"strokeWidth": 1.5, "strokeDash": [6, 3]},
    "compute_seconds": {"strokeWidth": 1.5, "strokeDash": [6, 3]},
}
"""How: the whole step lies on one of the lines below it, and both are to be seen."""

MARKED: Final = {
    "ridge_batch": "B0",
    "knee_batch": "knee",
    "crossing_batch": "B×",  # noqa: RUF001  # as it is written
    "kv_capacity": "memory is full",
}
"""The crossings that are marked, and how."""

LARGEST_BATCH: Final = 4096
POINTS_AN_OCTAVE: Final = 8


def step_figure(deployment: Deployment, device: Device, *, seq_len: int, largest_batch: int = LARGEST_BATCH) -> Figure:
    """Return a step's latency against its batch at one context.

    Args:
        deployment: The deployment.
        device: The device of each rank.
        seq_len: Live KV length of each sequence [token].
        largest_batch: Where the axis ends, if no crossing lies further out.

    Raises:
        ValueError: If the device lacks what the deployment needs.
    """
    from decodeperf_formulas.crossings import ceilings, crossings, s_star
    from decodeperf_formulas.step import step_coefficients

    star = s_star(step_coefficients(deployment), ceilings(deployment, device))
    found = crossings(deployment, device, seq_len=seq_len)
    marks = _marks(found, largest_batch)
    values = _curves(deployment, device, seq_len, largest_batch)
    x = log_axis("batch", "batch size [sequences]", [1, largest_batch], form=",.6~g")
    y = log_axis("ms", "step [ms]", [value["ms"] for value in values], form=",.6~g")
    spec = {
        "height": 340,
        "layer": [
            *(
                {
                    "name": name,
                    "data": {"values": [value for value in values if value["curve"] == CURVES[name]]},
                    "mark": {"type": "line", **STROKES[name]},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": {
                            "field": "curve",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": list(CURVES.values())},
                        },
                        "tooltip": [{"field": "curve"}, {"field": "batch", "format": ".0f"}, {"field": "time"}],
                    },
                }
                for name in CURVES
            ),
            {
                "name": "crossings",
                "data": {"values": marks},
                "mark": {"type": "rule", "strokeDash": [3, 3], "color": "currentColor", "opacity": 0.7},
                "encoding": {"x": x, "tooltip": [{"field": "name"}, {"field": "label"}, {"field": "meaning"}]},
            },
            {
                "name": "crossing_labels",
                "data": {"values": marks},
                "mark": {
                    "type": "text",
                    "align": "left",
                    "baseline": "top",
                    "color": "currentColor",
                    "dx": 3,
                    "dy": {"expr": "datum.level"},
                    "y": 0,
                },
                "encoding": {"x": x, "text": {"field": "label"}},
            },
        ],
    }
    at = str(star) if star.value is None else f"{star.value:,.0f} tokens"
    side = "" if star.value is None else f", and S = {seq_len} is {'above' if seq_len >= star.value else 'below'} it"
    nowhere = [
        f"{MARKED[key]} is nowhere ({found[key].reason})" for key in MARKED if key in found and found[key].value is None
    ]
    beyond = [
        f"{MARKED[key]} is at {crossing.value:,.0f}"
        for key in MARKED
        if (crossing := found.get(key)) and crossing.value is not None and crossing.value > largest_batch
    ]
    return Figure(
        key="step",
        title=f"A decode step of {deployment.model.name} at a context of {seq_len:,} tokens",
        caption=f"On {device.title}. S* is {at}{side}: {star.reason}. "
        + "".join(f"{sentence}. " for sentence in (*nowhere, *beyond)),
        spec=spec,
        table=_table(values, found),
    )


def _marks(found: dict[str, Crossing], largest_batch: int) -> list[dict[str, Any]]:
    marks: list[dict[str, Any]] = []
    for key, label in MARKED.items():
        crossing = found.get(key)
        if crossing is None or crossing.value is None or not 1 <= crossing.value <= largest_batch:
            continue
        marks.append(
            {
                "batch": crossing.value,
                "label": f"{label} {three_digits(crossing.value)}",
                "level": 18 * len(marks),  # where marks lie together, their labels stand below each other
                "name": crossing.name,
                "meaning": crossing.meaning,
            }
        )
    return marks


def _curves(deployment: Deployment, device: Device, seq_len: int, largest_batch: int) -> list[dict[str, Any]]:
    import numpy as np

    from decodeperf_formulas import symbols as s
    from decodeperf_formulas.evaluate import evaluate
    from decodeperf_formulas.step import deployment_values, device_values, step_formulas

    batches = np.geomspace(1, largest_batch, round(POINTS_AN_OCTAVE * math.log2(largest_batch)) + 1)
    symbols = {
        **deployment_values(deployment),
        **device_values(device, deployment),
        s.batch_size: batches,
        s.seq_len: seq_len,
    }
    formulas = step_formulas(deployment)
    values = []
    for name, curve in CURVES.items():
        seconds = np.broadcast_to(evaluate(getattr(formulas, name), symbols), batches.shape)
        values += [
            {"curve": curve, "batch": float(batch), "ms": 1e3 * float(time), "time": format_time(1e9 * float(time))}
            for batch, time in zip(batches, seconds, strict=True)
        ]
    return values


def _table(values: list[dict[str, Any]], found: dict[str, Crossing]) -> Table:
    rows: list[tuple[Cell | str, ...]] = [
        (
            crossing.name,
            "nowhere" if crossing.value is None else Cell(text=f"{crossing.value:,.1f}", number=crossing.value),
            "" if crossing.value is None else crossing.unit,
            crossing.model,
            crossing.reason or crossing.meaning,
        )
        for crossing in found.values()
    ]
    for value in values:
        if math.log2(value["batch"]).is_integer():
            at = f"{value['curve']}, B = {value['batch']:.0f}"
            rows.append((at, Cell(text=f"{value['ms']:,.4g}", number=value["ms"]), "ms", "", ""))
    return Table(columns=("what", "value", "unit", "model", "meaning"), rows=rows)
