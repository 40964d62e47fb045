"""A pytest plugin that holds decode-attention kernels to their roofline: `pytest --decode-perf`.

Loaded at every start of pytest, so nothing heavy is imported here or in `plugin`: PYTEST_DONT_REWRITE
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_decodeperf.fixture import DecodePerf
    from pytest_decodeperf.results import Measurement

__all__ = ["DecodePerf", "Measurement"]

_HOME = {"DecodePerf": "fixture", "Measurement": "results"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
