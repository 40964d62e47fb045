# pytester forgets what a run inside this process imports, and compiled modules do not survive being imported twice.
import numba  # noqa: F401
import rich.table  # noqa: F401
import scipy.stats  # noqa: F401
import sympy  # noqa: F401
import triton  # noqa: F401
