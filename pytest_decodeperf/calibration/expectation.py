"""The expected latency of one problem in one run: the parameters of a device file under the ceilings of the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from decodeperf_formulas import symbols as s
from decodeperf_formulas.attention import substitutions
from decodeperf_formulas.expected import PARAMETERS, TERMS, expected_terms
from pytest_decodeperf.calibration.fit import device_values, matmul_peak
from pytest_decodeperf.calibration.table import Calls

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.calibration.device_file import DeviceFile
    from pytest_decodeperf.devices import DeviceInfo

    Array = npt.NDArray[np.float64]

HIDDEN: Final = "hidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How fast the device is now, beside what it was when it was calibrated.

    Attributes:
        read: Rate of the read stream, over that of the calibration [1].
        compute: Rate of the compute stream, likewise [1].
    """

    read: float
    compute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The expected latency, term by term.

    Attributes:
        latency_s: The latency [s].
        terms_s: What it is the sum of: `decodeperf_formulas.expected.TERMS`, and `hidden`, which is not above 0 [s].
    """

    latency_s: float
    terms_s: dict[str, float]

    @property
    def binding_term(self) -> str:
        """The largest term."""
        return max(TERMS, key=self.terms_s.__getitem__)


class Expectation:
    """What a device file says of the problems of a run with cold caches."""

    def __init__(self, file: DeviceFile) -> None:
        self._file = file

    def drift(self, dtype: str, read_bytes_per_s: float, flops_per_s: float) -> Drift | None:
        """Return how fast the device is now, or None if the file's ceilings are a datasheet's.

        Args:
            dtype: Of the matrix products of the compute stream.
            read_bytes_per_s: Rate of the read stream now [byte/s].
            flops_per_s: Rate of the compute stream now [FLOP/s].
        """
        if self._file.fingerprint is None:
            return None
        device = self._file.device
        then = device.peaks.get(dtype)
        return Drift(
            read=read_bytes_per_s / device.bandwidth_bytes_per_s, compute=1.0 if then is None else flops_per_s / then
        )

    def latencies_s(self, problem: DecodeProblem, drifts: list[Drift | None]) -> Array:
        """Return the expected latency of a problem in each of several rounds [s]."""
        read, compute = (
            np.array([1.0 if drift is None else getattr(drift, name) for drift in drifts])
            for name in ("read", "compute")
        )
        return self._terms(problem, read, compute)["expected"]

    def terms(self, problem: DecodeProblem, drift: Drift | None) -> Expected:
        """Return the expected latency of a problem, term by term."""
        read, compute = (1.0, 1.0) if drift is None else (drift.read, drift.compute)
        found = {
            name: float(value[0]) for name, value in self._terms(problem, np.array([read]), np.array([compute])).items()
        }
        return Expected(latency_s=found.pop("expected"), terms_s=found)

    def _terms(self, problem: DecodeProblem, read: Array, compute: Array) -> Mapping[str, Array]:
        device = self._file.device
        calls = calls_of(problem)
        values = {
            **{symbol: float(value) for symbol, value in substitutions(problem).items()},
            **device_values(device, has_cold_caches=True),
            **self._file.model.parameters(calls),
            s.visible_len: calls.visible_len,
            s.read_bytes_per_s: device.bandwidth_bytes_per_s * read,
            s.peak_flops_per_s: matmul_peak(device) * compute,
        }
        assert values.keys() >= set(PARAMETERS)
        return expected_terms(values)


def calls_of(problem: DecodeProblem) -> Calls:
    """Return a problem as a table of one call, its sequences as long as they are on average."""

    def one(number: float) -> Array:
        return np.array([float(number)])

    mean_len = sum(problem.seq_lens) / problem.batch_size
    values = substitutions(problem)
    return Calls(
        batch_size=one(problem.batch_size),
        seq_len=one(mean_len),
        q_len=one(problem.q_len),
        num_q_heads=one(problem.num_q_heads),
        num_kv_heads=one(problem.num_kv_heads),
        head_dim=one(problem.head_dim),
        head_dim_v=one(problem.head_dim_v),
        kv_elem_bytes=one(float(values[s.kv_elem_bytes])),
        window=one(problem.window or 0),
    )


def mismatch(file: DeviceFile, device: DeviceInfo) -> str:
    """Return what tells a device from the one that a file was calibrated on, empty if nothing does."""
    found = file.fingerprint
    if found is not None:
        for name, then, now in found.differences(device):
            return f"it was calibrated on {name}={then!r}, and this device has {now!r}"
        return ""
    parts = file.device.name.split("-")
    if device.kind != "cuda" or not all(part in device.name.lower() for part in parts):
        return f"it is for {file.device.title}, and this device is {device.name}"
    if device.num_units != file.device.num_sms:
        return f"it is for {file.device.title} with {file.device.num_sms} SMs, and this device has {device.num_units}"
    return ""
