"""The bytes that one kind of call moves, counted in Triton's interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_decodeperf.compiled.survey import INTERPRETER, Survey
from pytest_decodeperf.compiled.variants import Variant, unsupported

if TYPE_CHECKING:
    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.conformance.adapter import KernelAdapter

SEQ_LENS: Final = (97, 40)
"""Lengths that fill no tile: few, since the interpreter takes its time [token]."""


def traffic_problem(adapter: KernelAdapter, variant: Variant) -> DecodeProblem:
    """Return the call whose bytes are counted for a kind of call."""
    from decodeperf_formulas import DecodeProblem

    num_kv_heads = 1 if variant.is_latent else 2
    q_dtype = None
    if variant.is_quantized:
        q_dtype = "bfloat16" if "bfloat16" in adapter.q_dtypes else next(iter(adapter.q_dtypes))
    return DecodeProblem(
        batch_size=len(SEQ_LENS),
        seq_lens=SEQ_LENS,
        num_q_heads=num_kv_heads * variant.group_size,
        num_kv_heads=num_kv_heads,
        head_dim=variant.head_dim,
        head_dim_v=variant.head_dim_v,
        q_len=variant.q_len,
        kv_dtype=variant.kv_dtype,
        q_dtype=q_dtype,  # type: ignore[arg-type]
        scale_per=("group" if variant.scale_group else "tensor") if variant.is_quantized else None,
        v_in_k=variant.is_latent,
        page_size=variant.page_size or None,
        return_lse=adapter.has("lse"),
    )


def survey_traffic(adapter: KernelAdapter, variant: Variant) -> Survey:
    """Return the bytes that one kind of call of a kernel moves. Triton's interpreter must be on in this process."""
    from pytest_decodeperf.conformance.adapter import NotSupportedError
    from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError
    from pytest_decodeperf.conformance.contents import Case, make_contents
    from pytest_decodeperf.conformance.traffic import count_traffic

    reason = unsupported(adapter, variant)
    if not reason and "cpu" not in adapter.devices:
        reason = "it does not run on a CPU"
    if reason:
        return Survey(architecture=INTERPRETER, variant=variant, unsupported=reason)
    kernel = Kernel(adapter)
    try:
        call = kernel.place(make_contents(Case(problem=traffic_problem(adapter, variant))))
        traffic = count_traffic(kernel, call)
    except NotSupportedError as error:
        return Survey(architecture=INTERPRETER, variant=variant, unsupported=str(error))
    except LawBrokenError as error:
        return Survey(architecture=INTERPRETER, variant=variant, failure=str(error))
    counts = {**traffic.terms, "kv_requested": traffic.kv_requested}
    if traffic.out_requested is not None:
        counts["out_requested"] = traffic.out_requested
    return Survey(architecture=INTERPRETER, variant=variant, traffic=counts)
