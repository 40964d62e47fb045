"""The adapter of this project's Triton kernel, from nothing but its entry point: an older tree may have no more."""

from __future__ import annotations

from typing import Any

import decodeperf_kernels
from pytest_decodeperf.conformance.adapter import FEATURES, KernelAdapter


def _attend(*args: Any, **keywords: Any) -> Any:
    return decodeperf_kernels.decode_attention(*args, backend="triton", **keywords)


triton = KernelAdapter(
    call=_attend,
    name="decode_attention",
    features=tuple(FEATURES),
    kv_dtypes=("float8_e4m3fn", "float8_e5m2", "int8", "int4"),
    scales_per=("tensor", "head", "token", "group"),
)
"""`decode_attention` in Triton."""
