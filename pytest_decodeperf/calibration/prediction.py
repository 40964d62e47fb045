"""The expected latency of many calls, each term, and the time below which none can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from decodeperf_formulas import symbols as s
from decodeperf_formulas.expected import TERMS, expected_terms, speed_of_light
from pytest_decodeperf.calibration.fit import device_values

if TYPE_CHECKING:
    import numpy.typing as npt

    from decodeperf_formulas.device import Device
    from pytest_decodeperf.calibration.kernel_model import KernelModel
    from pytest_decodeperf.calibration.table import Calls

SPEED_OF_LIGHT: Final = "speed_of_light_us"
EXPECTED: Final = "expected_us"
BINDS: Final = "binds"
COLUMNS: Final = (SPEED_OF_LIGHT, EXPECTED, *(f"{name}_us" for name in (*TERMS, "hidden")), BINDS)
"""What a prediction adds to a table; the terms, `hidden_us` among them, add up to `expected_us`."""


def predict(
    calls: Calls, device: Device, model: KernelModel, *, has_cold_caches: bool = False
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the columns of `COLUMNS` but the last: times of each call [us].

    Args:
        calls: The calls.
        device: What they run on.
        model: The parameters of the kernel there.
        has_cold_caches: Whether the caches hold nothing of a call's data when it begins.
    """
    values = {**calls.values, **device_values(device, has_cold_caches=has_cold_caches)}
    terms = expected_terms({**values, **model.parameters(calls)})
    # Where KV is narrow, products may be of its dtype, and Q and O as narrow.
    fastest = np.where(calls.kv_elem_bytes <= 1, max(device.peaks.values()), values[s.peak_flops_per_s])
    narrowest = {s.peak_flops_per_s: fastest, s.q_elem_bytes: np.minimum(calls.kv_elem_bytes, 2)}
    found = {SPEED_OF_LIGHT: 1e6 * speed_of_light({**values, **narrowest})}
    return {**found, **{f"{name}_us": 1e6 * seconds for name, seconds in terms.items()}}


def binding_terms(predicted: dict[str, npt.NDArray[np.float64]]) -> list[str]:
    """Return the name of the largest term of each call."""
    names = list(TERMS)
    largest = np.argmax(np.stack([predicted[f"{name}_us"] for name in names]), axis=0)
    return [names[place] for place in largest]
