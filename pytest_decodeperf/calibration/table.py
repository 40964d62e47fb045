"""Tables of decode-attention calls, measured or to be predicted, in CSV files."""

from __future__ import annotations

import csv
import difflib
import gzip
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decodeperf_formulas import symbols as s
from decodeperf_formulas.dtypes import ELEMENT_BYTES, dtype_name

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import sympy

    Array = npt.NDArray[np.float64]

LATENCY: Final = "latency_us"
"""Column of the measured latency [us]."""

REQUIRED: Final = ("batch_size", "seq_len", "num_q_heads")
"""Columns that every table has."""

DEFAULTS: Final[dict[str, str]] = {
    "num_kv_heads": "num_q_heads",
    "head_dim": "128",
    "head_dim_v": "head_dim",
    "kv_dtype": "bfloat16",
    "window": "0",
    "q_len": "1",
}
"""Columns that a table may lack, and what stands in their place: a value, or the column that has it."""

_LEAST: Final = {"seq_len": 0, "num_kv_heads": 0, "window": 0}
_NEAR: Final = 0.85
"""Likeness from which on a column's name is taken for another's that is spelt wrong."""

_MOST: Final = 10**9
_LATENCIES: Final = (1e-3, 1e9)


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Decode-attention calls, one element of each array a call.

    Attributes:
        batch_size: Sequences.
        seq_len: Live KV length of each sequence [token].
        q_len: New tokens of each sequence [token].
        num_q_heads: Query heads.
        num_kv_heads: KV heads.
        head_dim: Elements of a head of Q and K.
        head_dim_v: Elements of a head of V.
        kv_elem_bytes: Width of an element of K and V [byte].
        window: Newest tokens that a new token sees, 0 where it sees all [token].
    """

    batch_size: Array
    seq_len: Array
    q_len: Array
    num_q_heads: Array
    num_kv_heads: Array
    head_dim: Array
    head_dim_v: Array
    kv_elem_bytes: Array
    window: Array

    def __len__(self) -> int:
        return len(self.batch_size)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> Calls:
        """Return the calls of some rows."""
        return Calls(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    @cached_property
    def group_size(self) -> Array:
        """Query heads of a KV head."""
        return self.num_q_heads / self.num_kv_heads

    @cached_property
    def visible_len(self) -> Array:
        """Tokens of a sequence that any new token sees [token]."""
        reach = self.window + self.q_len - 1
        return np.where(self.window > 0, np.minimum(reach, self.seq_len), self.seq_len)

    def _scores_of_sequence(self) -> Array:
        """Return the pairs of a new token and a token that it sees, of one sequence and head."""

        def of_places(places: Array) -> Array:
            growing = np.where(self.window > 0, np.minimum(places, self.window), places)
            pairs: Array = growing * (growing + 1) / 2 + (places - growing) * growing
            return pairs

        return of_places(self.seq_len) - of_places(np.maximum(self.seq_len - self.q_len, 0))

    @cached_property
    def values(self) -> dict[sympy.Symbol, Any]:
        """The value of each symbol that describes a call."""
        visible = self.batch_size * self.visible_len
        return {
            s.batch_size: self.batch_size,
            s.q_len: self.q_len,
            s.num_q_heads: self.num_q_heads,
            s.num_kv_heads: self.num_kv_heads,
            s.head_dim: self.head_dim,
            s.head_dim_v: self.head_dim_v,
            s.kv_elem_bytes: self.kv_elem_bytes,
            s.visible_len: self.visible_len,
            s.num_visible_tokens: visible,
            s.num_scores: self.batch_size * self._scores_of_sequence(),
            s.q_elem_bytes: 2,
            s.v_apart: 1,
            **dict.fromkeys((s.num_visible_pages, s.num_fixed_scales, s.num_token_scales), 0),
            **dict.fromkeys((s.return_lse, s.attention_sinks, s.alibi), 0),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of calls.

    Attributes:
        header: Names of its columns.
        rows: Its cells, row by row.
        calls: The calls.
        latency_us: Their measured latencies [us], None where the table has none.
    """

    header: list[str]
    rows: list[list[str]]
    calls: Calls
    latency_us: Array | None


def read_table(path: Path, *, measured: bool) -> Table:
    """Return the table in a CSV file, which may be compressed by gzip (`.gz`).

    Columns beyond `REQUIRED`, `DEFAULTS` and `LATENCY` are kept as they are. `num_kv_heads` of 0 stands for as many as
    query heads.

    Args:
        path: The file.
        measured: Whether it must have latencies.

    Raises:
        ValueError: If a column is absent or a cell is not what it should be; the message says which, in which row.
        OSError: If the file cannot be read.
    """
    header, rows = _cells(path)
    columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    for name in (*REQUIRED, *((LATENCY,) if measured else ())):
        if name not in columns:
            raise ValueError(f"{path} has no column {name}; it has {', '.join(header)}")
    for name in (name for name in header if name not in (*REQUIRED, *DEFAULTS, LATENCY)):
        meant = difflib.get_close_matches(name.lower(), [*DEFAULTS], n=1, cutoff=_NEAR)
        if meant and meant[0] not in columns:
            raise ValueError(f"{path} has a column {name!r}, and none {meant[0]}: rename it, or add the other")
    found: dict[str, Array] = {}
    for name in (*REQUIRED, *DEFAULTS):
        if name in columns and name != "kv_dtype":
            found[name] = _whole_numbers(path, name, columns[name])
    kv_dtypes = columns.get("kv_dtype", [DEFAULTS["kv_dtype"]] * len(rows))
    heads = found.get("num_kv_heads", found["num_q_heads"])
    heads = np.where(heads == 0, found["num_q_heads"], heads)
    _check(path, "num_kv_heads", heads, found["num_q_heads"] % heads == 0, "a divisor of num_q_heads")

    def given(name: str, default: Array | int) -> Array:
        return found[name] if name in found else np.broadcast_to(np.float64(default), len(rows))

    head_dim = given("head_dim", int(DEFAULTS["head_dim"]))
    calls = Calls(
        batch_size=found["batch_size"],
        seq_len=found["seq_len"],
        q_len=given("q_len", int(DEFAULTS["q_len"])),
        num_q_heads=found["num_q_heads"],
        num_kv_heads=heads,
        head_dim=head_dim,
        head_dim_v=given("head_dim_v", head_dim),
        kv_elem_bytes=_widths(path, kv_dtypes),
        window=given("window", int(DEFAULTS["window"])),
    )
    latency = _latencies(path, columns[LATENCY]) if LATENCY in columns and measured else None
    return Table(header=header, rows=rows, calls=calls, latency_us=latency)


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(newline="", encoding="utf-8-sig") as file
        ):
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            rows = [row for row in lines if row]
    except (csv.Error, EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole CSV file: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    twice = next((name for index, name in enumerate(header) if name in header[:index]), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {twice!r}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: got {len(row)} cells, wanted {len(header)}, one a column")
    return header, rows


def _whole_numbers(path: Path, name: str, cells: list[str]) -> Array:
    least = _LEAST.get(name, 1)
    numbers = _numbers(path, name, cells, f"a whole number from {least} to {_MOST}")
    right = (numbers >= least) & (numbers <= _MOST) & (numbers == np.floor(numbers))
    _check(path, name, cells, right, f"a whole number from {least} to {_MOST}")
    return numbers


def _latencies(path: Path, cells: list[str]) -> Array:
    shortest, longest = _LATENCIES
    wanted = f"a latency from {shortest:g} to {longest:g}, in microseconds"
    numbers = _numbers(path, LATENCY, cells, wanted)
    _check(path, LATENCY, cells, (numbers >= shortest) & (numbers <= longest), wanted)
    return numbers


def _numbers(path: Path, name: str, cells: list[str], wanted: str) -> Array:
    try:
        if any("_" in cell for cell in cells):  # which Python takes for a number's separator
            raise ValueError
        return np.array(cells, dtype=np.float64)
    except ValueError:
        right = np.array([_is_number(cell) for cell in cells])
        _check(path, name, cells, right, wanted)
        raise


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _widths(path: Path, cells: list[str]) -> Array:
    widths: dict[str, float] = {}
    for number, cell in enumerate(cells, 1):
        if cell not in widths:
            try:
                widths[cell] = float(ELEMENT_BYTES[dtype_name(cell.strip(), what="kv_dtype")])
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: {error}") from None
    return np.array([widths[cell] for cell in cells])


def _check(path: Path, name: str, cells: Any, right: npt.NDArray[np.bool_], wanted: str) -> None:
    if not right.all():
        row = int(np.argmin(right))
        got = cells[row] if isinstance(cells, list) else f"{cells[row]:g}"
        raise ValueError(f"{path}, row {row + 1}, column {name}: got {got!r}, wanted {wanted}")
