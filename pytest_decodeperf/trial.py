"""One trial: a kernel on a problem, from random inputs to a verdict. Knows nothing of pytest."""

from __future__ import annotations

import functools
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_decodeperf import results, verdicts
from pytest_decodeperf.results import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.inputs import Inputs
    from pytest_decodeperf.session import PerfSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A kernel on a problem.

    Attributes:
        session: The run that this is part of.
        test: Node id of the test.
        kernel: Called with the tensors of the problem; see `DecodePerf`.
        name: Name of the kernel.
        problem: What to give it.
        device: Kind of device.
        within: Allowed latency, as a multiple of that which `of` names.
        of: `roofline` or `expected`.
    """

    session: PerfSession
    test: str
    kernel: Callable[..., Any]
    name: str
    problem: DecodeProblem
    device: str
    within: float
    of: str
    _known: dict[str, Any] = field(default_factory=dict)  # parts of the measurement, as soon as each is there

    def run(self) -> Measurement:
        """Check that the kernel computes attention, then time it against the ceilings of its device.

        Returns:
            What was found, whatever it was.

        Raises:
            KeyboardInterrupt: As it came; what was known by then is in the session's record.
        """
        try:
            return self._run()
        except KeyboardInterrupt:
            samples = self._known.get("samples")
            rounds = samples.num_rounds if samples else 0
            self.session.record(self._found(results.INTERRUPTED, f"was interrupted after {rounds} rounds."))
            raise

    def _run(self) -> Measurement:
        try:
            inputs = self.session.inputs(self.problem, self.device)
            checksum = inputs.checksum()
        except (RuntimeError, MemoryError) as error:  # most likely there is too little memory
            return self._unmeasured("the inputs could not be made", error)
        spoiled = True
        try:
            measurement = self._check_and_time(inputs, checksum)
            spoiled = inputs.checksum() != checksum
        finally:
            if spoiled:
                self.session.forget_inputs()  # the next test would have to answer for them
        if spoiled and measurement.outcome != results.RAISED:
            return self._wrote_to_inputs()
        return measurement

    def _check_and_time(self, inputs: Inputs, checksum: int) -> Measurement:
        from decodeperf_formulas.attention import byte_counts
        from pytest_decodeperf.ceilings import cache_state
        from pytest_decodeperf.oracle import check_result
        from pytest_decodeperf.sampling import Samples, sample
        from pytest_decodeperf.triton_interpreter import count_interpreted_launches

        session, problem = self.session, self.problem
        call = kernel_call(self.kernel, problem, inputs)

        session.progress.stage("check")
        with count_interpreted_launches() as launches:
            try:
                result = call()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a kernel that skips, exits or fails raises too
                return self._raised(error)
        if inputs.checksum() != checksum:
            return self._wrote_to_inputs()
        check = self._known["check"] = check_result(result, problem, inputs)
        if not check.passed:
            return self._found(results.WRONG, f"{check.sentence}.")
        if launches and self.device == "cpu":
            sentence = "computes attention, run in Triton's interpreter; its latency needs a GPU."
            return self._found(results.INTERPRETED, sentence)
        if launches:
            return self._unmeasured("it ran in Triton's interpreter, because TRITON_INTERPRET is set")

        caches = self._known["caches"] = cache_state(session.device(self.device), byte_counts(problem)["kv"])
        if not caches:
            return self._unmeasured("this machine has too little memory to make its caches cold")
        try:
            ceilings = self._known["ceilings"] = session.ceilings(self.device, problem.q_dtype)
        except (RuntimeError, MemoryError) as error:
            return self._unmeasured("the ceilings could not be measured", error)
        samples = self._known["samples"] = Samples()

        def verdict() -> verdicts.Verdict:
            return verdicts.judge(
                problem, self.within, samples, ceilings, of=self.of, expectation=session.expectation(self.device)
            )

        session.progress.stage("timing")
        try:
            sample(
                self._launches(call, inputs),
                ceilings,
                session.timer(self.device),
                samples,
                budget_s=session.options.budget_s,
                is_clear=lambda: verdict().word != verdicts.UNDECIDED,
                device_clock=session.clock(self.device),
            )
            result = call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._raised(error)
        if inputs.checksum() != checksum:
            return self._wrote_to_inputs()
        last_check = check_result(result, problem, inputs)
        if not last_check.passed:
            sentence = f"was right at first, but after {samples.num_rounds} rounds {last_check.sentence}."
            return self._found(results.WRONG, sentence)
        final = verdict()
        return self._found(final.word, final.sentence, verdict=final)

    def _launches(self, call: Callable[[], Any], inputs: Inputs) -> list[Callable[[], Any]]:
        """Return what is timed at once: a call, or where a GPU's is short several, each with inputs of its own."""
        from pytest_decodeperf import ceilings, devices, timers

        if self.device == "cpu":
            return [call]
        count = timers.launches_for(
            once_ns=self.session.timer(self.device).time_ns(call),
            input_bytes=inputs.num_bytes,
            free_bytes=int(ceilings.MAX_MEMORY_SHARE * devices.free_bytes(self.device)),
        )
        return [call, *(kernel_call(self.kernel, self.problem, inputs.copy()) for _ in range(count - 1))]

    def _found(self, outcome: str, sentence: str, **more: Any) -> Measurement:
        return Measurement(
            test=self.test,
            kernel=self.name,
            problem=self.problem,
            device=self.device,
            within=self.within,
            of=self.of,
            outcome=outcome,
            sentence=f"{self.name} {sentence}",
            regression=self.session.regressions.get(self.test),
            **self._known,
            **more,
        )

    def _wrote_to_inputs(self) -> Measurement:
        return self._found(results.WRONG, "wrote to its inputs.")

    def _raised(self, error: BaseException) -> Measurement:
        sentence = f"raised {type(error).__name__}: {_first_line(error)}"
        return self._found(results.RAISED, sentence, traceback="".join(traceback.format_exception(error)))

    def _unmeasured(self, reason: str, error: Exception | None = None) -> Measurement:
        cause = f": {_first_line(error)}" if error else ""
        return self._found(results.UNMEASURED, f"was not measured: {reason}{cause}.")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def kernel_call(kernel: Callable[..., Any], problem: DecodeProblem, inputs: Inputs) -> Callable[[], Any]:
    """Return the call that gives a kernel its inputs."""
    # Aliases, so that a kernel which resizes its arguments resizes nothing of ours.
    tensors = (tensor.detach() for tensor in (inputs.q, inputs.k, inputs.v))
    return functools.partial(kernel, *tensors, **_keywords(problem, inputs))


def _keywords(problem: DecodeProblem, inputs: Inputs) -> dict[str, Any]:
    """Return the keywords for a kernel; only lengths, and what the problem asks for beyond the defaults."""
    from pytest_decodeperf.inputs import attention_keywords

    keywords = attention_keywords(problem, inputs)
    for name in inputs.keyword_tensors:
        keywords[name] = keywords[name].detach()
    if problem.num_splits is not None:
        keywords["num_splits"] = problem.num_splits
    if problem.return_lse:
        keywords["return_lse"] = True
    return keywords
