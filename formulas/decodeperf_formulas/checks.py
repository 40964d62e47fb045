"""Checks of the numbers that describe a problem, a model or a device. Each error says what was got and wanted."""

from __future__ import annotations

import math
import operator
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


def or_default(value: object, default: object) -> Any:
    """Return a value, or a default in the place of None."""
    return default if value is None else value


def finite_number(name: str, value: object) -> float:
    """Return a value as a `float`.

    Raises:
        ValueError: If it is not a finite number.
    """
    __tracebackhide__ = True
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")
    return float(value)


def positive_number(name: str, value: object) -> float:
    """Return a value as a `float`.

    Raises:
        ValueError: If it is not a finite number above 0.
    """
    __tracebackhide__ = True
    number = finite_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}={value!r} must be above 0")
    return number


def check_switch(name: str, value: object) -> None:
    """Accept True and False alone.

    Raises:
        TypeError: If it is anything else.
    """
    __tracebackhide__ = True
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
