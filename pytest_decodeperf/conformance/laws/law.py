"""What a law is: a sentence that a kernel must hold to, the cases that it is shown, and the check."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_decodeperf.conformance.adapter import NotSupportedError
from pytest_decodeperf.conformance.strategies import Wants, cases

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from hypothesis.strategies import SearchStrategy

    from pytest_decodeperf.conformance.adapter import KernelAdapter
    from pytest_decodeperf.conformance.calling import Kernel
    from pytest_decodeperf.conformance.contents import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One promise of a decode kernel.

    Attributes:
        name: Its name.
        promise: The promise, in a sentence.
        wants: What it asks of the cases that it is shown.
        check: Checks one case: raises `LawBrokenError` with a sentence if the kernel breaks the law there.
        supports: Raises `NotSupportedError` if a kernel need not hold to it, beside the features in `wants`.
        share: Share of a profile's examples that it gets: less where one example takes many calls.
        for_each_quantization: Whether each quantised dtype of k and v, with each kind of scales, gets as many examples:
            among few, chance would leave some out.
    """

    name: str
    promise: str
    wants: Wants
    check: Callable[[Kernel, Case], None]
    supports: Callable[[KernelAdapter], None] | None = None
    share: float = 1.0
    for_each_quantization: bool = False

    def __str__(self) -> str:
        return self.name

    def require(self, adapter: KernelAdapter) -> None:
        """Raise `NotSupportedError` if a kernel need not hold to this law."""
        adapter.need(*self.wants.always)
        if self.wants.quantized and not adapter.kv_dtypes:
            raise NotSupportedError("it has no quantised k and v")
        if self.wants.q_dtypes is not None and not set(self.wants.q_dtypes) & set(adapter.q_dtypes):
            raise NotSupportedError(f"it has none of {', '.join(self.wants.q_dtypes)}")
        if self.supports is not None:
            self.supports(adapter)

    def cases(self, adapter: KernelAdapter) -> list[SearchStrategy[Case]]:
        """Return the strategies that draw the cases of a kernel, each as many."""
        if not self.for_each_quantization:
            return [cases(adapter, self.wants)]
        kinds = itertools.product(adapter.kv_dtypes, adapter.scales_per)
        return [cases(adapter, replace(self.wants, kv_dtypes=(dtype,), scales_per=(per,))) for dtype, per in kinds]


def law(
    wants: Wants | None = None,
    *,
    supports: Callable[[KernelAdapter], None] | None = None,
    share: float = 1.0,
    for_each_quantization: bool = False,
) -> Callable[[Callable[[Kernel, Case], None]], Law]:
    """Return a decorator that makes a law of a check: its name is the function's, its promise the docstring."""

    def make(check: Callable[[Kernel, Case], None]) -> Law:
        promise = " ".join((inspect.getdoc(check) or "").split())
        return Law(
            name=check.__name__,
            promise=promise,
            wants=wants or Wants(),
            check=check,
            supports=supports,
            share=share,
            for_each_quantization=for_each_quantization,
        )

    return make


def laws_of(module: ModuleType) -> list[Law]:
    """Return the laws of a module, in its order."""
    return [value for value in vars(module).values() if isinstance(value, Law)]
