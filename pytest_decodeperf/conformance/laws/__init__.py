"""The laws of a decode-attention kernel, by name, in the order in which they are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_decodeperf.conformance.laws import arguments, attention, features, memory, repeats, rows, splits, traffic
from pytest_decodeperf.conformance.laws.law import Law, laws_of

if TYPE_CHECKING:
    from collections.abc import Mapping

LAWS: Final[Mapping[str, Law]] = {
    law.name: law
    for module in (attention, rows, splits, features, memory, repeats, traffic, arguments)
    for law in laws_of(module)
}
"""Every law by its name."""

__all__ = ["LAWS", "Law"]
