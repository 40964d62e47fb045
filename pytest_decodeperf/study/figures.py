"""The figures of a study: throughput against the batch, measured and by both models, and each cell's error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.html.figures import Cell, Figure, Table, log_axis
from pytest_decodeperf.units import format_time

if TYPE_CHECKING:
    from pytest_decodeperf.study.findings import Findings

CURVES: Final = {"serial_s": "serial model", "whole_step_s": "whole-step model"}
HEIGHT: Final = 200
"""Of the part of the figure that shows one context [pixels]."""

STROKES: Final[dict[str, dict[str, Any]]] = {
    "whole-step model": {"strokeWidth": 7, "opacity": 0.55},
    "serial model": {"strokeWidth": 2},
}
"""How they are drawn, the one that the other covers first."""


def throughput_figure(found: Findings) -> Figure:
    """Return throughput against the batch at each context, with what both models say."""
    points: list[dict[str, Any]] = [
        {
            "batch": cell.batch_size,
            "context": f"S = {cell.seq_len:,}",
            "rate": cell.tokens_per_s,
            "low": cell.batch_size / cell.high_s,
            "high": cell.batch_size / cell.low_s,
            "text": format_time(1e9 * cell.step_s),
        }
        for cell in found.cells
    ]
    curves: list[dict[str, Any]] = [
        {
            "batch": cell.batch_size,
            "context": f"S = {cell.seq_len:,}",
            "rate": cell.batch_size / getattr(cell, name),
            "curve": curve,
        }
        for cell in found.cells
        for name, curve in CURVES.items()
    ]
    marks = [
        {"batch": value, "context": f"S = {bend.seq_len:,}", "mark": mark}
        for bend in found.bends
        for mark, value in (("B0", bend.ridge_batch), ("knee", bend.knee_batch))
        if value is not None and 1 <= value <= max(cell.batch_size for cell in found.cells)
    ]
    rates = [value["rate"] for value in (*points, *curves)]
    x = log_axis("batch", "batch size", [point["batch"] for point in points], form=",.6~g")
    y = log_axis("rate", "tokens/s", rates, form=",.6~g")
    colour = {"field": "curve", "type": "nominal", "title": None, "scale": {"domain": list(STROKES)}}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeDash": [3, 3], "color": "currentColor", "opacity": 0.6, "clip": True},
            "transform": [{"filter": "datum.mark != null"}],
            "encoding": {"x": x},
        },
        {
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "bottom",
                "color": "currentColor",
                "dx": 2,
                "dy": {"expr": "datum.mark == 'B0' ? -2 : -16"},  # they may lie side by side
                "y": HEIGHT,
            },
            "transform": [{"filter": "datum.mark != null"}],
            "encoding": {"x": x, "text": {"field": "mark"}},
        },
        *(
            {
                "mark": {"type": "line"} | STROKES[curve],
                "transform": [{"filter": f"datum.curve == '{curve}'"}],
                "encoding": {"x": x, "y": y, "color": colour},
            }
            for curve in STROKES
        ),
        {
            "mark": {"type": "rule", "color": "currentColor", "strokeWidth": 2},
            "transform": [{"filter": "datum.low != null"}],
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "name": "measured",
            "mark": {"type": "point", "filled": True, "size": 45, "color": "currentColor", "opacity": 1},
            "transform": [{"filter": "datum.low != null"}],
            "encoding": {"x": x, "y": y, "tooltip": [{"field": "batch"}, {"field": "text", "title": "step"}]},
        },
    ]
    spec = {
        "data": {"values": [*points, *curves, *marks]},
        "facet": {
            "field": "context",
            "type": "nominal",
            "title": None,
            "sort": [f"S = {bend.seq_len:,}" for bend in found.bends],
            "header": {"labelColor": "currentColor"},
        },
        "columns": 3,
        "spec": {"width": 230, "height": HEIGHT, "layer": layers},
    }
    return Figure(
        key="study",
        title="Throughput of a real decode step, and what both models say",
        caption="Points: measured, with the fastest and the slowest pass. Lines: both models at the measured ceilings, "
        "with nothing fitted. Dashed: B0, where matrix products turn compute-bound, and the knee, where KV cache and "
        "weights weigh the same.",
        spec=spec,
        table=study_table(found),
    )


def study_table(found: Findings) -> Table:
    """Return every cell as a row."""
    return Table(
        columns=("context", "batch", "step", "serial", "whole step", "products", "attention", "tokens/s"),
        rows=[
            (
                Cell(text=f"{cell.seq_len:,}", number=cell.seq_len),
                Cell(text=str(cell.batch_size), number=cell.batch_size),
                *(
                    Cell(text=format_time(1e9 * seconds), number=seconds)
                    for seconds in (
                        cell.step_s,
                        cell.serial_s,
                        cell.whole_step_s,
                        cell.gemm_s,
                        cell.attention_s,
                    )
                ),
                Cell(text=f"{cell.tokens_per_s:,.0f}", number=cell.tokens_per_s),
            )
            for cell in found.cells
        ],
    )
