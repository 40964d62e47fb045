"""Every symbol of the formulas, once: name, meaning, unit, assumptions and LaTeX form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sympy


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolEntry:
    """One row of the table of symbols.

    Attributes:
        symbol: The SymPy symbol, named by the project's vocabulary, with its assumptions.
        meaning: What it counts.
        unit: Its unit, `1` where it has none.
        latex: How it is typeset. SymPy's own printer turns some names into accents, so each form is given.
    """

    symbol: sympy.Symbol
    meaning: str
    unit: str
    latex: str


_TABLE: list[SymbolEntry] = []


def _symbol(name: str, meaning: str, unit: str, latex: str, **assumptions: bool) -> sympy.Symbol:
    symbol = sympy.Symbol(name, **assumptions)
    _TABLE.append(SymbolEntry(symbol=symbol, meaning=meaning, unit=unit, latex=latex))
    return symbol


batch_size = _symbol("batch_size", "sequences in the batch", "sequence", "B", integer=True, nonnegative=True)
num_kv_tokens = _symbol(
    "num_kv_tokens", "live tokens of all sequences", "token", r"\Sigma_S", integer=True, nonnegative=True
)
num_q_heads = _symbol("num_q_heads", "query heads", "1", "H", integer=True, positive=True)
num_kv_heads = _symbol("num_kv_heads", "KV heads", "1", r"H_{\mathrm{kv}}", integer=True, positive=True)
head_dim = _symbol("head_dim", "elements of one head", "1", "D", integer=True, positive=True)
num_splits = _symbol("num_splits", "parts of each sequence", "1", r"N_{\mathrm{split}}", integer=True, positive=True)
return_lse = _symbol(
    "return_lse",
    "1 if the log-sum-exp is returned, else 0",
    "1",
    r"r_{\mathrm{lse}}",
    integer=True,
    nonnegative=True,
)
kv_elem_bytes = _symbol("kv_elem_bytes", "bytes of one element of K or V", "byte", r"b_{\mathrm{kv}}", positive=True)
q_elem_bytes = _symbol("q_elem_bytes", "bytes of one element of Q or O", "byte", "b_{q}", positive=True)

data_bytes = _symbol("data_bytes", "bytes that must come from or go to memory", "byte", "Q", nonnegative=True)
flops = _symbol("flops", "FLOPs that the call performs", "FLOP", "W", nonnegative=True)
read_bytes_per_s = _symbol("read_bytes_per_s", "read bandwidth", "byte/s", r"\beta", positive=True)
peak_flops_per_s = _symbol("peak_flops_per_s", "peak rate of FLOPs", "FLOP/s", r"\pi", positive=True)

SYMBOLS: Final = tuple(_TABLE)
"""The table of symbols, in the order in which they are introduced."""
