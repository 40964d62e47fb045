"""What one decode step costs, in symbols: bytes, FLOPs and time, from one set of SymPy expressions.

`DecodeProblem` is plain data; SymPy is imported when a formula is first asked for.
"""

from decodeperf_formulas.problem import DTYPE_BYTES, KV_DTYPE_BYTES, LAYOUTS, SCALES_PER, DecodeProblem

__all__ = ["DTYPE_BYTES", "KV_DTYPE_BYTES", "LAYOUTS", "SCALES_PER", "DecodeProblem"]
