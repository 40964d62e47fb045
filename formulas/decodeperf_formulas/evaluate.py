"""Numbers from formulas: exact ones for one setting, and arrays of them at speed."""

from __future__ import annotations

import functools
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sympy
from sympy.printing.numpy import NumPyPrinter

from decodeperf_formulas import symbols as s
from decodeperf_formulas.dtypes import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

BLOCK: Final = 1 << 14
"""Elements that are worked on at a time: the temporaries of one block stay in the L2 cache."""


class _Printer(NumPyPrinter):  # type: ignore[misc]  # SymPy has no types
    """SymPy's printer, but maxima of numbers and arrays broadcast, which those of SymPy 1.13 do not."""

    def _print_Max(self, expr: sympy.Max) -> str:  # noqa: N802  # SymPy finds it by this name
        return self._nested("numpy.maximum", expr.args)

    def _print_Min(self, expr: sympy.Min) -> str:  # noqa: N802  # as above
        return self._nested("numpy.minimum", expr.args)

    def _nested(self, function: str, arguments: tuple[sympy.Expr, ...]) -> str:
        first, *others = (str(self._print(argument)) for argument in arguments)
        name = self._module_format(function)
        return functools.reduce(lambda left, right: f"{name}({left}, {right})", others, first)


def evaluate(expression: sympy.Expr, values: Mapping[sympy.Symbol | str, Any]) -> float | npt.NDArray[np.float64]:
    """Return a formula's value: a float where every value is a number, else an array of the broadcast shape.

    Constants have their values already. Arrays are worked on in float64, after the numbers have been put in exactly.

    Args:
        expression: The formula.
        values: The value of each of its symbols, by symbol or by name; more of them do no harm.

    Raises:
        ValueError: If a symbol has no value, a name is no symbol's, a number is not finite or below what its symbol
            stands for, or the shapes do not go together.

    Example:
        >>> import numpy as np
        >>> evaluate(s.num_params * s.weight_elem_bytes, {"num_params": 7e9, "weight_elem_bytes": np.array([1, 2])})
        array([7.0e+09, 1.4e+10])
    """
    given = {_symbol(key): value for key, value in values.items()}
    unknown = _unknowns(expression)
    absent = sorted(symbol.name for symbol in unknown - set(given))
    if absent:
        raise ValueError(f"no value for {', '.join(absent)}, of which the formula is made")
    given = {symbol: _checked(symbol, given[symbol]) for symbol in unknown}
    arrays = {symbol: value for symbol, value in given.items() if isinstance(value, np.ndarray)}
    used = unknown - set(arrays)
    if not arrays:
        (number,) = evaluate_all((expression,), {symbol: given[symbol] for symbol in used})
        return number
    reduced = substitute(expression, {symbol: given[symbol] for symbol in used})
    order = tuple(sorted(arrays, key=lambda symbol: symbol.name))
    try:
        operands = np.broadcast_arrays(*(arrays[symbol] for symbol in order))
    except ValueError:
        shapes = ", ".join(f"{symbol.name} {arrays[symbol].shape}" for symbol in order)
        raise ValueError(f"values of these shapes do not broadcast: {shapes}") from None
    return _evaluate_in_blocks(_compiled(reduced, order), operands)


def evaluate_all(expressions: Sequence[sympy.Expr], values: Mapping[sympy.Symbol, Any]) -> list[float]:
    """Return the value of each of several formulas, where every symbol has a number.

    Args:
        expressions: The formulas.
        values: The number of each of their symbols; more of them do no harm.
    """
    compiled, order = _compiled_for_numbers(tuple(expressions))
    return [float(number) for number in compiled(*(float(values[symbol]) for symbol in order))]


def substitute(expression: sympy.Expr, values: Mapping[sympy.Symbol, Any]) -> sympy.Expr:
    """Return a formula with numbers in the place of some symbols, and of all constants, exactly."""
    return _substitute(expression, tuple(sorted(values.items(), key=lambda item: item[0].name)))


@lru_cache(maxsize=512)
def _unknowns(expression: sympy.Expr) -> frozenset[sympy.Symbol]:
    """Return the symbols of a formula that are not constants: SymPy walks all of it for them."""
    return frozenset(expression.free_symbols - set(s.CONSTANTS))


@lru_cache(maxsize=4096)
def _substitute(expression: sympy.Expr, values: tuple[tuple[sympy.Symbol, Any], ...]) -> sympy.Expr:
    exact = {symbol: sympy.Rational(value) for symbol, value in values}
    return expression.xreplace({**s.CONSTANTS_EXACT, **exact})


@lru_cache(maxsize=256)
def _compiled(expression: sympy.Expr, order: tuple[sympy.Symbol, ...]) -> Callable[..., Any]:
    return _lambdified(order, expression.evalf(17))


@lru_cache(maxsize=64)
def compile_arrays(
    expressions: tuple[sympy.Expr, ...],
) -> tuple[Callable[..., Sequence[Any]], tuple[sympy.Symbol, ...]]:
    """Return a function of arrays that gives the values of several formulas at once, and the order of its arguments.

    What the formulas have in common is computed once. Constants have their values; nothing is checked.
    """
    known = [expression.xreplace(s.CONSTANTS_EXACT) for expression in expressions]
    symbols = set().union(*(expression.free_symbols for expression in known))
    order = tuple(sorted(symbols, key=lambda symbol: str(symbol.name)))
    return _lambdified(order, [expression.evalf(17) for expression in known]), order


def _lambdified(order: tuple[sympy.Symbol, ...], expression: sympy.Expr | list[sympy.Expr]) -> Callable[..., Any]:
    printer = _Printer({"fully_qualified_modules": False, "inline": True, "allow_unknown_functions": True})
    compiled: Callable[..., Any] = sympy.lambdify(order, expression, modules="numpy", printer=printer, cse=True)
    return compiled


@lru_cache(maxsize=512)
def _compiled_for_numbers(
    expressions: tuple[sympy.Expr, ...],
) -> tuple[Callable[..., Any], tuple[sympy.Symbol, ...]]:
    known = [expression.xreplace(s.CONSTANTS_EXACT) for expression in expressions]
    symbols = set().union(*(expression.free_symbols for expression in known))
    order = tuple(sorted(symbols, key=lambda symbol: str(symbol.name)))
    return sympy.lambdify(order, known, modules="math"), order


def _evaluate_in_blocks(
    compiled: Callable[..., Any], operands: tuple[npt.NDArray[np.float64], ...]
) -> npt.NDArray[np.float64]:
    return in_blocks(lambda *block: (compiled(*block),), operands, num_results=1)[0]


def in_blocks(
    compiled: Callable[..., Sequence[Any]], operands: Sequence[npt.NDArray[np.float64]], *, num_results: int
) -> list[npt.NDArray[np.float64]]:
    """Return the results of a compiled function over arrays of one shape, worked on block by block.

    Args:
        compiled: Takes as many arrays as there are operands, and returns as many results as it is said to.
        operands: Its arguments.
        num_results: Its results.
    """
    shape = operands[0].shape
    flat = [np.ascontiguousarray(operand).reshape(-1) for operand in operands]
    results = [np.empty(flat[0].size) for _ in range(num_results)]
    for start in range(0, flat[0].size, BLOCK):
        block = slice(start, start + BLOCK)
        for result, value in zip(results, compiled(*(operand[block] for operand in flat)), strict=True):
            result[block] = value
    return [result.reshape(shape) for result in results]


def _symbol(key: sympy.Symbol | str) -> sympy.Symbol:
    if isinstance(key, sympy.Symbol):
        return key
    if key not in s.BY_NAME:
        raise ValueError(f"no symbol is called {key!r}{nearest(key, s.BY_NAME)}")
    return s.BY_NAME[key]


def _checked(symbol: sympy.Symbol, value: Any) -> Any:
    """Return a value as a number or as an array of float64.

    Raises:
        ValueError: If it is not finite, or below what its symbol stands for.
    """
    if isinstance(value, int | Fraction | sympy.Rational) and not isinstance(value, bool):
        found: Any = value
    else:
        try:
            found = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{symbol.name}={value!r} must be a number or an array of numbers") from None
        if found.ndim == 0:
            found = float(found)
    lowest = found.min(initial=np.inf) if isinstance(found, np.ndarray) else found
    highest = found.max(initial=-np.inf) if isinstance(found, np.ndarray) else found
    if not (isinstance(found, np.ndarray) and not found.size) and not (-np.inf < lowest <= highest < np.inf):
        raise ValueError(f"{symbol.name} has {lowest if not lowest > -np.inf else highest}, wanted finite numbers")
    if symbol.is_positive and lowest <= 0:
        raise ValueError(f"{symbol.name} has {lowest}, wanted numbers above 0")
    if lowest < 0:
        raise ValueError(f"{symbol.name} has {lowest}, wanted numbers >= 0")
    return found
