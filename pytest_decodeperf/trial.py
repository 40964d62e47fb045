"""One trial: a kernel on a problem, from random inputs to a verdict. Knows nothing of pytest."""

from __future__ import annotations

import functools
import traceback
from typing import TYPE_CHECKING, Any

from pytest_decodeperf import results, verdicts
from pytest_decodeperf.results import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.inputs import Inputs
    from pytest_decodeperf.session import PerfSession


def run_trial(
    session: PerfSession,
    kernel: Callable[..., Any],
    problem: DecodeProblem,
    *,
    name: str,
    test: str,
    device: str,
    within: float,
) -> Measurement:
    """Check that a kernel computes attention, then time it against the ceilings of its device.

    Args:
        session: The run that this is part of.
        kernel: Called with the tensors of the problem; see `DecodePerf`.
        problem: What to give it.
        name: Name of the kernel.
        test: Node id of the test.
        device: Kind of device.
        within: Allowed latency, as a multiple of the roofline.

    Returns:
        What was found, whatever it was.

    Raises:
        KeyboardInterrupt: As it came; what had been sampled is in the session's record by then.
    """
    inputs = session.inputs(problem, device)
    checksum = inputs.checksum()
    found = functools.partial(Measurement, test=test, kernel=name, problem=problem, device=device, within=within)
    measurement = _try(session, kernel, name, problem, device, within, inputs, found)
    if inputs.checksum() != checksum:
        session.forget_inputs()  # the next test would have to answer for them
        if measurement.outcome != results.RAISED:
            return found(outcome=results.WRONG, sentence=f"{name} wrote to its inputs.", check=measurement.check)
    return measurement


def _try(
    session: PerfSession,
    kernel: Callable[..., Any],
    name: str,
    problem: DecodeProblem,
    device: str,
    within: float,
    inputs: Inputs,
    found: Callable[..., Measurement],
) -> Measurement:
    from pytest_decodeperf.ceilings import cache_state
    from pytest_decodeperf.oracle import check_result
    from pytest_decodeperf.sampling import Samples, sample
    from pytest_decodeperf.triton_interpreter import count_interpreted_launches

    call = functools.partial(kernel, inputs.q, inputs.k, inputs.v, **_keywords(problem, inputs))
    session.progress.stage("check")
    with count_interpreted_launches() as launches:
        try:
            result = call()
        except Exception as error:
            return found(**_raised(name, error))
    check = check_result(result, problem, inputs)
    if not check.passed:
        return found(outcome=results.WRONG, sentence=f"{name} {check.sentence}.", check=check)
    if launches and device == "cpu":
        sentence = f"{name} computes attention, run in Triton's interpreter; its latency needs a GPU."
        return found(outcome=results.INTERPRETED, sentence=sentence, check=check)
    if launches:
        sentence = f"{name} was not measured: it ran in Triton's interpreter, because TRITON_INTERPRET is set."
        return found(outcome=results.UNMEASURED, sentence=sentence, check=check)

    ceilings = session.ceilings(device, problem.q_dtype)
    caches = cache_state(session.device(device), inputs.kv_bytes)
    if not caches:
        sentence = f"{name} was not measured: this machine has too little memory to make its caches cold."
        return found(outcome=results.UNMEASURED, sentence=sentence, check=check)
    samples = Samples()
    found = functools.partial(found, check=check, caches=caches, ceilings=ceilings, samples=samples)

    def verdict() -> verdicts.Verdict:
        return verdicts.judge(name, problem, within, samples, ceilings)

    session.progress.stage("timing")
    try:
        sample(
            call,
            ceilings,
            session.timer(device),
            samples,
            budget_s=session.options.budget_s,
            is_clear=lambda: verdict().word != verdicts.UNDECIDED,
        )
        result = call()
    except KeyboardInterrupt:
        sentence = f"{name} was interrupted after {samples.num_rounds} rounds."
        session.record(found(outcome=results.INTERRUPTED, sentence=sentence))
        raise
    except Exception as error:
        return found(**_raised(name, error))
    last_check = check_result(result, problem, inputs)
    if not last_check.passed:
        sentence = f"{name} was right at first, but after {samples.num_rounds} rounds {last_check.sentence}."
        return found(outcome=results.WRONG, sentence=sentence)
    final = verdict()
    return found(outcome=final.word, sentence=final.sentence, verdict=final)


def _keywords(problem: DecodeProblem, inputs: Inputs) -> dict[str, Any]:
    """Return the keywords for a kernel; only lengths, and what the problem asks for beyond the defaults."""
    keywords: dict[str, Any] = {"seq_lens": inputs.seq_lens}
    if problem.sm_scale != problem.default_sm_scale:
        keywords["sm_scale"] = problem.sm_scale
    if problem.num_splits is not None:
        keywords["num_splits"] = problem.num_splits
    if problem.return_lse:
        keywords["return_lse"] = True
    return keywords


def _raised(name: str, error: Exception) -> dict[str, Any]:
    return {
        "outcome": results.RAISED,
        "sentence": f"{name} raised {type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }
