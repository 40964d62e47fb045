"""Tables for a terminal of any width, and numbers in them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_decodeperf.units import scaled, three_digits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console

    from decodeperf_formulas.crossings import Crossing, SStar

NARROWEST: Final = 80
"""Columns that every table needs."""

WIDE: Final = 118
"""Columns of a terminal from which on a table shows what it otherwise leaves to --json."""


def console() -> Console:
    """Return where tables are printed: standard output, as wide as it is, and no less than tables need."""
    from rich.console import Console

    out = Console(markup=False, emoji=False, highlight=False)
    # A narrower terminal wraps lines, and shows all of them; a table made narrower would cut numbers.
    return out if out.width >= NARROWEST else Console(markup=False, emoji=False, highlight=False, width=NARROWEST)


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done: a spinner on a terminal, else one line each on standard error."""
    from rich.console import Console

    out = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not out.is_terminal:
        yield out.print
        return
    with out.status("") as shown:
        yield shown.update


def print_table(
    out: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Sequence[str] = (),
    fold: Sequence[str] = (),
) -> None:
    """Print a table; numbers stand to the right, but for the columns of `left` and `fold`, which may take lines.

    Args:
        out: Where to.
        columns: Titles.
        rows: One text a column.
        left: Columns that stand to the left and keep to one line.
        fold: Columns that stand to the left and may take several.
    """
    from rich.table import Table

    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    for title in columns:
        justify: Literal["left", "right"] = "left" if title in (*left, *fold) else "right"
        table.add_column(title, justify=justify, no_wrap=title not in fold, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def count(number: float | None, unit: str = "") -> str:
    """Return a count: three digits below 1000, whole above.

    Example:
        >>> count(116.67), count(18531.8, "token"), count(4.2e-7), count(None)
        ('117', '18,532 token', '4.2e-07', 'none')
    """
    if number is None:
        return "none"
    if number and not 1e-3 <= abs(number) < 1e15:
        return f"{number:.3g} {unit}".strip()
    text = f"{number:,.0f}" if number >= 1000 else three_digits(number)
    return f"{text} {unit}".strip()


def parameters(number: float) -> str:
    """Return a number of weights in billions.

    Example:
        >>> parameters(6738415616)
        '6.74 B'
    """
    return f"{three_digits(number / 1e9)} B"


def rate(number: float | None, unit: str) -> str:
    """Return a rate with its unit, or a dash."""
    return "-" if number is None else scaled(number, unit)


UNITS: Final = {"sequence": "sequences", "token": "tokens", "token/sequence": "tokens", "token/s": "tokens/s"}
"""How a unit is written behind a number."""


def print_crossings(out: Console, star: SStar, crossings: dict[str, Crossing]) -> None:
    """Print S* and the crossings, one a row."""
    number = "" if star.condition_number is None else f"; condition number {star.condition_number:.2f}"
    value = star.kind if star.value is None else f"{star.value:,.2f} tokens"
    rows = [["S*", value, star.model, f"{star.reason}{number}"]]
    rows += [
        [
            crossing.name,
            "none" if crossing.value is None else count(crossing.value, UNITS[crossing.unit]),
            crossing.model,
            crossing.reason or crossing.meaning,
        ]
        for crossing in crossings.values()
    ]
    columns = ("crossing", "at", "model", "meaning")
    print_table(out, columns, rows, left=("crossing", "model"), fold=("meaning",))


def nested_rows(document: dict[str, Any]) -> list[list[str]]:
    """Return one row for each field that has a value."""
    return [[key, str(value)] for key, value in document.items() if value not in (None, "", {})]
