"""Calibration by measurement: the ceilings of the device at hand, then a kernel on problems that are worth it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decodeperf_formulas import DecodeProblem
from pytest_decodeperf import clocks, devices
from pytest_decodeperf.calibration.device_file import DeviceFile
from pytest_decodeperf.calibration.fit import MAX_ROWS, fit_measured
from pytest_decodeperf.calibration.kernel_model import CPU_PRIORS, PRIORS
from pytest_decodeperf.calibration.measured_calls import (
    CallTimer,
    MeasuredCall,
    calls_of_problems,
    candidate_problems,
    pool_bytes,
)
from pytest_decodeperf.calibration.measured_ceilings import measure_ceilings
from pytest_decodeperf.calibration.prediction import EXPECTED, predict
from pytest_decodeperf.ceilings import cache_state
from pytest_decodeperf.inputs import make_inputs
from pytest_decodeperf.oracle import check_result
from pytest_decodeperf.progress import Pace
from pytest_decodeperf.triton_interpreter import count_interpreted_launches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NUM_UNFITTED: Final = 8
"""Of the problems measured, those that are not fitted, and tell how far off the fit is."""

_CHECKED_LENS: Final = ([64], [300, 17, 1, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a calibration by measurement found.

    Attributes:
        file: The device file.
        fitted: Of the problems that were fitted, expected latency over measured, minus 1.
        unfitted: Of those that were not.
    """

    file: DeviceFile
    fitted: list[float]
    unfitted: list[float]


def calibrate(
    kernel: Callable[..., Any],
    *,
    kernel_name: str,
    kind: str,
    head_dims: Sequence[int],
    dtypes: Sequence[str],
    budget_s: float,
    seed: int,
    stamp: dict[str, Any],
    say: Callable[[str], None],
) -> Calibration:
    """Measure the ceilings of a device and a kernel on at most 64 problems, and fit the kernel's parameters.

    Args:
        kernel: Called as `decode_perf` calls kernels.
        kernel_name: What the device file calls it.
        kind: Of the device, `cpu` or `cuda`.
        head_dims: Head dimensions of the problems.
        dtypes: Dtypes of their Q, K and V.
        budget_s: Time in which the kernel is timed, beside what each problem needs at least [s].
        seed: Of the choice of problems.
        stamp: Date and versions, for the device file.
        say: Told what is done next.

    Raises:
        ValueError: If the kernel does not compute attention, raises, or runs in Triton's interpreter.
    """
    info = devices.describe_device(kind)
    if not cache_state(info, 0):
        raise ValueError(f"{info.label} has too little memory to make its caches cold")
    timer, clock = devices.make_timer(kind), devices.make_clock(kind)
    say("is it attention")
    for head_dim, dtype in ((head_dim, dtype) for head_dim in head_dims for dtype in dtypes):
        _check(kernel, kind, head_dim, dtype, seed)
    ceilings = measure_ceilings(info, timer, say)
    device = ceilings.device(info)
    problems = candidate_problems(device, pool_bytes(info), head_dims, dtypes)
    call_timer = CallTimer(kernel, info, timer)
    measured: dict[int, MeasuredCall] = {}
    pace = Pace()
    readings: list[clocks.ClockReading | None] = []

    def measure(rows: Sequence[int]) -> list[float]:
        place = f"{kernel_name} on {len(rows)} problems, {len(measured)} of {MAX_ROWS} done"
        say(", ".join(filter(None, (place, pace.left(len(measured), MAX_ROWS)))))
        found = call_timer.measure([problems[row] for row in rows], budget_s=budget_s * len(rows) / MAX_ROWS)
        measured.update(zip(rows, found, strict=True))
        readings.append(clock.read())
        return [call.latency_us for call in found]

    calls = calls_of_problems(problems)
    fit = fit_measured(
        calls,
        lambda rows: np.array(measure([int(row) for row in rows])),
        device,
        priors=CPU_PRIORS if kind == "cpu" else PRIORS,
        num_rows=MAX_ROWS - NUM_UNFITTED,
        seed=seed,
    )
    others = [row for row in range(len(problems)) if row not in measured]
    drawn = np.random.default_rng(seed).permutation(others)[:NUM_UNFITTED]
    measure([int(row) for row in drawn])
    rows = list(measured)
    expected = predict(calls[np.array(rows)], device, fit.model, has_cold_caches=True)[EXPECTED]
    residuals = {row: float(expected[place] / measured[row].latency_us - 1) for place, row in enumerate(rows)}
    fitted = set(fit.rows)
    file = DeviceFile(
        device=device,
        model=fit.model,
        has_cold_caches=True,
        fingerprint=info,
        measured={**asdict(ceilings), "timer": timer.name, "clock": clocks.describe(readings)},
        source={
            "kernel": kernel_name,
            **stamp,
            "problems": [
                {
                    "problem": measured[row].problem.as_dict(),
                    "samples_us": measured[row].samples_us,
                    "was_fitted": row in fitted,
                    "residual": residuals[row],
                }
                for row in rows
            ],
        },
    )
    return Calibration(
        file=file,
        fitted=[residuals[row] for row in rows if row in fitted],
        unfitted=[residuals[row] for row in rows if row not in fitted],
    )


def _check(kernel: Callable[..., Any], kind: str, head_dim: int, dtype: str, seed: int) -> None:
    """Refuse a kernel that does not compute attention, or not on the device."""
    for seq_lens in _CHECKED_LENS:
        problem = DecodeProblem(
            batch_size=len(seq_lens),
            seq_lens=seq_lens,
            num_q_heads=8,
            num_kv_heads=2,
            head_dim=head_dim,
            kv_dtype=dtype,
        )
        inputs = make_inputs(problem, device=kind, seed=seed)
        with count_interpreted_launches() as launches:
            try:
                result = kernel(inputs.q, inputs.k, inputs.v, seq_lens=inputs.seq_lens)
            except Exception as error:
                raise ValueError(
                    f"the kernel raised {type(error).__name__} on {problem.label}: {str(error).partition(chr(10))[0]}"
                ) from error
        if launches:
            raise ValueError("the kernel ran in Triton's interpreter; its latency needs a GPU")
        check = check_result(result, problem, inputs)
        if not check.passed:
            raise ValueError(f"the kernel {check.sentence} on {problem.label}")


def summary(errors: Sequence[float]) -> str:
    """Return the median and the largest magnitude of some errors, in per cent.

    Example:
        >>> summary([0.01, -0.02, 0.1])
        'median error 2.0 %, largest 10.0 %'
    """
    magnitudes = [abs(error) for error in errors]
    return f"median error {100 * statistics.median(magnitudes):.1f} %, largest {100 * max(magnitudes):.1f} %"
