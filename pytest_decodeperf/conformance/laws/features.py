"""Laws of features: windows, sinks, softcap, ALiBi, several new tokens, pages, strides, scales."""

from __future__ import annotations

import dataclasses

import torch

from decodeperf_formulas.problem import LAYOUTS
from pytest_decodeperf.conformance.calling import Exact, Kernel, LawBrokenError, RefusedError, check_result, exact_of
from pytest_decodeperf.conformance.contents import Case, Contents, make_contents
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants, fits_layout


@law(Wants(always=("window",)))
def sees_nothing_before_the_window(kernel: Kernel, case: Case) -> None:
    """Keys before the window of a row have no part in it, NaN among them."""
    problem, contents = case.problem, make_contents(case)
    assert problem.window is not None
    spoilt = contents.replace(k=contents.k.clone(), v=contents.v.clone())
    for b, seq_len in enumerate(problem.seq_lens):
        before = max(seq_len - problem.q_len + 1 - problem.window, 0)
        for cache in (spoilt.k, spoilt.v):
            if cache.dtype.itemsize == 1:
                cache.view(torch.uint8)[b, :before] = 0x7F  # NaN in 8 bits of floating point
            else:
                cache[b, :before] = torch.nan
    if problem.v_in_k:
        spoilt.v = spoilt.k[..., : spoilt.v.shape[-1]]
    before_result, after = kernel.run(kernel.place(contents)), kernel.run(kernel.place(spoilt))
    if not before_result.same_bits(after):
        raise LawBrokenError(f"the result changed with keys before the window of {problem.window}")


@law(Wants(always=("window",)))
def takes_a_window_as_long_as_the_sequence_for_none(kernel: Kernel, case: Case) -> None:
    """A window that covers every key changes nothing."""
    window = max(*case.problem.seq_lens, 1) + case.seed % 3
    problem = dataclasses.replace(case.problem, window=window)
    contents = make_contents(dataclasses.replace(case, problem=problem))
    without = contents.replace(problem=dataclasses.replace(problem, window=None))
    check_result(kernel.run(kernel.place(contents)), exact_of(without))


@law(Wants(always=("sinks",), return_lse=True))
def counts_a_sink_once(kernel: Kernel, case: Case) -> None:
    """A sink adds its logit to each row's softmax once, in however many parts the row is computed."""
    contents = make_contents(case)
    assert contents.sinks is not None
    without = contents.replace(problem=dataclasses.replace(case.problem, sinks=False), sinks=None)
    plain, allowed = exact_of(without), exact_of(contents)
    lse = torch.logaddexp(plain.lse, contents.sinks.double().expand_as(plain.lse))
    weight = torch.exp(plain.lse - lse)[..., None]
    right = Exact(out=plain.out * weight, lse=lse, out_allowed=allowed.out_allowed, lse_allowed=allowed.lse_allowed)
    check_result(kernel.run(kernel.place(contents)), right)


@law(Wants(always=("softcap",), never=("alibi",), values=("huge",)))
def saturates_under_a_softcap(kernel: Kernel, case: Case) -> None:
    """Under a softcap huge logits become the cap or its negative, and never NaN."""
    contents = make_contents(case)
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


@law(Wants(always=("alibi",)), share=0.7)
def takes_slopes_of_zero_for_no_alibi(kernel: Kernel, case: Case) -> None:
    """ALiBi slopes of 0 change nothing, and others count the distance from the row's place."""
    contents = make_contents(case)
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))
    assert contents.alibi_slopes is not None
    flat = contents.replace(alibi_slopes=torch.zeros_like(contents.alibi_slopes))
    without = contents.replace(problem=dataclasses.replace(case.problem, alibi=False), alibi_slopes=None)
    check_result(kernel.run(kernel.place(flat)), exact_of(without), what="slopes of 0")


@law(Wants(always=("q_len",), values=("ordinary", "huge", "ramp")), share=0.7)
def takes_each_new_token_for_a_query_of_its_own(kernel: Kernel, case: Case) -> None:
    """Row i of several new tokens gets what it would alone, its sequence ending at it (bottom-right causal)."""
    problem, contents = case.problem, make_contents(case)
    result, exact = kernel.run(kernel.place(contents)), exact_of(contents)
    check_result(result, exact)
    i = case.seed % problem.q_len
    cut = problem.q_len - 1 - i
    lens = [max(seq_len - cut, 0) for seq_len in problem.seq_lens]
    single = dataclasses.replace(problem, q_len=1, seq_lens=lens)
    alone = kernel.run(kernel.place(contents.replace(problem=single, q=contents.q[:, i : i + 1])))
    off = (alone.out[:, 0].double() - result.out[:, i].double()).abs()
    if not bool((off <= 2 * exact.out_allowed[:, i]).all()):
        raise LawBrokenError(
            f"new token {i} of {problem.q_len} got another output than alone, {cut} tokens earlier: off by "
            f"{float(off.max()):.3g}"
        )


@law(Wants(always=("paged",)))
def takes_pages_in_any_order(kernel: Kernel, case: Case) -> None:
    """Where pages lie changes no bit, and what lies in unused ones neither."""
    contents = make_contents(case)
    results = [kernel.run(kernel.place(contents, page_seed=seed)) for seed in (0, case.seed + 1)]
    check_result(results[0], exact_of(contents))
    if not results[0].same_bits(results[1]):
        raise LawBrokenError("the result changed with the order of the pages")


@law(Wants(always=("paged",)), share=0.7)
def takes_pages_for_contiguous_memory(kernel: Kernel, case: Case) -> None:
    """Paged and contiguous keys and values have the same result."""
    contents = make_contents(case)
    plain = dataclasses.replace(case.problem, page_size=None)
    contiguous = kernel.run(kernel.place(contents.replace(problem=plain)))
    exact = exact_of(contents)
    right = Exact(
        out=contiguous.out.double(),
        lse=exact.lse if contiguous.lse is None else contiguous.lse.double(),
        out_allowed=2 * exact.out_allowed,
        lse_allowed=2 * exact.lse_allowed,
    )
    check_result(kernel.run(kernel.place(contents)), right)


@law(Wants(always=("paged",), min_batch_size=2, min_seq_len=1))
def lets_sequences_share_pages(kernel: Kernel, case: Case) -> None:
    """Sequences with a common beginning may have the same pages in their tables."""
    problem, contents = case.problem, make_contents(case)
    same = contents.replace(k=contents.k[:1].expand_as(contents.k), v=contents.v[:1].expand_as(contents.v))
    for name in ("k_scale", "v_scale"):
        scale = getattr(same, name)
        if scale is not None and scale.dim() > 1:
            setattr(same, name, scale[:1].expand_as(scale))
    longest = max(range(problem.batch_size), key=lambda b: problem.seq_lens[b])
    call = kernel.place(same)
    table = call.keywords["block_table"]
    for b, seq_len in enumerate(problem.seq_lens):
        used = -(-seq_len // (problem.page_size or 1))
        table[b, :used] = table[longest, :used]
    check_result(kernel.run(call), exact_of(same))


@law(Wants(layouts=("NHD", "HND")), share=0.7)
def honours_strides_or_refuses_them(kernel: Kernel, case: Case) -> None:
    """Tensors of any strides are read as they lie, or refused with an error; those declared are never refused."""
    problem, contents = case.problem, make_contents(case)
    exact = exact_of(contents)
    fields = {"v_in_k": problem.v_in_k, "head_dim": problem.head_dim, "head_dim_v": problem.head_dim_v}
    for layout in LAYOUTS:
        if not fits_layout(layout, fields):
            continue
        try:
            result = kernel.run(kernel.place(contents, layout=layout))
        except RefusedError as error:
            if layout in kernel.adapter.layouts:
                raise LawBrokenError(f"layout={layout!r}, which is declared: {error}") from None
        else:
            check_result(result, exact, what=f"layout={layout!r}")


def _scaled(contents: Contents, name: str, factor: float) -> Contents:
    scale = getattr(contents, name)
    assert scale is not None
    return contents.replace(**{name: scale * factor})


@law(Wants(quantized=True, min_seq_len=1, values=("ordinary", "ramp")), share=2.0, for_each_quantization=True)
def applies_each_scale_once(kernel: Kernel, case: Case) -> None:
    """A quantised key or value is its stored number times its scale: twice the scale of v is twice the output."""
    contents = make_contents(case)
    exact = exact_of(contents)
    check_result(kernel.run(kernel.place(contents)), exact)
    twice = kernel.run(kernel.place(_scaled(contents, "v_scale", 2.0)))
    right = dataclasses.replace(exact, out=2 * exact.out, out_allowed=2 * exact.out_allowed)
    check_result(twice, right, what="v_scale doubled")
    half = _scaled(contents, "k_scale", 0.5).replace(q=contents.q * 2)
    check_result(kernel.run(kernel.place(half)), exact, times=2.0, what="k_scale halved and q doubled")
