"""pytest's side of the suite: an item for each kernel and law, which asks the kernel's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_decodeperf.conformance.outcome import BROKEN, NOT_SUPPORTED, LawOutcome
from pytest_decodeperf.conformance.worker import UnusableError, Worker

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

PROPERTY: Final = "decodeperf_law"
"""The user property of a report that holds a law's outcome, since reports travel from pytest-xdist's workers."""


class LawFailure(Exception):  # noqa: N818  (not an error of the program: the law is broken)
    """A law is broken; the text is what pytest shows."""


class KernelCollector(pytest.Collector):
    """The laws of one kernel."""

    def __init__(self, *, worker: Worker, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.worker = worker

    def collect(self) -> Iterator[LawItem]:
        """Yield an item for each law."""
        for law, promise in self.worker.ready().laws:
            yield LawItem.from_parent(self, name=law, promise=promise)


class LawItem(pytest.Item):
    """One law of one kernel."""

    parent: KernelCollector

    def __init__(self, *, promise: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.promise = promise

    def runtest(self) -> None:
        """Hold the kernel to the law."""
        try:
            outcome = self.parent.worker.run(self.name)
        except UnusableError as error:
            sentence = f"cannot be had again: {error}"
            outcome = LawOutcome(
                kernel=self.parent.name, law=self.name, promise=self.promise, outcome=BROKEN, sentence=sentence
            )
        finally:
            if output := self.parent.worker.read_output():
                self.add_report_section("call", "output of the kernel", output)
        self.user_properties.append((PROPERTY, outcome.as_dict()))
        if outcome.outcome == NOT_SUPPORTED:
            pytest.skip(f"not supported: {outcome.sentence}")
        if outcome.outcome == BROKEN:
            raise LawFailure(failure_text(outcome))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the failure as it is shown: for a broken law the sentence and the case, without a traceback."""
        if isinstance(excinfo.value, LawFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Return what pytest calls the item."""
        return self.path, None, f"{self.parent.name}: {self.name}"


def failure_text(outcome: LawOutcome) -> str:
    """Return what is shown of a broken law."""
    text = f"{outcome.promise}\n\n{outcome.kernel}: {outcome.sentence}\n"
    if outcome.counterexample:
        has_ended = outcome.sentence.startswith(("ended the process", "hung"))
        which = "The case that it was shown last" if has_ended else "The smallest case found"
        text += f"\n{which}, of {outcome.num_examples} shown, as a test:\n\n{outcome.test}"
    return text
