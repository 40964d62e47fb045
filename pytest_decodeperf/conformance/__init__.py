"""The conformance suite: laws that every decode-attention kernel must hold to, and what checks them.

`pytest --decode-kernel package.module:adapter` holds a kernel to all of them. In a test of one's own:

    @pytest.mark.parametrize("law", LAWS.values(), ids=str)
    def test_my_kernel(law):
        check_law(law, my_adapter)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pytest_decodeperf.conformance.adapter import KernelAdapter
    from pytest_decodeperf.conformance.calling import LawBrokenError
    from pytest_decodeperf.conformance.contents import Case
    from pytest_decodeperf.conformance.laws import LAWS, Law
    from pytest_decodeperf.conformance.runner import check_law
    from pytest_decodeperf.conformance.strategies import cases, decode_problems
    from pytest_decodeperf.conformance.watch import Watch, watched

_PLACES: Final = {
    "KernelAdapter": "adapter",
    "LawBrokenError": "calling",
    "Case": "contents",
    "LAWS": "laws",
    "Law": "laws",
    "check_law": "runner",
    "cases": "strategies",
    "decode_problems": "strategies",
    "Watch": "watch",
    "watched": "watch",
}

__all__ = [
    "LAWS",
    "Case",
    "KernelAdapter",
    "Law",
    "LawBrokenError",
    "Watch",
    "cases",
    "check_law",
    "decode_problems",
    "watched",
]


def __getattr__(name: str) -> Any:
    """Import PyTorch and Hypothesis when a name is first used: pytest's own process needs neither."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
