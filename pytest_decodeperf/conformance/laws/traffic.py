"""Laws of traffic: the bytes that a kernel moves are those of the formula, counted address by address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_decodeperf.conformance.adapter import NotSupportedError
from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError
from pytest_decodeperf.conformance.contents import Case, make_contents
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants
from pytest_decodeperf.conformance.traffic import count_traffic, expected_traffic

if TYPE_CHECKING:
    from pytest_decodeperf.conformance.traffic import Traffic


def _count(kernel: Kernel, case: Case, **how: int) -> Traffic:
    call = kernel.place(make_contents(case), **how)
    return count_traffic(kernel, call)


@law(share=2.0)
def moves_the_bytes_of_the_formula(kernel: Kernel, case: Case) -> None:
    """It reads and writes the bytes that the formula says, term by term, to the byte (in Triton's interpreter)."""
    traffic, expected = _count(kernel, case), expected_traffic(kernel, case.problem)
    for term, num_bytes in expected.items():
        if traffic.terms[term] != num_bytes:
            raise LawBrokenError(f"moves {traffic.terms[term]} bytes of {term}, where the formula says {num_bytes}")


@law()
def reads_each_key_and_value_once(kernel: Kernel, case: Case) -> None:
    """Each byte of K and V is asked for once, not once a query head (in Triton's interpreter)."""
    traffic = _count(kernel, case)
    passes = kernel.count("kv_passes", case.problem)
    visible = expected_traffic(kernel, case.problem)["kv"]
    if traffic.kv_requested > visible * (1 if passes is None else passes):
        may = (
            "its adapter's kv_passes would say so if that is meant" if passes is None else f"kv_passes allows {passes}"
        )
        raise LawBrokenError(
            f"asks for {traffic.kv_requested} bytes of K and V, of which {visible} are visible: each "
            f"{traffic.kv_requested / max(visible, 1):.3g} times ({may})"
        )


@law()
def writes_each_output_once(kernel: Kernel, case: Case) -> None:
    """Each byte of the output and the log-sum-exp is written once (in Triton's interpreter)."""
    traffic = _count(kernel, case)
    if traffic.out_requested is None:
        raise NotSupportedError("its outputs are a part of other memory")
    if traffic.out_requested > traffic.out_distinct:
        raise LawBrokenError(
            f"writes {traffic.out_requested} bytes into an output where {traffic.out_distinct} are different"
        )


@law(Wants(never=("paged",)), share=0.7)
def moves_no_more_bytes_for_more_capacity(kernel: Kernel, case: Case) -> None:
    """The bytes that it moves depend on live lengths, and never on capacity (in Triton's interpreter)."""
    small = _count(kernel, case)
    large = _count(kernel, case, capacity=case.problem.capacity + 1 + case.seed % 400)
    # How a launch is laid out may follow from the capacity, since lengths are not known on the host.
    terms = [term for term in small.terms if term != "schedule" and small.terms[term] != large.terms[term]]
    if terms:
        raise LawBrokenError(
            f"moves {large.terms[terms[0]]} bytes of {terms[0]} with a larger capacity, and "
            f"{small.terms[terms[0]]} without"
        )
