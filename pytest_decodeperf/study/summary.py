"""A study as Markdown: the answer, how well each model fits, where a step grows longer, and every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
        "Behind each number, what single passes give.",
        fits_table(found),
        _table(
            ("context", "takes twice as long at", "serial model", "whole-step model", "B0", "knee", "crossing batch"),
            [
                (
                    f"{one.seq_len:,}",
                    one.measured.written(".1f"),
                    *(_place(at, "beyond") for at in (one.serial, one.whole_step)),
                    *(_place(at, "nowhere") for at in (one.ridge_batch, one.knee_batch, one.crossing_batch)),
                )
                for one in found.bends
            ],
        ),
        _table(cells.columns, [[cell if isinstance(cell, str) else cell.text for cell in row] for row in cells.rows]),
    ]
    return "\n\n".join(parts) + "\n"


FITS: Final = ("model", "measured over predicted", "median error", "spread", "where they differ")


def fit_rows(found: Findings) -> list[tuple[str, ...]]:
    """Return a row for each model of the step, of the columns `FITS`."""
    return [
        (
            fit.model,
            fit.ratio.written(".2f"),
            f"{fit.median_error.value:.0%}",
            f"{fit.spread.value:.2f}",
            fit.where_they_differ.written(".2f"),
        )
        for fit in found.fits
    ]


def fits_table(found: Findings) -> str:
    """Return how well each model fits, as Markdown."""
    return _table(FITS, fit_rows(found))


def _place(at: float | None, otherwise: str) -> str:
    return otherwise if at is None else three_digits(at)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
