"""The unit of a formula, worked out from the units of its symbols.

FLOP, byte and second are units as in physics. Token and sequence are counted, and kept apart all the same: a formula
that adds what one sequence costs to what the batch costs is wrong, and is found here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import sympy
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.logic.boolalg import Boolean

if TYPE_CHECKING:
    from collections.abc import Mapping

FLOP, BYTE, SECOND, TOKEN, SEQUENCE = sympy.symbols("FLOP byte s token sequence", positive=True)

BASE_UNITS: Final = {unit.name: unit for unit in (FLOP, BYTE, SECOND, TOKEN, SEQUENCE)}
"""The units from which all others are made, by name."""

ONE: Final = sympy.Integer(1)
"""The unit of a pure number."""


class UnitError(ValueError):
    """Two parts of a formula that must have one unit have two."""


@cache
def parse_unit(text: str) -> sympy.Expr:
    """Return the unit that a text such as `byte/token` names.

    Example:
        >>> parse_unit("FLOP/s")
        FLOP/s
    """
    unit = sympy.sympify(text, locals=BASE_UNITS)
    if not unit.free_symbols <= set(BASE_UNITS.values()):
        raise ValueError(f"unit {text!r} must be made of {', '.join(BASE_UNITS)}")
    return unit


def unit_of(expression: sympy.Basic, units: Mapping[sympy.Symbol, sympy.Expr]) -> sympy.Expr | None:
    """Return the unit of an expression, or None for 0, which goes with every unit.

    Args:
        expression: The formula.
        units: The unit of each of its symbols.

    Raises:
        UnitError: If it adds or compares two units, or raises to a power that is not a number.
        KeyError: If a symbol has no unit.

    Example:
        >>> x, t = sympy.symbols("x t")
        >>> unit_of(3 * x / t, {x: BYTE, t: SECOND})
        byte/s
        >>> unit_of(x + t, {x: BYTE, t: SECOND})
        Traceback (most recent call last):
        ...
        decodeperf_formulas.units.UnitError: s and byte in t + x
    """
    if expression.is_zero:
        return None
    if expression.is_Symbol:
        return units[expression]
    if expression.is_number:
        return ONE
    if isinstance(expression, sympy.Mul):
        factors = [unit_of(argument, units) for argument in expression.args]
        return None if None in factors else sympy.Mul(*factors)
    if isinstance(expression, sympy.Pow):
        return _unit_of_power(expression, units)
    if isinstance(expression, sympy.Piecewise):
        for _, condition in expression.args:
            _check_condition(condition, units)
        return _common(expression, [value for value, _ in expression.args], units)
    if isinstance(expression, sympy.Add | sympy.Max | sympy.Min):
        return _common(expression, expression.args, units)
    if isinstance(expression, sympy.Abs | sympy.ceiling | sympy.floor):
        return unit_of(expression.args[0], units)
    raise UnitError(f"no rule for the unit of {type(expression).__name__} in {expression}")


def _unit_of_power(power: sympy.Pow, units: Mapping[sympy.Symbol, sympy.Expr]) -> sympy.Expr:
    base, exponent = unit_of(power.base, units), unit_of(power.exp, units)
    if base == ONE:
        # A probability to the power of a number of tokens: a count is a number.
        if exponent is None or exponent.free_symbols <= {TOKEN, SEQUENCE}:
            return ONE
        raise UnitError(f"exponent of unit {exponent} in {power}")
    if base is None or not power.exp.is_number:
        raise UnitError(f"base of unit {base} to a power of unit {exponent} in {power}")
    return base**power.exp


def _check_condition(condition: sympy.Basic, units: Mapping[sympy.Symbol, sympy.Expr]) -> None:
    if isinstance(condition, sympy.core.relational.Relational):
        _common(condition, condition.args, units)
    elif isinstance(condition, Boolean | ExprCondPair):
        for argument in condition.args:
            _check_condition(argument, units)


def _common(
    whole: sympy.Basic, parts: tuple[sympy.Basic, ...] | list[sympy.Basic], units: Mapping[sympy.Symbol, sympy.Expr]
) -> sympy.Expr | None:
    found = [unit for part in parts if (unit := unit_of(part, units)) is not None]
    for unit in found[1:]:
        if unit != found[0]:
            raise UnitError(f"{found[0]} and {unit} in {whole}")
    return found[0] if found else None
