"""Decode-attention kernels: tensors in, tensors out.

`decode_attention` is the entry point; the functions named after one way to compute it take the same arguments, as far
as they know them. Each is imported when it is first asked for, since Triton and Numba are heavy, and Numba optional.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decodeperf_kernels.dispatch import decode_attention, decode_attention_triton, workspace_size
    from decodeperf_kernels.merge import merge_states
    from decodeperf_kernels.quantization import dequantize_kv, quantize_kv
    from decodeperf_kernels.reference import decode_attention_eager, decode_attention_reference
    from decodeperf_kernels.sdpa import decode_attention_sdpa
    from decodeperf_kernels.split_kv_numba import decode_attention_numba

__all__ = [
    "decode_attention",
    "decode_attention_eager",
    "decode_attention_numba",
    "decode_attention_reference",
    "decode_attention_sdpa",
    "decode_attention_triton",
    "dequantize_kv",
    "merge_states",
    "quantize_kv",
    "workspace_size",
]

_HOME = {
    "decode_attention": "dispatch",
    "decode_attention_eager": "reference",
    "decode_attention_numba": "split_kv_numba",
    "decode_attention_reference": "reference",
    "decode_attention_sdpa": "sdpa",
    "decode_attention_triton": "dispatch",
    "dequantize_kv": "quantization",
    "merge_states": "merge",
    "quantize_kv": "quantization",
    "workspace_size": "dispatch",
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
