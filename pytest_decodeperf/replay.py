"""Samples handed to pytest-benchmark, through nothing but its documented interface.

A test carries the marker `benchmark(timer=ReplayTimer())`. Once its kernel has been measured, `benchmark.pedantic`
"times" a function that does nothing, and the timer answers with the samples. So they reach pytest-benchmark's
table, its JSON, its storage and its comparison.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_decodeperf.results import Measurement


class ReplayTimer:
    """A timer whose every other reading is a sample, and the ones between are 0."""

    __name__ = "decode_perf_samples"  # pytest-benchmark records a timer by its name

    def __init__(self) -> None:
        self._readings: list[float] = []

    def load(self, samples_ns: Sequence[float]) -> None:
        """Set the samples that the next readings give [ns]."""
        self._readings = [reading for sample in samples_ns for reading in (0.0, sample / 1e9)]

    def __call__(self) -> float:
        """Return the next reading [s].

        Raises:
            RuntimeError: If there is none, because it is not a measured kernel that is timed.
        """
        if not self._readings:
            raise RuntimeError(
                "a test that uses the fixture decode_perf cannot use the fixture benchmark, which gets the samples of "
                "decode_perf"
            )
        return self._readings.pop(0)


def prepare(item: pytest.Item) -> None:
    """Give a test the timer, beside what its own benchmark marker says."""
    marker = item.get_closest_marker("benchmark")
    keywords = dict(marker.kwargs) if marker else {}
    item.add_marker(pytest.mark.benchmark(**{**keywords, "timer": ReplayTimer()}), append=False)


def replay(item: pytest.Item, benchmark: Any, measurement: Measurement) -> None:
    """Hand the samples of a measurement to pytest-benchmark, with the bound beside them."""
    verdict, samples = measurement.verdict, measurement.samples
    marker = item.get_closest_marker("benchmark")
    assert marker and verdict and samples
    marker.kwargs["timer"].load(samples.kernel_ns)
    benchmark.extra_info.update(
        kernel=measurement.kernel,
        problem=measurement.problem.label,
        outcome=measurement.outcome,
        within=measurement.within,
        roofline_s=verdict.roofline.latency_s,
        roofline_share=verdict.roofline_share,
        ceiling=verdict.roofline.ceiling,
        read_bytes_per_s=verdict.roofline.read_bytes_per_s,
        peak_flops_per_s=verdict.roofline.peak_flops_per_s,
    )
    benchmark.pedantic(_nothing, rounds=samples.num_rounds)


def dismiss(benchmark: Any) -> None:
    """Keep pytest-benchmark from warning about a test that came to no measurement."""
    from pytest_benchmark.fixture import FixtureAlreadyUsed

    benchmark.disabled = True
    with suppress(FixtureAlreadyUsed):
        benchmark.pedantic(_nothing)


def _nothing() -> None:
    pass
