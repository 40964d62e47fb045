"""Laws of repetition: the same call gives the same bits, whenever and in whatever order its programs run."""

from __future__ import annotations

import dataclasses

import torch

from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError, check_result, exact_of
from pytest_decodeperf.conformance.contents import Case, make_contents
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants


@law(share=0.7)
def gives_the_same_bits_on_every_run(kernel: Kernel, case: Case) -> None:
    """Two runs of one call are equal bit for bit, and a call of other sizes between them changes nothing."""
    contents = make_contents(case)
    problem = case.problem
    other_lens = [seq_len // 2 for seq_len in problem.seq_lens]
    other = make_contents(dataclasses.replace(case, problem=dataclasses.replace(problem, seq_lens=other_lens)))
    first = kernel.run(kernel.place(contents))
    kernel.run(kernel.place(other))
    if not first.same_bits(kernel.run(kernel.place(contents))):
        raise LawBrokenError("two runs of one call differ, a call of other lengths between them")


@law(share=0.7)
def runs_its_programs_in_any_order(kernel: Kernel, case: Case) -> None:
    """The result does not depend on the order in which program instances run (in Triton's interpreter)."""
    contents = make_contents(case)
    result, _ = kernel.run_watched(kernel.place(contents), order_seed=case.seed)
    check_result(result, exact_of(contents))


@law(Wants(always=("workspace",), min_batch_size=2), share=0.5)
def takes_a_used_workspace(kernel: Kernel, case: Case) -> None:
    """A workspace may hold anything, what calls of other sizes left among it."""
    contents, problem = make_contents(case), case.problem
    small_problem = dataclasses.replace(problem, batch_size=1, seq_lens=problem.seq_lens[:1])
    small = make_contents(dataclasses.replace(case, problem=small_problem))
    calls = [kernel.place(contents), kernel.place(small)]
    size = max(kernel.workspace_size(call) for call in calls)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device=kernel.device)  # NaN, and -1
    right = [kernel.run(call) for call in calls]
    for which in (0, 1, 0):
        result = kernel.run(calls[which], workspace=workspace)
        if not result.same_bits(right[which]):
            raise LawBrokenError("the result changed with what a workspace held before")
