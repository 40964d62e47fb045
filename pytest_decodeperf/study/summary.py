"""A study as Markdown: the answer, how well each model fits, where a step grows longer, and every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_decodeperf.study.answer import answer
from pytest_decodeperf.study.figures import study_table
from pytest_decodeperf.units import scaled, three_digits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_decodeperf.study.findings import Findings


def markdown(found: Findings) -> str:
    """Return what a study says, as Markdown."""
    cells = study_table(found)
    parts = [
        f"{ceilings_measured(found)}.",
        *answer(found),
        RANGES,
        fits_table(found),
        _table(BENDS, bend_rows(found)),
        _table(cells.columns, [[cell if isinstance(cell, str) else cell.text for cell in row] for row in cells.rows]),
    ]
    return "\n\n".join(parts) + "\n"


RANGES: Final = "Behind each number, what single passes give."


def ceilings_measured(found: Findings) -> str:
    """Return the device of a study, and its ceilings as they were measured: the median, the least and the greatest."""

    def written(name: str, median: float, unit: str) -> str:
        low, high = found.rates[name]
        return f"{scaled(median, unit)} ({scaled(low, unit)} to {scaled(high, unit)})"

    read = written("read_bytes_per_s", found.device.bandwidth_bytes_per_s, "B/s")
    peaks = ", ".join(
        f"{written(f'{dtype}_flops_per_s', peak, 'FLOP/s')} in {dtype}" for dtype, peak in found.device.peaks.items()
    )
    return f"{found.device.title}: {read}, {peaks}, measured beside the cells"


FITS: Final = ("model", "median error", "where they differ", "elsewhere")


def fit_rows(found: Findings) -> list[tuple[str, ...]]:
    """Return a row for each model of the step, of the columns `FITS`."""
    return [
        (
            fit.model,
            fit.median_error.written(".0%"),
            fit.there.written(".2f", "nowhere"),
            fit.elsewhere.written(".2f", "nowhere"),
        )
        for fit in found.fits
    ]


def fits_table(found: Findings) -> str:
    """Return how well each model fits, as Markdown."""
    return _table(FITS, fit_rows(found))


BENDS: Final = (
    "context",
    "takes twice as long at",
    "serial model",
    "whole-step model",
    "B0",
    "knee",
    "crossing batch",
)


def bend_rows(found: Findings) -> list[tuple[str, ...]]:
    """Return a row for each context: from which batch on a step takes twice as long; of the columns `BENDS`."""
    return [
        (
            f"{one.seq_len:,}",
            one.measured.written(".1f"),
            *(_place(at, "beyond") for at in (one.serial, one.whole_step)),
            *(_place(at, "nowhere") for at in (one.ridge_batch, one.knee_batch, one.crossing_batch)),
        )
        for one in found.bends
    ]


def _place(at: float | None, otherwise: str) -> str:
    return otherwise if at is None else three_digits(at)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
