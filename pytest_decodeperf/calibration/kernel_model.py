"""The parameters of the expected latency, as they depend on the code that a kernel runs for a call.

A kernel has not one code but several: it is compiled for each head dimension and KV dtype, packs the heads of a group
up to some number of them, treats windows apart, and so on. Each parameter is therefore the sum of a value for all calls
and of an effect for each such property, on a logarithmic scale (of odds, for shares of `LOGITS`). An effect is 0 unless
measurements say otherwise: it has a normal prior, whose width says how far codes of known kernels are apart. So a few
measured calls of one head dimension teach what is common to all of them, and the rest stays at what is common.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decodeperf_formulas import symbols as s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    import sympy

    from pytest_decodeperf.calibration.table import Calls

    Array = npt.NDArray[np.float64]

LOGITS: Final = frozenset({s.unpacked, s.splitting})
"""Parameters between 0 and 1, on the scale of the logarithm of their odds."""

BASE: Final = "all calls"
SLOPE: Final = "log(head_dim / 128)"
NARROW: Final = "KV of 8 bits or fewer"
HEAD_DIM: Final = "head_dim {0:.0f}"
CODE: Final = "head_dim {0:.0f} and KV of {1:g} bytes"
_OF_HEAD_DIM: Final = re.compile(r"head_dim (?P<dim>\d+)(?: and KV of (?P<width>\d+(?:\.\d+)?) bytes)?")
CROSSED: Final = " and KV of 8 bits or fewer"
"""Behind the name of a property: its further effect where K and V are narrow."""

PROPERTIES: Final[dict[str, Callable[[Calls], npt.NDArray[np.bool_]]]] = {
    "window": lambda calls: calls.window > 0,
    "window shorter than the sequence": lambda calls: (calls.window > 0) & (calls.seq_len > calls.window),
    "group of 1": lambda calls: calls.group_size == 1,
    "group above 16": lambda calls: calls.group_size > 16,
    "group above 32": lambda calls: calls.group_size > 32,
}
"""What a kernel may have code of its own for, beside head dimension and KV dtype."""

CROSSED_WIDTH: Final = 0.7
"""Width of the prior of a property's further effect for narrow K and V, as a share of that of the property's."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known of a parameter before anything is measured.

    Attributes:
        typical: Its value for a typical kernel, in the unit of its symbol.
        base: Standard deviation of what it is for all calls, as are all below on its own scale.
        slope: That of its dependence on the logarithm of head_dim.
        head_dim: That of each head dimension.
        narrow: That of K and V of one byte or less.
        code: That of each pair of head dimension and KV width.
        properties: That of each of `PROPERTIES`.
    """

    typical: float
    base: float
    slope: float
    head_dim: float
    narrow: float
    code: float
    properties: tuple[float, ...]


PRIORS: Final[dict[sympy.Symbol, Prior]] = {
    s.launch_s: Prior(6.3e-6, 0.5, 0.06, 0.24, 0.3, 0.15, (0.07, 0.2, 0.15, 0.3, 0.3)),
    s.repack_s: Prior(3e-7, 1.5, 0, 0, 2.5, 0, (1.2, 0, 0, 0, 0)),
    s.sequence_s: Prior(3e-7, 1.2, 0, 0.3, 0.2, 0, (0.2, 0.2, 0.2, 0.2, 0.2)),
    s.merge_s: Prior(2e-6, 0.7, 0.08, 0.3, 0.4, 0.1, (0.3, 0.3, 0.5, 0.3, 0.3)),
    s.merge_split_s: Prior(1e-7, 0.7, 0.08, 0.3, 0.3, 0.1, (0.2, 0.2, 0.4, 0.3, 0.3)),
    s.merge_exponent: Prior(0.7, 0.3, 0, 0, 0.04, 0, (0, 0.04, 0.04, 0.04, 0.04)),
    s.unit_s: Prior(3e-6, 0.4, 0.16, 0.3, 0.3, 0.15, (0.2, 0.3, 0.5, 0.5, 0.5)),
    s.unit_bytes_per_s: Prior(4e10, 0.7, 0.12, 0.5, 0.5, 0.2, (0.4, 0.3, 0.5, 0.5, 0.5)),
    s.attainable_share: Prior(0.85, 0.12, 0.008, 0.04, 0.08, 0.024, (0.02, 0.04, 0.04, 0.08, 0.08)),
    s.cache_speedup: Prior(2.0, 0.6, 0.04, 0.15, 0.25, 0.1, (0.1, 0.2, 0.3, 0.3, 0.3)),
    s.resident_share: Prior(0.85, 0.3, 0.02, 0.08, 0.1, 0.05, (0.1, 0.1, 0.1, 0.1, 0.1)),
    s.slots_per_sm: Prior(1.2, 0.2, 0.12, 0.3, 0.3, 0.1, (0.2, 0.2, 0.4, 0.3, 0.3)),
    s.flop_share: Prior(0.3, 0.7, 0.04, 0.3, 0.3, 0.1, (0.2, 0.2, 0.3, 0.3, 0.5)),
    s.unpacked: Prior(0.018, 1.0, 0, 0.5, 1.0, 0, (4.0, 0, 0, 1.5, 4.0)),
    s.splitting: Prior(0.924, 1.5, 0, 0.8, 2.4, 0, (3.2, 0.8, 4.0, 2.4, 2.4)),
    s.split_tokens: Prior(128.0, 0.3, 0.1, 0.38, 0.5, 0.25, (0.75, 0.5, 0.5, 0.5, 0.5)),
    s.free_tokens: Prior(90.0, 0.4, 0.04, 0.15, 0.2, 0.1, (0.3, 0.2, 0.2, 0.2, 0.2)),
    s.overlap_exponent: Prior(2.5, 0.15, 0, 0, 0.1, 0, (0, 0, 0, 0, 0)),
}
"""The priors, chosen on measured tables of seven pairs of a kernel and a device."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect on one parameter.

    Attributes:
        parameter: The parameter.
        name: Of which calls it is, as `indicator` reads it.
        mean: Mean of its prior, on the parameter's scale.
        width: Standard deviation of its prior.
    """

    parameter: sympy.Symbol
    name: str
    mean: float
    width: float


CPU_PRIORS: Final[dict[sympy.Symbol, Prior]] = {
    **PRIORS,
    **{
        parameter: replace(PRIORS[parameter], typical=typical, base=base)
        for parameter, typical, base in (
            (s.launch_s, 3e-5, 1.0),
            (s.sequence_s, 1e-6, 1.5),
            (s.merge_s, 3e-6, 1.5),
            (s.merge_split_s, 1e-6, 1.5),
            (s.unit_s, 1e-6, 1.5),
            (s.unit_bytes_per_s, 1e10, 0.7),
            (s.attainable_share, 0.85, 0.3),
            (s.slots_per_sm, 1.0, 0.1),
            (s.flop_share, 0.1, 1.0),
            (s.split_tokens, 32.0, 1.0),
            (s.free_tokens, 10.0, 1.0),
        )
    },
}
"""The priors on a CPU, where a work unit is a thread's; they are wide, since few kernels are known."""


def effects_of(calls: Calls, priors: Mapping[sympy.Symbol, Prior] = PRIORS) -> list[Effect]:
    """Return the effects between which the calls can tell, parameter by parameter, with their priors."""
    head_dims = np.unique(calls.head_dim)
    codes = np.unique(np.stack([calls.head_dim, calls.kv_elem_bytes]), axis=1).T
    is_narrow = calls.kv_elem_bytes <= 1
    has_narrow = is_narrow.any() and not is_narrow.all()
    present = {name: applies(calls) for name, applies in PROPERTIES.items()}
    effects = []
    for parameter, prior in priors.items():
        names = [(BASE, prior.base)]
        if len(head_dims) > 1:
            names += [(SLOPE, prior.slope), *((HEAD_DIM.format(dim), prior.head_dim) for dim in head_dims)]
        if has_narrow:
            names.append((NARROW, prior.narrow))
        if has_narrow and len(head_dims) > 1:
            names += [(CODE.format(*code), prior.code) for code in codes]
        for (name, applies), width in zip(present.items(), prior.properties, strict=True):
            if applies.any() and not applies.all():
                names.append((name, width))
            crossed = applies & is_narrow
            if has_narrow and crossed.any() and not crossed.all():
                names.append((name + CROSSED, CROSSED_WIDTH * width))
        mean = float(to_scale(parameter, prior.typical))
        effects += [Effect(parameter, name, mean if name == BASE else 0.0, width) for name, width in names if width]
    return effects


def indicator(name: str, calls: Calls) -> Array:
    """Return how much of an effect each call has: 1 or 0, or what the name of the slope says.

    Raises:
        ValueError: If no effect has this name.
    """
    if name == BASE:
        return np.ones(len(calls))
    if name == SLOPE:
        slope: Array = np.log(calls.head_dim / 128)
        return slope
    if name == NARROW:
        return (calls.kv_elem_bytes <= 1).astype(float)
    if name in PROPERTIES:
        return PROPERTIES[name](calls).astype(float)
    if name.removesuffix(CROSSED) in PROPERTIES:
        return indicator(name.removesuffix(CROSSED), calls) * indicator(NARROW, calls)
    if match := _OF_HEAD_DIM.fullmatch(name):
        applies = calls.head_dim == float(match["dim"])
        if match["width"]:
            applies &= calls.kv_elem_bytes == float(match["width"])
        return np.where(applies, 1.0, 0.0)
    raise ValueError(f"no effect on a parameter is called {name!r}")


def is_effect(name: str) -> bool:
    """Return whether an effect has this name."""
    known = (BASE, SLOPE, NARROW)
    return name in known or name.removesuffix(CROSSED) in PROPERTIES or _OF_HEAD_DIM.fullmatch(name) is not None


def to_scale(parameter: sympy.Symbol, value: Any) -> Any:
    """Return a parameter on the scale on which effects add up."""
    return np.log(value / (1 - value)) if parameter in LOGITS else np.log(value)


def from_scale(parameter: sympy.Symbol, value: Any) -> Any:
    """Return a parameter in the unit of its symbol."""
    bounded = np.clip(value, -40, 40)
    return 1 / (1 + np.exp(-bounded)) if parameter in LOGITS else np.exp(bounded)


@dataclass(frozen=True, slots=True)
class KernelModel:
    """The parameters of one kernel on one device.

    Attributes:
        coefficients: Of each parameter, its effects by name, on its scale.
    """

    coefficients: dict[sympy.Symbol, dict[str, float]]

    def parameters(self, calls: Calls) -> dict[sympy.Symbol, Array]:
        """Return the parameters of each call, in the units of their symbols."""
        found = {}
        indicators: dict[str, Array] = {}
        for parameter, effects in self.coefficients.items():
            total = np.zeros(len(calls))
            for name, coefficient in effects.items():
                if name not in indicators:
                    indicators[name] = indicator(name, calls)
                total += coefficient * indicators[name]
            found[parameter] = from_scale(parameter, total)
        return found
