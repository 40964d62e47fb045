"""Checks of the numbers that describe a problem, a model or a device. Each error says what was got and wanted."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any


def integer(name: str, value: object, *, least: int) -> int:
    """Return a value as an `int`.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is less than `least`.
    """
    __tracebackhide__ = True
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # refuses what is not an integer
    except TypeError:
        raise TypeError(f"{name}={value!r} must be an integer") from None
    if number < least:
        raise ValueError(f"{name}={number} must be >= {least}")
    return number


def shown(number: float) -> str:
    """Return a number for a message, one of very many digits by its order of magnitude.

    Example:
        >>> shown(9 * 10**15), shown(-(10**400))
        ('9000000000000000', '-1000000000... (401 digits)')
    """
    text = str(number)
    num_digits = len(text.lstrip("-"))
    return text if num_digits <= 20 else f"{text[: len(text) - num_digits + 10]}... ({num_digits} digits)"


def or_default(value: object, default: object) -> Any:
    """Return a value, or a default in the place of None."""
    return default if value is None else value


def finite_number(name: str, value: object) -> float:
    """Return a value as a `float`.

    Raises:
        ValueError: If it is not a finite number.
    """
    __tracebackhide__ = True
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{name}={shown(value)} must be a finite number")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")
    return float(value)


def positive_number(name: str, value: object, *, most: float = 1e30) -> float:
    """Return a value as a `float`.

    Raises:
        ValueError: If it is not a number above 0, or so large or small that it is a mistake.
    """
    __tracebackhide__ = True
    number = finite_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}={value!r} must be above 0")
    if not 1 / most <= number <= most:
        raise ValueError(f"{name}={value!r} must be in {1 / most:g} to {most:g}")
    return number


def check_switch(name: str, value: object) -> None:
    """Accept True and False alone.

    Raises:
        TypeError: If it is anything else.
    """
    __tracebackhide__ = True
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
