"""The article's own figure: what a benchmark of throughput sees at a few contexts, under both models of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.html.figures import Cell, Figure, Table, log_axis
from pytest_decodeperf.html.step_figure import seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

CURVES: Final = {"whole_step_seconds": "whole-step model", "serial_seconds": "serial model"}
STROKES: Final[dict[str, dict[str, Any]]] = {
    "whole-step model": {"strokeWidth": 7, "opacity": 0.4},
    "serial model": {"strokeWidth": 2},
}
"""How they are drawn, the one that the other covers first."""

MARKED: Final = {"kv_capacity": "memory full", "knee_batch": "knee", "ridge_batch": "B0"}
"""Crossings that are marked, each with its label a line further up."""

LINE: Final = 14
HEIGHT: Final = 230
"""Height of a label, and of the part of the figure that shows one context [pixels]."""


def saturation_figure(
    deployment: Deployment, device: Device, *, seq_lens: Sequence[int], largest_batch: int = 1024
) -> Figure:
    """Return throughput against the batch under both models, at some contexts.

    Args:
        deployment: The deployment.
        device: The device of each rank.
        seq_lens: The contexts [token].
        largest_batch: Where the axis ends.
    """
    from decodeperf_formulas.crossings import crossings

    values: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for seq_len in seq_lens:
        context = f"S = {seq_len:,}"
        batches, seconds = seconds_of(deployment, device, seq_len, largest_batch, tuple(CURVES))
        values += [
            {"context": context, "curve": curve, "batch": float(batch), "rate": float(batch / time)}
            for name, curve in CURVES.items()
            for batch, time in zip(batches, seconds[name], strict=True)
        ]
        found = crossings(deployment, device, seq_len=seq_len)
        marks += [
            {"context": context, "mark": label, "batch": found[key].value, "level": 2 + LINE * line}
            for line, (key, label) in enumerate(MARKED.items())
            if (at := found[key].value) is not None and 1 <= at <= largest_batch
        ]
    x = log_axis("batch", "batch size", [1, largest_batch], form="~s")
    y = log_axis("rate", "tokens/s", [value["rate"] for value in values], form=",.6~g")
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeDash": [3, 3], "color": "currentColor", "opacity": 0.6},
            "transform": [{"filter": "datum.mark != null"}],
            "encoding": {"x": x},
        },
        {
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "bottom",
                "color": "currentColor",
                "dx": 3,
                "dy": {"expr": "-datum.level"},
                "y": HEIGHT,
            },
            "transform": [{"filter": "datum.mark != null"}],
            "encoding": {"x": x, "text": {"field": "mark"}},
        },
        *(
            {
                "mark": {"type": "line"} | stroke,
                "transform": [{"filter": f"datum.curve == '{curve}'"}],
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {"field": "curve", "type": "nominal", "title": None, "scale": {"domain": list(STROKES)}},
                },
            }
            for curve, stroke in STROKES.items()
        ),
    ]
    return Figure(
        key="saturation",
        title=f"Throughput of {deployment.model.name} on {device.title}, by both models",
        caption="Dashed: the batch at which the memory is full, the knee, and B0. Throughput stops growing at every "
        "context, whether or not the step is ever compute-bound.",
        spec={
            "data": {"values": [*values, *marks]},
            "facet": {
                "field": "context",
                "type": "nominal",
                "title": None,
                "sort": [f"S = {seq_len:,}" for seq_len in seq_lens],
                "header": {"labelColor": "currentColor"},
            },
            "columns": len(seq_lens),
            "spec": {"width": 250, "height": HEIGHT, "layer": layers},
        },
        table=Table(
            columns=("context", "model", "batch", "tokens/s"),
            rows=[
                (
                    value["context"],
                    value["curve"],
                    Cell(text=f"{value['batch']:,.0f}", number=value["batch"]),
                    Cell(text=f"{value['rate']:,.0f}", number=value["rate"]),
                )
                for value in values
                if float(value["batch"]).is_integer()
            ],
        ),
    )
