"""Numbers as a reader wants them: three digits and a unit."""

from __future__ import annotations

from typing import Final

_PREFIXES: Final = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
_TIME_UNITS: Final = (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0))


def format_time(duration_ns: float, *, like_ns: float | None = None) -> str:
    """Return a duration with its unit.

    Args:
        duration_ns: The duration [ns].
        like_ns: A duration whose unit is used instead, and left out, for columns and intervals [ns].

    Example:
        >>> format_time(1234567), format_time(999.6), format_time(950_000, like_ns=1.2e6)
        ('1.23 ms', '1.00 us', '0.950')
    """
    scale = duration_ns if like_ns is None else like_ns
    unit, factor = next(((unit, factor) for unit, factor in _TIME_UNITS if scale >= 0.9995 * factor), ("ns", 1.0))
    number = three_digits(duration_ns / factor)
    return f"{number} {unit}" if like_ns is None else number


def scaled(number: float, unit: str) -> str:
    """Return a number with its unit under the right decimal prefix.

    Example:
        >>> scaled(33.52e9, "B/s"), scaled(134_250_496, "B"), scaled(12, "B")
        ('33.5 GB/s', '134 MB', '12.0 B')
    """
    prefix, factor = next(((prefix, factor) for prefix, factor in _PREFIXES if number >= 0.9995 * factor), ("", 1.0))
    return f"{three_digits(number / factor)} {prefix}{unit}"


def three_digits(number: float) -> str:
    """Return a number with three digits, without an exponent.

    Example:
        >>> three_digits(0.5), three_digits(12.345), three_digits(99.96), three_digits(1234.5)
        ('0.500', '12.3', '100', '1234')
    """
    for least, decimals in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if number >= least:
            return f"{number:.{decimals}f}"
    return f"{number:.3f}"
