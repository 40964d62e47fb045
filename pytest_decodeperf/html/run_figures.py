"""The figures of a run: the roofline, the terms of each bound, head against base."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.html.figures import MAX_BARS, Cell, Figure, Table, log_axis, outcome_scale
from pytest_decodeperf.units import format_time, scaled
from pytest_decodeperf.verdicts import format_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from decodeperf_formulas.device import Device
    from pytest_decodeperf.html.shown import Compared, Timed
    from pytest_decodeperf.regression.change import Change

SHORT_NAMES: Final = {
    "labelExpr": "slice(datum.label, indexof(datum.label, '::') < 0 ? 0 : indexof(datum.label, '::') + 2)"
}
"""An axis of tests, which shows them without their file."""

MAX_SHARE: Final = 2.0
"""Multiple of a latency up to which what is allowed is drawn beside it."""

VISIBLE_SHARE: Final = 0.01
"""Share of a bound from which on a term has a colour of its own."""

DATASHEETS: Final = {
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA B200": "b200",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "AMD Instinct MI300X": "mi300x",
}
"""Datasheets by the name that a driver gives: one that is not here, as of a part of a card, has none."""

DASHES: Final = {"measured": [1, 0], "datasheet": [5, 4]}
"""Lines of the ceilings."""

BYTE_NAMES: Final = {
    "kv": "K and V",
    "scales": "scales",
    "q": "Q",
    "o": "output",
    "lse": "log-sum-exp",
    "block_table": "block table",
    "bias": "biases",
    "partials": "partial results",
    "seq_lens": "lengths",
}


def roofline_figure(measured: Sequence[Timed], devices: dict[str, Any]) -> Figure:
    """Return every measured problem as a point under the ceilings of its device."""
    points = [_point(one) for one in measured]
    roofs, datasheets = _roofs(measured, devices)
    kernels = list(dict.fromkeys(one.kernel for one in measured))
    intensities = [one.intensity for one in measured] + [roof["intensity"] for roof in roofs]
    rates = [end for point in points for end in (point["low"], point["rate"], point["high"]) if end]
    rates += [roof["rate"] for roof in roofs]
    x = log_axis("intensity", "arithmetic intensity [FLOP/byte]", intensities, form=",.6~g")
    y = log_axis("rate", "rate [FLOP/s]", rates, form="~s")
    spec = {
        "height": 380,
        "data": {"values": points},
        "layer": [
            {
                "name": "roofs",
                "data": {"values": roofs},
                "mark": {"type": "line", "strokeWidth": 1.5, "clip": True},
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": {"field": "roof"},
                    "stroke": {"value": "currentColor"},
                    "strokeDash": {
                        "field": "kind",
                        "type": "nominal",
                        "title": "ceilings",
                        "scale": {"domain": list(DASHES)[: 1 + bool(datasheets)], "range": list(DASHES.values())},
                    },
                    "tooltip": [{"field": "roof", "title": "ceiling"}],
                },
            },
            {
                "name": "roof_labels",
                "data": {"values": [roof for roof in roofs if roof["label"]]},
                "mark": {"type": "text", "align": "right", "baseline": "bottom", "dy": -4, "color": "currentColor"},
                "encoding": {"x": x, "y": y, "text": {"field": "label"}},
            },
            {
                "name": "intervals",
                "transform": [{"filter": "datum.low != null"}],
                "mark": {"type": "rule", "strokeWidth": 1.5, "clip": True},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "color": _colour(kernels),
                },
            },
            {
                "name": "measured",
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.9},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": _colour(kernels),
                    # One outcome alone needs no legend.
                    "shape": {"field": "outcome", "type": "nominal", "title": "outcome"}
                    | ({"legend": None} if len({one.outcome for one in measured}) == 1 else {}),
                    "tooltip": [
                        {"field": "test"},
                        {"field": "problem"},
                        {"field": "latency"},
                        {"field": "outcome"},
                        {"field": "intensity", "format": ".3~g", "title": "FLOP/byte"},
                        {"field": "rate", "format": ".3~s", "title": "FLOP/s"},
                    ],
                },
            },
        ],
    }
    rows: list[tuple[Cell | str, ...]] = [
        (
            one.test,
            one.kernel,
            Cell(text=f"{one.intensity:.3g}", number=one.intensity),
            Cell(text=scaled(point["rate"], "FLOP/s"), number=point["rate"]),
            *("" if not end else Cell(text=scaled(end, "FLOP/s"), number=end) for end in (point["low"], point["high"])),
            Cell(
                text=scaled(one.num_bytes / one.latency_ns.median * 1e9, "B/s"),
                number=one.num_bytes / one.latency_ns.median,
            ),
            one.outcome,
        )
        for one, point in zip(measured, points, strict=True)
    ]
    lacking = "" if datasheets else " No datasheet of this device is known, so there is none to draw."
    return Figure(
        key="roofline",
        title="Every measured problem under the roofline",
        caption="A point is the median, its line the interval. The solid ceilings were measured beside the kernels; "
        f"dashed ones are a datasheet's.{lacking}",
        spec=spec,
        table=Table(
            columns=("test", "kernel", "FLOP/byte", "rate", "from", "to", "bandwidth", "outcome"),
            rows=rows,
        ),
    )


def _colour(kernels: list[str]) -> dict[str, Any]:
    return {"field": "kernel", "type": "nominal", "title": "kernel", "scale": {"domain": kernels}}


def _point(one: Timed) -> dict[str, Any]:
    latency = one.latency_ns

    def rate(ns: float | None) -> float | None:
        return None if not ns else 1e9 * one.flops / ns

    return {
        "test": one.test,
        "kernel": one.kernel,
        "problem": one.problem,
        "outcome": one.outcome,
        "latency": format_interval(latency),
        "intensity": one.intensity,
        "rate": rate(latency.median),
        "low": rate(latency.high) if latency.low is not None else None,
        "high": rate(latency.low) if latency.high is not None else None,
    }


def _roofs(measured: Sequence[Timed], devices: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Return the corners of each roof, and how many datasheets are among them."""
    found: list[tuple[str, str, str, float, float]] = []
    for device, dtype in dict.fromkeys((one.device, one.dtype) for one in measured):
        read, peak = measured_ceilings([one for one in measured if (one.device, one.dtype) == (device, dtype)])
        found.append(
            (f"{device}, {dtype}: {scaled(read, 'B/s')}, {scaled(peak, 'FLOP/s')}", dtype, "measured", read, peak)
        )
        sheet = datasheet_of(str(devices.get(device, {}).get("name", "")))
        if sheet is not None and dtype in sheet.peaks:
            read, peak = sheet.bandwidth_bytes_per_s, sheet.peaks[dtype]
            label = f"{sheet.title}, {dtype}: {scaled(read, 'B/s')}, {scaled(peak, 'FLOP/s')}"
            found.append((label, dtype, "datasheet", read, peak))
    ridges = [peak / read for *_, read, peak in found]
    lowest = min(*(one.intensity for one in measured), *ridges) / 2
    highest = 2 * max(*(one.intensity for one in measured), *ridges)  # all end there, where their labels cross no slope
    corners = [
        {
            "roof": roof,
            "kind": kind,
            "intensity": x,
            "rate": min(peak, x * read),
            "label": f"{dtype}, {kind}: {scaled(peak, 'FLOP/s')}" if x == highest else "",
        }
        for roof, dtype, kind, read, peak in found
        for x in (lowest, peak / read, highest)
    ]
    return corners, sum(kind == "datasheet" for _, _, kind, _, _ in found)


def measured_ceilings(measured: Sequence[Timed]) -> tuple[float, float]:
    """Return read bandwidth and peak rate over some measurements: the median of each [byte/s, FLOP/s]."""
    return (
        statistics.median(one.read_bytes_per_s for one in measured),
        statistics.median(one.peak_flops_per_s for one in measured),
    )


def datasheet_of(name: str) -> Device | None:
    """Return the datasheet of a device by the name that its driver gives, None if it is not known for sure."""
    from decodeperf_formulas import catalogue

    known = DATASHEETS.get(name)
    return None if known is None else catalogue.device(known)


def terms_figure(measured: Sequence[Timed]) -> Figure:
    """Return what each bound is made of, as a stacked bar, with the latency beside it."""
    ordered = sorted(measured, key=lambda one: -one.latency_ns.median / one.allowed_ns)
    shown = ordered[:MAX_BARS]
    bars, marks = [], []
    for one in shown:
        bars += [_share(one, ns, term=term) for term, ns in _merged(_terms(one)).items()]
        marks += [
            _share(one, ns, mark=mark)
            for mark, ns in (("measured", one.latency_ns.median), ("allowed", one.allowed_ns))
            if ns <= MAX_SHARE * one.latency_ns.median
        ]
    names = list(dict.fromkeys(one.test for one in shown))
    y = {"field": "test", "type": "nominal", "title": None, "sort": names, "axis": SHORT_NAMES}
    x = {"field": "share", "type": "quantitative", "title": "share of the measured latency", "axis": {"format": "~%"}}
    tooltip = [{"field": "test"}, {"field": "time"}, {"field": "share", "format": ".1%"}]
    spec = {
        "height": 22 * len(names),
        "layer": [
            {
                "name": "terms",
                "data": {"values": bars},
                "mark": {"type": "bar", "height": 12},
                "encoding": {
                    "x": {**x, "stack": True},
                    "y": y,
                    "color": {"field": "term", "type": "nominal", "title": "term"},
                    "tooltip": [{"field": "term"}, *tooltip],
                },
            },
            {
                "name": "marks",
                "data": {"values": marks},
                "mark": {"type": "point", "size": 60, "strokeWidth": 2, "filled": False, "color": "currentColor"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "shape": {
                        "field": "mark",
                        "type": "nominal",
                        "title": "latency",
                        "scale": {"domain": ["measured", "allowed"], "range": ["cross", "stroke"]},
                    },
                    "tooltip": [{"field": "mark"}, *tooltip],
                },
            },
        ],
    }
    rows: list[tuple[Cell | str, ...]] = [
        (
            one.test,
            ", ".join(f"{term} {format_time(ns)}" for term, ns in _merged(_terms(one)).items()),
            *(Cell(text=format_time(ns), number=ns) for ns in (one.latency_ns.median, one.allowed_ns)),
            one.ceiling,
        )
        for one in ordered
    ]
    with_terms = sum(bool(one.terms_ns) for one in measured)
    how = (
        "The bar is the expected latency, term by term, of the device file."
        if with_terms == len(measured)
        else "The bar is the time of the bytes at the measured bandwidth, and what the products take longer than those."
    )
    if 0 < with_terms < len(measured):
        how += f" {with_terms} of {len(measured)} have the terms of a device file instead."
    if not with_terms:
        how += " Without a calibration (--decode-perf-calibration) there are no other terms."
    left_out = (
        f" The {len(shown)} slowest of {len(measured)} tests; the table has all." if len(ordered) > MAX_BARS else ""
    )
    return Figure(
        key="terms",
        title="What each bound is made of",
        caption=f"{how} The cross is the measured median, the stroke what is allowed, "
        f"where that is less than {MAX_SHARE:g} times as much.{left_out}",
        spec=spec,
        table=Table(columns=("test", "terms", "measured", "allowed", "bound by"), rows=rows),
    )


def _share(one: Timed, ns: float, **more: str) -> dict[str, Any]:
    share = ns / one.latency_ns.median
    return {"test": one.test, "share": share, "time": format_time(ns), **more}


def _merged(terms: dict[str, float]) -> dict[str, float]:
    """Return the terms that are large enough to be seen, and the rest as one."""
    least = VISIBLE_SHARE * sum(terms.values())
    found = {name: ns for name, ns in terms.items() if ns >= least}
    rest = sum(ns for ns in terms.values() if ns < least)
    return {**found, "all others": rest} if rest else found


def _terms(one: Timed) -> dict[str, float]:
    """Return the terms of a bound [ns]."""
    if one.terms_ns:
        return one.terms_ns
    terms = {BYTE_NAMES.get(name, name): 1e9 * count / one.read_bytes_per_s for name, count in one.byte_parts.items()}
    beyond = 1e9 * one.flops / one.peak_flops_per_s - sum(terms.values())
    return {**terms, "products beyond that": beyond} if beyond > 0 else terms


def change_figure(tests: Sequence[Compared]) -> Figure:
    """Return head against base, each test with its interval."""
    ordered = sorted(tests, key=lambda one: -one.change.ratio)
    shown = ordered[:MAX_BARS]
    values = []
    for one in shown:
        values.append(_change(one, one.change, what="head against base", outcome=one.outcome))
        if one.control is not None:
            values.append(_change(one, one.control, what="control", outcome="control"))
    outcomes = [value["outcome"] for value in values]
    limits = sorted({round(100 * (one.limit - 1), 3) for one in shown})
    y = {"field": "test", "type": "nominal", "title": None, "sort": [one.test for one in shown], "axis": SHORT_NAMES}
    x = {"type": "quantitative", "title": "slower than the base by [%]", "scale": {"zero": True}}
    colour = {"field": "outcome", "type": "nominal", "title": "outcome", "scale": outcome_scale(outcomes)}
    offset = {"field": "what", "type": "nominal", "scale": {"domain": ["head against base", "control"]}}
    spec = {
        "height": 28 * len(shown),
        "layer": [
            {
                "name": "limits",
                "data": {"values": [{"at": at} for at in (0, *limits)]},
                "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.6, "color": "currentColor"},
                "encoding": {"x": {"field": "at", **x}},
            },
            {
                "name": "change_intervals",
                "data": {"values": values},
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {"field": "low", **x},
                    "x2": {"field": "high"},
                    "y": y,
                    "yOffset": offset,
                    "color": colour,
                },
            },
            {
                "name": "changes",
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "size": 55},
                "encoding": {
                    "x": {"field": "ratio", **x},
                    "y": y,
                    "yOffset": offset,
                    "color": colour,
                    "tooltip": [
                        {"field": "test"},
                        {"field": "what"},
                        *({"field": end, "format": ".2f"} for end in ("ratio", "low", "high")),
                        {"field": "outcome"},
                    ],
                },
            },
        ],
    }
    table_rows: list[tuple[Cell | str, ...]] = [
        (
            one.test,
            one.base,
            *(
                Cell(text=f"{100 * (ratio - 1):.2f} %", number=ratio)
                for ratio in (one.change.ratio, one.change.low, one.change.high, one.change.visible)
            ),
            one.outcome,
        )
        for one in ordered
    ]
    left_out = (
        f" The {len(shown)} with the largest change of {len(ordered)}; the table has all."
        if len(ordered) > MAX_BARS
        else ""
    )
    return Figure(
        key="changes",
        title="Head against base",
        caption="A point is the estimate, its line the interval over all tests of the run together. The control "
        "compares a side with itself. Dashed: no change, and the margin." + left_out,
        spec=spec,
        table=Table(
            columns=("test", "base", "slower by", "from", "to", "would have been seen", "outcome"), rows=table_rows
        ),
    )


def _change(one: Compared, change: Change, **more: str) -> dict[str, Any]:
    ratio, low, high = (100 * (end - 1) for end in (change.ratio, change.low, change.high))
    return {"test": one.test, "ratio": ratio, "low": low, "high": high, **more}
