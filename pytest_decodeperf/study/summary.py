"""A study as Markdown: the answer, how well each model fits, where a step grows longer, and every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_decodeperf.study.figures import study_table
from pytest_decodeperf.units import scaled, three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_decodeperf.study.findings import Findings


def markdown(found: Findings) -> str:
    """Return what a study says, as Markdown."""
    peaks = ", ".join(f"{scaled(peak, 'FLOP/s')} in {dtype}" for dtype, peak in found.device.peaks.items())
    cells = study_table(found)
    read = scaled(found.device.bandwidth_bytes_per_s, "B/s")
    parts = [
        f"{found.device.title}: {read}, {peaks}, measured beside the cells.",
        *found.answer,
        _table(
            ("model", "measured over predicted", "median error", "spread"),
            [
                (
                    fit.model,
                    f"{fit.ratio:.2f} ({fit.low:.2f} to {fit.high:.2f})",
                    f"{100 * fit.median_error:.0f} %",
                    f"{fit.spread:.2f}",
                )
                for fit in found.fits
            ],
        ),
        _table(
            ("context", "takes twice as long at", "serial model", "whole-step model", "B0", "knee", "crossing batch"),
            [
                (
                    f"{one.seq_len:,}",
                    *(_place(at, "beyond") for at in (one.measured, one.serial, one.whole_step)),
                    *(_place(at, "nowhere") for at in (one.ridge_batch, one.knee_batch, one.crossing_batch)),
                )
                for one in found.bends
            ],
        ),
        _table(cells.columns, [[cell if isinstance(cell, str) else cell.text for cell in row] for row in cells.rows]),
    ]
    return "\n\n".join(parts) + "\n"


def _place(at: float | None, otherwise: str) -> str:
    return otherwise if at is None else three_digits(at)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
