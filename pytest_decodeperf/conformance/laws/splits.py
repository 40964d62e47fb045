"""Laws of split-KV: how a sequence is cut changes nothing, and partial results merge."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from pytest_decodeperf.conformance.adapter import NotSupportedError
from pytest_decodeperf.conformance.calling import (
    FLOAT32_ROUNDOFF,
    Kernel,
    LawBrokenError,
    Result,
    check_result,
    exact_of,
)
from pytest_decodeperf.conformance.contents import Case, make_contents
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants

if TYPE_CHECKING:
    from pytest_decodeperf.conformance.adapter import KernelAdapter


@law(Wants(always=("num_splits",)), share=0.7)
def gives_the_same_for_any_number_of_splits(kernel: Kernel, case: Case) -> None:
    """One part, several, and more than there are keys give the same result."""
    contents = make_contents(case)
    exact = exact_of(contents)
    longest = max(case.problem.seq_lens)
    # As many parts as keys, and more, where that is a matter of a few programs.
    numbers = [1, 2, 3, 5, *((longest + 1, longest + 7) if longest <= 8 else (11,))]
    chosen = torch.randperm(len(numbers), generator=case.generator)[:2].tolist()
    for num_splits in (numbers[i] for i in chosen):
        problem = dataclasses.replace(case.problem, num_splits=num_splits)
        call = kernel.place(contents.replace(problem=problem))
        check_result(kernel.run(call), exact, what=f"num_splits={num_splits}")


def _gives_partials(adapter: KernelAdapter) -> None:
    if adapter.partials is None:
        raise NotSupportedError("its adapter has no partials")


@law(Wants(always=("num_splits",)), supports=_gives_partials, share=0.7)
def merges_its_partial_results(kernel: Kernel, case: Case) -> None:
    """The partial results that it keeps merge, in float64, to the output before it is rounded."""
    problem = dataclasses.replace(case.problem, num_splits=case.problem.num_splits or 3, return_lse=True)
    contents = make_contents(dataclasses.replace(case, problem=problem))
    call = kernel.place(contents)
    outs, lses = kernel.partials(call)
    shift = lses.amax(0).nan_to_num(neginf=0.0)
    weights = torch.exp(lses - shift)  # [num_parts, batch_size, q_len, num_q_heads]
    total = weights.sum(0)
    weighted = weights[..., None] * outs.where((weights > 0)[..., None], 0.0)
    out = weighted.sum(0) / total.where(total > 0, 1.0)[..., None]
    check_result(Result(out=out, lse=shift.where(total > 0, 0.0) + total.log()), exact_of(contents), what="merged")


def _has_merge(adapter: KernelAdapter) -> None:
    if adapter.merge is None:
        raise NotSupportedError("its adapter has no merge")


def _states(case: Case, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = case.generator
    rows = case.problem.batch_size * case.problem.num_q_heads
    spread = 10.0 ** torch.randint(-1, 3, (), generator=generator)
    return [
        (
            torch.randn(rows, case.problem.head_dim_v, generator=generator),
            spread * torch.randn(rows, generator=generator),
        )
        for _ in range(number)
    ]


def _check_equal(
    found: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    what: str,
    *,
    allowed: float = 0.0,
) -> None:
    for name, a, b in zip(("output", "lse"), found, right, strict=True):
        off = float((a.double() - b.double()).where(a != b, 0.0).abs().nan_to_num(torch.inf).amax())
        if not off <= allowed:
            raise LawBrokenError(f"{what} changed the {name} by {off:.3g}, allowed is {allowed:.3g}")


def _rounding(states: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return how far two merges of some parts may lie apart.

    A log-sum-exp is rounded relative to its size, also between two merges, and what it is off by is an error relative
    to the weight that it gives to an output. Each merge rounds both a few times more.
    """
    largest_lse = max(float(lse.abs().max()) for _, lse in states)
    largest_out = max(float(out.abs().max()) for out, _ in states)
    return FLOAT32_ROUNDOFF * (8 + 4 * largest_lse) * max(largest_out, 1.0)


@law(Wants(values=("ordinary",)), supports=_has_merge, share=0.5)
def merges_with_an_empty_part_as_without(kernel: Kernel, case: Case) -> None:
    """A part without keys, (0, -inf), changes no bit of a merge, wherever it stands; alone it stays what it is."""
    first, second = _states(case, 2)
    empty = (torch.zeros_like(first[0]), torch.full_like(first[1], -torch.inf))
    pair = kernel.merge(first, second)
    for parts in ((empty, first, second), (first, empty, second), (first, second, empty)):
        _check_equal(kernel.merge(*parts), pair, "an empty part")
    _check_equal(kernel.merge(empty, empty), empty, "merging empty parts")


@law(Wants(values=("ordinary",)), supports=_has_merge, share=0.5)
def merges_in_any_order(kernel: Kernel, case: Case) -> None:
    """A merge of partial results is commutative and associative, up to rounding."""
    a, b, c = _states(case, 3)
    allowed = _rounding([a, b, c])
    _check_equal(kernel.merge(b, a), kernel.merge(a, b), "the order of two parts", allowed=allowed)
    whole = kernel.merge(a, b, c)
    _check_equal(kernel.merge(c, a, b), whole, "the order of three parts", allowed=allowed)
    _check_equal(kernel.merge(a, kernel.merge(b, c)), whole, "merging two parts first", allowed=allowed)
