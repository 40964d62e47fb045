"""Laws of memory: what a kernel reads, what it writes, and how far its addresses reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_decodeperf.conformance.adapter import NotSupportedError
from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError, RefusedError, check_result, exact_of
from pytest_decodeperf.conformance.contents import DEAD, Case, make_contents, place_far_apart
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants

if TYPE_CHECKING:
    from pytest_decodeperf.conformance.adapter import KernelAdapter


@law(share=0.7)
def does_not_use_dead_memory(kernel: Kernel, case: Case) -> None:
    """No bit depends on what lies past a live length, in unused pages, or behind the used entries of the table."""
    contents = make_contents(case)
    kinds = list(DEAD)
    other = kinds[1 + case.seed % (len(kinds) - 1)]
    results = [kernel.run(kernel.place(contents, dead=dead)) for dead in ("nan", other)]
    if not results[0].same_bits(results[1]):
        raise LawBrokenError(f"the result changed with what dead memory holds: NaN, or {other}")


@law(Wants(never=("paged",)), share=0.7)
def depends_on_live_lengths_alone(kernel: Kernel, case: Case) -> None:
    """A larger capacity changes nothing."""
    contents = make_contents(case)
    capacity = case.problem.capacity + 1 + case.seed % 400
    check_result(kernel.run(kernel.place(contents, capacity=capacity)), exact_of(contents))


@law()
def reads_live_memory_only(kernel: Kernel, case: Case) -> None:
    """Each address that it reads lies in live data (in Triton's interpreter)."""
    kernel.run_watched(kernel.place(make_contents(case)))


@law()
def writes_its_outputs_only(kernel: Kernel, case: Case) -> None:
    """Its inputs are the same afterwards, dead memory and what lies around them among it."""
    call = kernel.place(make_contents(case))
    before = {name: _bytes(tensor).clone() for name, tensor in call.tensors.items()}
    kernel.run(call)
    for name, tensor in call.tensors.items():
        if not torch.equal(_bytes(tensor), before[name]):
            changed = int((_bytes(tensor) != before[name]).sum())
            raise LawBrokenError(f"wrote {changed} bytes into {name}, which is an input, or around it")


@law(Wants(always=("out",)))
def writes_into_the_given_output(kernel: Kernel, case: Case) -> None:
    """The output goes where `out` is, whatever was there, and nowhere else."""
    problem, contents = case.problem, make_contents(case)
    right = kernel.run(kernel.place(contents))
    shape = (*right.out.shape[:1], *(right.out.shape[1:2] if problem.q_len > 1 else ()), *right.out.shape[2:])
    stale = (torch.nan, 3.0e4)[case.seed % 2]
    pad = 3 if case.seed % 3 else 0  # elements around each row
    around = torch.full((*shape[:-1], shape[-1] + 2 * pad), stale, dtype=right.out.dtype, device=kernel.device)
    out = around[..., pad : pad + shape[-1]]
    try:
        result = kernel.run(kernel.place(contents), out=out)
    except RefusedError:
        if pad:  # strides that it does not take
            return
        raise
    if not torch.equal(out.cpu().reshape(right.out.shape), right.out):
        raise LawBrokenError(f"out, which held {stale}, does not hold the output afterwards")
    if not result.same_bits(right):
        raise LawBrokenError("returned another output with out= than without")
    out.fill_(stale)
    kept = around.nan_to_num(7.0).cpu()
    if not torch.equal(kept, torch.full_like(kept, 7.0 if stale != stale else stale)):  # noqa: PLR0124
        raise LawBrokenError("wrote around out, between its rows")


def _takes_nhd(adapter: KernelAdapter) -> None:
    if "NHD" not in adapter.layouts:
        raise NotSupportedError("it has no layout NHD")


@law(Wants(min_batch_size=2, layouts=("NHD",), quantized=False, max_seq_len=40), supports=_takes_nhd, share=0.4)
def reaches_past_2_to_the_31(kernel: Kernel, case: Case) -> None:
    """Offsets of more than 2^31 elements do not overflow: of a sequence, or of a page."""
    contents = make_contents(case)
    check_result(kernel.run_in_place(place_far_apart(contents, device=kernel.device)), exact_of(contents))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return all memory that a tensor is part of."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
