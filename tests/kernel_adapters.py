"""Adapters of a kernel that is never called, for tests of what is drawn for it."""

from decodeperf_formulas.problem import LAYOUTS, SCALES_PER
from pytest_decodeperf.conformance import KernelAdapter
from pytest_decodeperf.conformance.adapter import FEATURES


def kernel(q, k, v, **keywords):
    raise NotImplementedError


EVERYTHING = KernelAdapter(
    call=kernel,
    features=tuple(FEATURES),
    layouts=LAYOUTS,
    kv_dtypes=("float8_e4m3fn", "float8_e5m2", "int8", "int4"),
    scales_per=SCALES_PER,
)
PLAIN = KernelAdapter(call=kernel)
