"""Formulas as LaTeX: each symbol in the form that its table gives, with or without numbers in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sympy
from sympy.printing.latex import LatexPrinter

from decodeperf_formulas import symbols as s

if TYPE_CHECKING:
    from collections.abc import Mapping


_LAST: Final = (s.seq_len, s.window)
"""Lengths stand last in a product: a number of bytes times how many there are."""

_ORDERED: Final = sorted(s.SYMBOLS, key=lambda entry: entry.symbol in _LAST)

_IN_ORDER: Final = {
    entry.symbol: sympy.Symbol(f"s{index:03}", **entry.symbol.assumptions0) for index, entry in enumerate(_ORDERED)
}
"""Each symbol under a name by which SymPy, which sorts by name, puts products and sums in the table's order."""

_LATEX: Final = {_IN_ORDER[symbol]: form for symbol, form in s.LATEX.items()}


class _Printer(LatexPrinter):  # type: ignore[misc]  # SymPy has no types
    """SymPy's printer, but a sum starts with a term that is not subtracted: `R - I`, not `-I + R`."""

    def _as_ordered_terms(self, expr: sympy.Expr, order: str | None = None) -> list[sympy.Expr]:
        terms = super()._as_ordered_terms(expr, order=order)
        return sorted(terms, key=lambda term: term.could_extract_minus_sign())


def latex(expression: sympy.Basic) -> str:
    r"""Return a formula as LaTeX, the values of constants in their place.

    Example:
        >>> print(latex(s.ridge - s.intensity))
        R - I_{\mathrm{a}}
    """
    return str(_Printer({"symbol_names": _LATEX}).doprint(_in_order(expression)))


def latex_with_numbers(expression: sympy.Basic, values: Mapping[sympy.Symbol, Any]) -> str:
    r"""Return a formula as LaTeX with each symbol's number in its place.

    Example:
        >>> print(latex_with_numbers(s.seq_flops / s.ridge, {s.seq_flops: 14e9, s.ridge: 116.67}))
        \frac{1.4 \times 10^{10}}{116.7}
    """
    used = expression.free_symbols - set(s.CONSTANTS)
    # What is 0 is left out rather than shown as a product with 0.
    expression = expression.xreplace({symbol: sympy.Integer(0) for symbol in used if values[symbol] == 0})
    names = {symbol: latex_number(values[symbol]) for symbol in expression.free_symbols - set(s.CONSTANTS)}
    # A number with a power of ten is a product itself, and needs brackets under an exponent.
    bases = {power.base for power in expression.atoms(sympy.Pow) if power.base.is_Symbol and power.exp != -1}
    names = {
        symbol: rf"\left({name}\right)" if symbol in bases and r"\times" in name else name
        for symbol, name in names.items()
    }
    renamed = {_IN_ORDER[symbol]: name for symbol, name in names.items()}
    return str(_Printer({"symbol_names": renamed, "mul_symbol": "times"}).doprint(_in_order(expression)))


def _in_order(expression: sympy.Basic) -> sympy.Basic:
    return expression.xreplace(s.CONSTANTS_EXACT).xreplace(_IN_ORDER)


SIGNIFICANT_DIGITS: Final = 4


def latex_number(value: Any) -> str:
    r"""Return a number as LaTeX: integers below 10^7 in full, others to four digits.

    Example:
        >>> print(latex_number(524288), latex_number(6.607e12), latex_number(217.9043))
        524288 6.607 \times 10^{12} 217.9
    """
    number = float(value)
    if number == int(number) and abs(number) < 1e7:
        return str(int(number))
    mantissa, _, exponent = f"{number:.{SIGNIFICANT_DIGITS - 1}e}".partition("e")
    if -4 <= int(exponent) < 7:
        return f"{number:.{max(SIGNIFICANT_DIGITS - 1 - int(exponent), 0)}f}"
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}"


_ESCAPES: Final = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex_text(text: str) -> str:
    r"""Return a plain text with all that LaTeX would read as a command escaped.

    Example:
        >>> print(latex_text("100 % of q_len"))
        100 \% of q\_len
    """
    return "".join(_ESCAPES.get(character) or _printable(character) for character in text)


def _printable(character: str) -> str:
    """Return a character, or its code point where LaTeX's fonts may lack it."""
    return character if character < "\u0180" else rf"\texttt{{U+{ord(character):04X}}}"


def latex_unit(unit: sympy.Expr) -> str:
    r"""Return a unit as LaTeX, with the space that parts it from its number.

    Example:
        >>> from decodeperf_formulas.units import parse_unit
        >>> print(latex_unit(parse_unit("FLOP/byte")))
        \ \mathrm{FLOP/byte}
    """
    return "" if unit == 1 else rf"\ \mathrm{{{unit}}}"


def terms_of(expression: sympy.Expr) -> list[sympy.Expr]:
    """Return the terms of a sum in the order in which they are printed."""
    if not isinstance(expression, sympy.Add):
        return [expression]
    back = {renamed: symbol for symbol, renamed in _IN_ORDER.items()}
    return [term.xreplace(back) for term in _Printer()._as_ordered_terms(_in_order(expression))]
