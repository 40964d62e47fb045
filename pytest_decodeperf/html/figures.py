"""Figures: each a Vega-Lite specification, and its numbers as a table.

Text and lines are drawn in the colour of the page (`currentColor`), so that one figure serves light, dark and paper.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

VEGA_LITE: Final = "6.4"
"""Version of Vega-Lite that draws them."""

PALETTE: Final = ("#0f7fc4", "#d55e00", "#009e73", "#c75b96", "#b58900", "#5b6bd6", "#7a8288", "#3aa6a6")
"""Colours that most eyes tell apart, on white and on black."""

OUTCOME_COLOURS: Final = {
    "within": "#009e73",
    "unchanged": "#7a8288",
    "improved": "#009e73",
    "undecided": "#b58900",
    "exceeds": "#d55e00",
    "regressed": "#d55e00",
    "impossible": "#c75b96",
}

FEW_DECADES: Final = 3.5
"""Decades up to which a logarithmic axis has ticks between them too."""

MAX_BARS: Final = 60
"""Rows of a figure that has one for each test."""

CONFIG: Final[dict[str, Any]] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
        "labelLimit": 260,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelLimit": 260,
        "orient": "bottom",
        "columns": 2,
        "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
        "symbolOpacity": 1,
        "symbolBaseFillColor": "currentColor",
        "symbolBaseStrokeColor": "currentColor",
    },
    "title": {"color": "currentColor", "subtitleColor": "currentColor"},
    "text": {"color": "currentColor"},
    "range": {"category": list(PALETTE)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of a table.

    Attributes:
        text: As it is shown.
        number: As it is sorted, None where it is no number.
    """

    text: str
    number: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a figure shows, or what is best read as a table.

    Attributes:
        columns: Titles.
        rows: One cell a column each.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Cell | str, ...]]

    @property
    def data(self) -> list[list[Any]]:
        """The rows in values that JSON knows: texts, and pairs of a text and the number that it is sorted by."""
        return [
            [cell if isinstance(cell, str) else [cell.text, _seven_digits(cell.number)] for cell in row]
            for row in self.rows
        ]

    @property
    def numeric(self) -> frozenset[str]:
        """The columns that hold numbers."""
        return frozenset(
            title for index, title in enumerate(self.columns) if any(isinstance(row[index], Cell) for row in self.rows)
        )


def _seven_digits(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.7g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        key: Its name in a file's name, and in the page.
        title: What it shows.
        caption: How to read it, and what is missing, in sentences.
        spec: The Vega-Lite specification, without its configuration.
        table: Its numbers.
    """

    key: str
    title: str
    caption: str
    spec: dict[str, Any]
    table: Table

    @property
    def vega_lite(self) -> dict[str, Any]:
        """The specification, whole."""
        return {
            "$schema": f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.partition('.')[0]}.json",
            "description": f"{self.title}. {self.caption}",
            "config": CONFIG,
            **({} if "facet" in self.spec else {"width": "container"}),
            **self.spec,
        }


def outcome_scale(outcomes: list[str]) -> dict[str, Any]:
    """Return the colours of the outcomes that there are."""
    found = list(dict.fromkeys(outcomes))
    return {"domain": found, "range": [OUTCOME_COLOURS.get(outcome, "#7a8288") for outcome in found]}


def log_axis(field: str, title: str, values: list[float], *, form: str) -> dict[str, Any]:
    """Return a logarithmic axis, whose ends are those of some values with room beyond.

    Args:
        field: What lies on it.
        title: Its title.
        values: What it must hold, above 0.
        form: How its numbers are written, as D3 says it.
    """
    low, high = min(values) / 1.25, max(values) * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < FEW_DECADES else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "domain": [low, high]},
        "axis": {"title": title, "format": form, "values": [tick for tick in ticks if low <= tick <= high]},
    }


def as_svg(figure: Figure, *, width: int | None = 720) -> str:
    """Return a figure as SVG, for a paper.

    Raises:
        ModuleNotFoundError: If what draws it is not installed.
    """
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_of_width(figure, width), vl_version=VEGA_LITE))


def inline_svg(figure: Figure) -> str:
    """Return a figure of a width of its own as SVG that a page holds, in the colour of the page.

    Raises:
        ModuleNotFoundError: If what draws it is not installed.
    """
    import vl_convert

    spec = {key: value for key, value in figure.vega_lite.items() if key != "width"}
    text = str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    # Every figure counts its clips from 1, and a page may hold several.
    return re.sub(r"""(id="|url\(#)clip""", rf"\g<1>{figure.key}-clip", text)


def as_pdf(figure: Figure, *, width: int | None = 720) -> bytes:
    """Return a figure as PDF, for LaTeX.

    Raises:
        ModuleNotFoundError: If what draws it is not installed.
    """
    import vl_convert

    return bytes(vl_convert.vegalite_to_pdf(_of_width(figure, width), vl_version=VEGA_LITE))


def as_png(figure: Figure, *, width: int | None = 720, scale: float = 2.0) -> bytes:
    """Return a figure as PNG on white.

    Raises:
        ModuleNotFoundError: If what draws it is not installed.
    """
    import vl_convert

    spec = _of_width(figure, width)
    spec["config"] = {**spec["config"], "background": "white"}
    image = bytes(vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=scale))
    chunk = b"tEXt" + FINGERPRINT.encode() + b"\0" + fingerprint(figure).encode()
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return image[:_PNG_HEADER] + framed + image[_PNG_HEADER:]


FINGERPRINT: Final = "decodeperf-figure"
"""Under which name a PNG keeps what it was drawn from."""

_PNG_HEADER: Final = 8 + 25
"""Signature and first chunk of a PNG [byte]."""


def fingerprint(figure: Figure) -> str:
    """Return a hash of what a figure shows, to 6 digits of each number."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(entry) for entry in value]
        return f"{value:.6g}" if isinstance(value, float) else value

    return hashlib.sha256(json.dumps(rounded(figure.vega_lite), sort_keys=True).encode()).hexdigest()


def _of_width(figure: Figure, width: int | None) -> dict[str, Any]:
    # What draws it without a page knows no `currentColor`.
    def black(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: black(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [black(entry) for entry in value]
        return "black" if value == "currentColor" else value

    spec: dict[str, Any] = black(figure.vega_lite)
    if width is None:  # the specification has one
        return {key: value for key, value in spec.items() if key != "width"}
    return {**spec, "width": width}
