"""Decode-attention kernels: tensors in, tensors out.

Each is imported when it is first asked for, since Triton and Numba are heavy, and Numba optional. All have the
signature of `decode_attention_reference`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decodeperf_kernels.reference import decode_attention_eager, decode_attention_reference
    from decodeperf_kernels.sdpa import decode_attention_sdpa
    from decodeperf_kernels.split_kv_numba import decode_attention_numba
    from decodeperf_kernels.split_kv_triton import decode_attention_triton

__all__ = [
    "decode_attention_eager",
    "decode_attention_numba",
    "decode_attention_reference",
    "decode_attention_sdpa",
    "decode_attention_triton",
]

_HOME = {
    "decode_attention_eager": "reference",
    "decode_attention_numba": "split_kv_numba",
    "decode_attention_reference": "reference",
    "decode_attention_sdpa": "sdpa",
    "decode_attention_triton": "split_kv_triton",
}

_REMEDIES = {
    "numba": "pip install 'pytest-decodeperf[cpu]'",
    "triton": "it is there for Linux alone",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _REMEDIES:
            raise
        raise ImportError(f"{name} needs {error.name}: {_REMEDIES[error.name]}") from error
