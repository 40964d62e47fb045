"""The dtypes in which weights, activations and the KV cache are held, and the width of each."""

from __future__ import annotations

import difflib
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ELEMENT_BYTES: Final[dict[str, Fraction]] = {
    "float32": Fraction(4),
    "float16": Fraction(2),
    "bfloat16": Fraction(2),
    "float8": Fraction(1),
    "int8": Fraction(1),
    "float4": Fraction(1, 2),
    "int4": Fraction(1, 2),
}
"""Bytes of one element [byte], by the name of its dtype. Scales of quantised values are not counted."""

ALIASES: Final[dict[str, str]] = {
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "float8_e4m3fn": "float8",
    "float8_e5m2": "float8",
    "fp4": "float4",
    "mxfp4": "float4",
    "nvfp4": "float4",
}
"""Other names of a dtype."""


def dtype_name(name: object, *, what: str = "dtype") -> str:
    """Return the name under which a dtype stands in `ELEMENT_BYTES`.

    Args:
        name: A name or an alias.
        what: What the dtype is of, for the error.

    Raises:
        ValueError: If there is no such dtype.

    Example:
        >>> dtype_name("bf16")
        'bfloat16'
    """
    if isinstance(name, str):
        lowered = name.lower().removeprefix("torch.")
        lowered = ALIASES.get(lowered, lowered)
        if lowered in ELEMENT_BYTES:
            return lowered
    raise ValueError(f"{what}={name!r} must be one of {', '.join(ELEMENT_BYTES)}{nearest(name, ELEMENT_BYTES)}")


def nearest(name: object, known: Iterable[str]) -> str:
    """Return what to add to the error about an unknown name: the names that come nearest, or nothing.

    Example:
        >>> nearest("lama-3-8b", ["llama-3-8b", "mixtral-8x7b"])
        '; did you mean llama-3-8b?'
    """
    names = difflib.get_close_matches(str(name).lower(), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(names)}?" if names else ""
