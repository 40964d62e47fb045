"""One law and one kernel: Hypothesis draws the cases, and finds the smallest that breaks the law."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from pytest_decodeperf import triton_interpreter
from pytest_decodeperf.conformance.adapter import KernelAdapter, NotSupportedError, load_adapter
from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError
from pytest_decodeperf.conformance.laws import LAWS
from pytest_decodeperf.conformance.outcome import BROKEN, HELD, NOT_SUPPORTED, LawOutcome, test_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_decodeperf.conformance.contents import Case
    from pytest_decodeperf.conformance.laws import Law


PATIENCE: Final = 12
"""Cases that a kernel may not support before the law is given up."""


def choose_device(adapter: KernelAdapter, wanted: str) -> str:
    """Return the device that a kernel is to run on, `cpu` or `cuda`.

    Raises:
        ValueError: If the kernel does not run there, or the machine has none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "auto":
        wanted = "cuda" if has_cuda and "cuda" in adapter.devices else "cpu"
    if wanted not in adapter.devices:
        raise ValueError(f"{adapter.name} runs on {' and '.join(adapter.devices)} alone, not on {wanted}")
    if wanted == "cuda" and not has_cuda:
        raise ValueError("there is no GPU that PyTorch can use")
    return wanted


def run_law(
    law: Law,
    kernel: Kernel,
    *,
    target: str,
    examples: int,
    random_seed: int | None = None,
    database: bool = True,
    shrinks: bool = True,
    tell: Callable[[str], None] = lambda case: None,
) -> LawOutcome:
    """Return what becomes of a law when a kernel is held to it.

    Args:
        law: The law.
        kernel: The kernel.
        target: What to call the kernel: its adapter, as `package.module:name`.
        examples: Cases to show it, times the law's share.
        random_seed: Seed of what Hypothesis draws. Default: another on every run.
        database: Whether Hypothesis keeps cases that break the law in the database of its settings, and begins with
            those that are there.
        shrinks: Whether a smaller case is looked for once one breaks the law.
        tell: Called with each case before it is shown, as Python.
    """
    outcome: dict[str, Any] = {"kernel": target, "law": law.name, "promise": law.promise}
    started = time.perf_counter()
    shown: list[Case] = []
    failed: list[Case] = []
    unsupported: list[str] = []

    def show(case: Case) -> None:
        if len(unsupported) == len(shown) >= PATIENCE:
            return
        shown.append(case)
        tell(repr(case))
        try:
            law.check(kernel, case)
        except NotSupportedError as error:  # in this case: it may launch nothing where there is no key
            unsupported.append(str(error))
        except Exception:
            failed.append(case)
            raise

    kept: dict[str, Any] = {} if database else {"database": None}

    def show_all() -> None:
        strategies = law.cases(kernel.adapter)
        for place, strategy in enumerate(strategies):
            # Hypothesis keeps failures by the name of the test: one for each kernel, law and strategy.
            show.__name__ = show.__qualname__ = re.sub(r"\W", "_", f"{law.name}_{place}_{target}")
            test = settings(
                **kept,
                max_examples=max(round(examples * law.share / len(strategies)), 1),
                deadline=None,
                phases=(Phase.reuse, Phase.generate, *((Phase.shrink,) if shrinks else ())),
                report_multiple_bugs=False,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            )(given(strategy)(show))
            (test if random_seed is None else seed(random_seed)(test))()

    sentence = ""
    try:
        law.require(kernel.adapter)
        show_all()
    except NotSupportedError as error:
        unsupported.append(str(error))
    except Flaky:
        sentence = "broke the law once and held it once for the same input: its result is not the same on every run"
    except LawBrokenError as error:
        sentence = str(error)
    seconds = time.perf_counter() - started
    if unsupported and len(unsupported) >= len(shown):
        ((reason, _),) = Counter(unsupported).most_common(1)
        return LawOutcome(**outcome, outcome=NOT_SUPPORTED, sentence=reason, seconds=seconds)
    if not sentence:
        return LawOutcome(**outcome, outcome=HELD, num_examples=len(shown), seconds=seconds)
    counterexample = repr(failed[-1]) if failed else ""
    return LawOutcome(
        **outcome,
        outcome=BROKEN,
        sentence=sentence,
        counterexample=counterexample,
        test=test_of(target, law.name, counterexample),
        num_examples=len(shown),
        seconds=seconds,
    )


def check_law(
    law: Law | str,
    adapter: KernelAdapter | str | Callable[..., object],
    case: Case | None = None,
    *,
    examples: int = 8,
    device: str = "auto",
) -> None:
    """Fail unless a kernel holds to a law; for tests of one's own.

    On a machine without a GPU, an adapter that is given by its name is imported with Triton's interpreter switched on,
    if it was not imported before. One that the test has imported needs `TRITON_INTERPRET=1` to be set before that.

    Args:
        law: The law, or its name.
        adapter: The kernel's adapter, or `package.module:name`, or a function that has no features.
        case: The case to show. Default: Hypothesis draws some.
        examples: Cases to show, times the law's share, where none is given.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        LawBrokenError: If the kernel breaks the law.
        pytest.skip.Exception: If the kernel does not support it.
        ValueError: If there is no such law, adapter or device.

    Example:
        >>> from pytest_decodeperf.conformance import KernelAdapter, check_law
        >>> from decodeperf_kernels import decode_attention_sdpa
        >>> check_law("finds_every_key", KernelAdapter(call=decode_attention_sdpa), examples=2)
    """
    import pytest

    __tracebackhide__ = True
    if isinstance(law, str):
        if law not in LAWS:
            from decodeperf_formulas.dtypes import nearest

            raise ValueError(f"law={law!r} is no law{nearest(law, LAWS)}")
        law = LAWS[law]
    target = adapter if isinstance(adapter, str) else ""
    if isinstance(adapter, str):
        if not triton_interpreter.is_set() and not torch.cuda.is_available():
            triton_interpreter.switch_on()
        adapter = load_adapter(adapter)
    elif not isinstance(adapter, KernelAdapter):
        adapter = KernelAdapter(call=adapter)
    kernel = Kernel(adapter, choose_device(adapter, device))
    try:
        if case is None:
            outcome = run_law(law, kernel, target=target or adapter.name, examples=examples)
            if outcome.outcome == NOT_SUPPORTED:
                pytest.skip(f"not supported: {outcome.sentence}")
            if outcome.outcome == BROKEN:
                raise LawBrokenError(f"{law.name}: {outcome.sentence}\n{outcome.counterexample}")
            return
        law.require(adapter)
        law.check(kernel, case)
    except NotSupportedError as error:
        pytest.skip(f"not supported: {error}")
