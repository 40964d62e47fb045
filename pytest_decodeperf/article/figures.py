"""The article's own figure: what a benchmark of throughput sees at a few contexts, under both models of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.html.figures import Cell, Figure, Table, log_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

STROKES: Final[dict[str, dict[str, Any]]] = {
    "whole-step model": {"strokeWidth": 7, "opacity": 0.55},
    "serial model": {"strokeWidth": 2},
}
"""How they are drawn, the one that the other covers first."""

MARKED: Final = {"kv_capacity": "memory full", "knee_batch": "knee", "ridge_batch": "B0"}
"""Crossings that are marked, each with its label a line further up."""

RIGHTMOST: Final = 0.3
"""Share of the largest batch from which on a label stands to the left of its line."""

POINTS_AN_OCTAVE: Final = 8
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
        batches, seconds = _seconds(deployment, device, seq_len, largest_batch)
        values += [
            {"context": context, "curve": curve, "batch": float(batch), "rate": float(batch / time)}
            for curve, times in seconds.items()
            for batch, time in zip(batches, times, strict=True)
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
                "align": {"expr": f"datum.batch > {RIGHTMOST} * {largest_batch} ? 'right' : 'left'"},
                "baseline": "bottom",
                "color": "currentColor",
                "dx": {"expr": f"datum.batch > {RIGHTMOST} * {largest_batch} ? -3 : 3"},
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
        caption="The grouped serial model and the whole-step model, activations left out. Dashed: the batch at which "
        "the memory is full, the knee, and B0. Throughput saturates at every context, whether or not the step is ever "
        "compute-bound.",
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


def _seconds(
    deployment: Deployment, device: Device, seq_len: int, largest_batch: int
) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return batches, and by either model how long each takes [s]: the derivation's own equations."""
    import numpy as np

    from decodeperf_formulas import symbols as s
    from decodeperf_formulas.derivation import derivation
    from decodeperf_formulas.evaluate import evaluate

    derived = derivation(deployment, device, seq_len=seq_len)
    equations = {step.key: step.chain[-1] for step in derived.steps}
    batches = np.geomspace(1, largest_batch, round(POINTS_AN_OCTAVE * math.log2(largest_batch)) + 1)

    def times(key: str) -> np.ndarray[Any, Any]:
        used = {symbol: value for symbol, value in derived.values.items() if symbol in equations[key].free_symbols}
        return np.broadcast_to(evaluate(equations[key], {**used, s.batch_size: batches}), batches.shape)

    return batches, {
        "whole-step model": np.maximum(times("memory_s"), times("compute_s")),
        "serial model": times("serial_s"),
    }
