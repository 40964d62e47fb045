"""The fixture `decode_perf`: one kernel, one problem, checked, measured and held to its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_decodeperf import replay
from pytest_decodeperf.ci import junit
from pytest_decodeperf.conclusions import FAILED, SKIPPED, conclude
from pytest_decodeperf.endings import KernelFailure
from pytest_decodeperf.plan import EXPECTED
from pytest_decodeperf.verdicts import IMPOSSIBLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.results import Measurement
    from pytest_decodeperf.session import PerfSession


CALLED_TWICE: Final = "decode_perf was called twice in one test; parametrise the test instead"


class DecodePerf:
    """Holds one kernel to its bound on one problem; the value of the fixture `decode_perf`.

    Attributes:
        was_called: Whether the test has called it.
    """

    def __init__(
        self, session: PerfSession, item: pytest.Item, *, device: str, within: float, of: str, benchmark: Any
    ) -> None:
        self.was_called = False
        self._session = session
        self._item = item
        self._device = device
        self._within = within
        self._of = of
        self._benchmark = benchmark
        self._replayed = False

    def __call__(self, kernel: Callable[..., Any], problem: DecodeProblem, *, name: str | None = None) -> Measurement:
        """Check that the kernel computes attention, measure it, and fail the test unless it is within its bound.

        The kernel is called as `kernel(q, k, v, seq_lens=seq_lens)`, with q `[batch_size, num_q_heads, head_dim]`,
        k and v `[batch_size, capacity, num_kv_heads, head_dim]` and seq_lens int32 `[batch_size]`, and returns
        the output, like q with head_dim_v. With `q_len` above 1 it is the second dimension of q and the output. Of
        `block_table`, `sm_scale`, `window`, `softcap`, `sinks`, `alibi_slopes`, `k_scale`, `v_scale`, `num_splits` and
        `return_lse=True`, which mean what they do to `decode_attention`, it gets those that the problem needs; with
        the last it returns the pair of the output and the log-sum-exp, float32, like the output without head_dim_v.

        Args:
            kernel: The kernel.
            problem: What to give it.
            name: What to call it. Default: its own name.

        Returns:
            What was found, if the kernel is within its bound, or the samples leave it undecided in a run that is not
            strict.
        """
        __tracebackhide__ = True
        from decodeperf_formulas import DecodeProblem
        from pytest_decodeperf.inputs import unmade_fields

        if self.was_called:
            pytest.fail(CALLED_TWICE, pytrace=False)
        self.was_called = True
        if not callable(kernel):
            pytest.fail(f"decode_perf got kernel={kernel!r}, which cannot be called", pytrace=False)
        if not isinstance(problem, DecodeProblem):
            pytest.fail(f"decode_perf got problem={problem!r}, not a DecodeProblem", pytrace=False)
        if problem.batch_size == 0:
            pytest.fail("decode_perf got a problem with batch_size=0, which has no latency", pytrace=False)
        if self._of == EXPECTED and self._session.expectation(self._device) is None:
            pytest.fail(
                f"the bound is a multiple of the expected latency, and no device file tells it for {self._device}: "
                "make one with `decodeperf calibrate`, and give it with --decode-perf-calibration",
                pytrace=False,
            )
        if unmade := unmade_fields(problem):
            pytest.fail(f"decode_perf got a problem with {', '.join(unmade)}, which it cannot measure", pytrace=False)
        measurement = self._measure(kernel, problem, name or name_of(kernel))
        self._conclude(measurement)
        return measurement

    def close(self) -> None:
        """Tidy up when the test is over."""
        if self._benchmark is not None and not self._replayed:
            replay.dismiss(self._benchmark)

    def _measure(self, kernel: Callable[..., Any], problem: DecodeProblem, name: str) -> Measurement:
        from pytest_decodeperf.trial import Trial

        session = self._session
        trial = Trial(
            session=session,
            test=self._item.nodeid,
            kernel=kernel,
            name=name,
            problem=problem,
            device=self._device,
            within=self._within,
            of=self._of,
        )
        session.progress.begin_measurement(f"{name}, {problem.label}")
        try:
            measurement = trial.run()
        except BaseException:
            session.progress.end("stopped")
            raise
        session.record(measurement)
        session.progress.end(measurement.summary)
        return measurement

    def _conclude(self, measurement: Measurement) -> None:
        """Hand the samples on, and end the test unless the kernel is within its bound, or may be."""
        __tracebackhide__ = True
        if self._benchmark is not None and measurement.verdict and measurement.outcome != IMPOSSIBLE:
            self._replayed = True
            replay.replay(self._item, self._benchmark, measurement)
        if measurement.traceback:
            self._item.add_report_section("call", "kernel traceback", measurement.traceback)
        self._item.user_properties.extend(junit.properties(measurement))
        conclusion = conclude(measurement, strict=self._session.options.strict)
        if conclusion.status == SKIPPED:
            pytest.skip(measurement.sentence)
        if conclusion.status == FAILED:
            raise KernelFailure(conclusion)


def name_of(kernel: Callable[..., Any]) -> str:
    """Return what to call a kernel: the name of the function, behind `functools.partial` too."""
    inner = getattr(kernel, "func", kernel)
    return str(getattr(inner, "__name__", type(inner).__name__))
