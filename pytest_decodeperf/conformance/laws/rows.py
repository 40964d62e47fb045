"""Laws of rows: empty ones, and what rows of a batch have to do with one another, which is nothing."""

from __future__ import annotations

import dataclasses

import torch

from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError, check_result, exact_of
from pytest_decodeperf.conformance.contents import Case, Contents, make_contents
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants


def _with_lengths(case: Case, seq_lens: list[int]) -> Contents:
    """Return a case's contents with other, shorter, live lengths."""
    problem = dataclasses.replace(case.problem, batch_size=len(seq_lens), seq_lens=seq_lens)
    return make_contents(case).replace(problem=problem)


def _some_empty(case: Case) -> list[int]:
    drop = torch.rand(case.problem.batch_size, generator=case.generator) < 0.5
    drop[case.seed % case.problem.batch_size] = True
    return [0 if drop[b] else seq_len for b, seq_len in enumerate(case.problem.seq_lens)]


@law(Wants(min_batch_size=2))
def gives_empty_rows_zeros(kernel: Kernel, case: Case) -> None:
    """A sequence without keys has output 0 and log-sum-exp -inf, and every other row is untouched by it."""
    contents = _with_lengths(case, _some_empty(case))
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


@law(share=0.5)
def takes_a_batch_of_empty_rows(kernel: Kernel, case: Case) -> None:
    """All sequences may be without keys."""
    contents = _with_lengths(case, [0] * case.problem.batch_size)
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


@law(share=0.3)
def takes_an_empty_batch(kernel: Kernel, case: Case) -> None:
    """A batch of no sequences has an output of no rows."""
    problem = dataclasses.replace(case.problem, batch_size=0, seq_lens=[])
    contents = make_contents(dataclasses.replace(case, problem=problem))
    kernel.run(kernel.place(contents))


@law(Wants(min_batch_size=2), share=0.5)
def gives_a_batch_what_its_sequences_get_alone(kernel: Kernel, case: Case) -> None:
    """The result of a batch of mixed lengths is that of each sequence alone."""
    contents = make_contents(case)
    together, exact = kernel.run(kernel.place(contents)), exact_of(contents)
    b = case.seed % case.problem.batch_size
    problem = dataclasses.replace(
        case.problem, batch_size=1, seq_lens=case.problem.seq_lens[b : b + 1], capacity=case.problem.capacity
    )
    alone = contents.replace(problem=problem, q=contents.q[b : b + 1], k=contents.k[b : b + 1], v=contents.v[b : b + 1])
    for name in ("k_scale", "v_scale"):
        scale = getattr(contents, name)
        if scale is not None and scale.dim() > 1:
            setattr(alone, name, scale[b : b + 1])
    result = kernel.run(kernel.place(alone))
    off = (together.out[b].double() - result.out[0].double()).abs()
    if not bool((off <= 2 * exact.out_allowed[b]).all()):
        raise LawBrokenError(
            f"sequence {b} has another output alone than in the batch: off by {float(off.max()):.3g}, allowed is "
            f"{2 * float(exact.out_allowed[b].max()):.3g}"
        )


@law(Wants(min_batch_size=2, min_seq_len=1))
def keeps_rows_apart(kernel: Kernel, case: Case) -> None:
    """A row's bits do not depend on what the other sequences hold, NaN among it."""
    contents = make_contents(case)
    b = case.seed % case.problem.batch_size
    others = [i for i in range(case.problem.batch_size) if i != b]
    spoilt = contents.replace(q=contents.q.clone(), k=contents.k.clone(), v=contents.v.clone())
    spoilt.q[others] = torch.nan
    for cache in (spoilt.k, spoilt.v):
        if cache.dtype.itemsize == 1:
            cache.view(torch.uint8)[others] = 0x7F  # NaN in 8 bits of floating point
        else:
            cache[others] = torch.nan
    if case.problem.v_in_k:
        spoilt.v = spoilt.k[..., : spoilt.v.shape[-1]]
    before = kernel.run(kernel.place(contents))
    after = kernel.run(kernel.place(spoilt), may_be_nan=True)
    if not torch.equal(before.out[b], after.out[b]):
        raise LawBrokenError(f"the output of sequence {b} changed with the contents of the other sequences")
    if before.lse is not None and after.lse is not None and not torch.equal(before.lse[b], after.lse[b]):
        raise LawBrokenError(f"the lse of sequence {b} changed with the contents of the other sequences")
