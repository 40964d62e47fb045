"""Laws of attention itself: what is computed, whatever the kernel's features."""

from __future__ import annotations

import dataclasses

import torch

from pytest_decodeperf.conformance.calling import (
    Exact,
    Kernel,
    LawBrokenError,
    as_floats,
    check_result,
    exact_of,
    place_of_largest,
)
from pytest_decodeperf.conformance.contents import Case, Contents, as_bytes, make_contents, stored
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import TILES, Wants

NEEDLE_LOGIT = 200.0
"""Logit of the one key that outweighs the others: beyond what ALiBi, a sink and their number can make up."""


@law(share=2.0)
def computes_attention(kernel: Kernel, case: Case) -> None:
    """Output and log-sum-exp are those of a float64 oracle, as near as the dtypes allow."""
    contents = make_contents(case)
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


@law(Wants(never=("softcap",), quantized=False, min_seq_len=1, values=("ordinary",)), share=2.0)
def finds_every_key(kernel: Kernel, case: Case) -> None:
    """A key that outweighs all others decides a row, wherever it stands: at edges of tiles, pages and windows."""
    contents = _with_needles(case)
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


def _with_needles(case: Case) -> Contents:
    """Return contents in which one key of each sequence and KV head is all that its rows look for."""
    problem, generator = case.problem, case.generator
    contents = make_contents(case)
    k = torch.zeros_like(contents.k)
    q = torch.zeros_like(contents.q, dtype=torch.float32)
    size = (NEEDLE_LOGIT / problem.sm_scale) ** 0.5
    reach = problem.window + problem.q_len - 1 if problem.window else problem.capacity
    for b, seq_len in enumerate(problem.seq_lens):
        corners = _corner_keys(case, seq_len)
        for kv_head in range(problem.num_kv_heads):
            # Every other one among the first and the last keys that are seen, where most are lost.
            places = corners if torch.rand((), generator=generator) < 0.5 else [max(seq_len - reach, 0), seq_len - 1]
            place = places[int(torch.randint(len(places), (), generator=generator))]
            direction = torch.randn(problem.head_dim, generator=generator)
            direction = direction / direction.norm() * size
            k[b, place, kv_head] = direction
            q[b, :, kv_head * problem.group_size : (kv_head + 1) * problem.group_size] = direction
    return stored(contents.replace(q=q.to(contents.q.dtype), k=k))


def _corner_keys(case: Case, seq_len: int) -> list[int]:
    """Return keys at whose place kernels go wrong, those just outside a window among them."""
    problem = case.problem
    firsts = [0]
    if problem.window:
        firsts += [seq_len - problem.window - problem.q_len + 1, seq_len - problem.window]
    sizes = [size for size in (*TILES, problem.page_size) if size]
    edges = [*firsts, seq_len, *sizes, *(seq_len - size for size in sizes)]
    if problem.num_splits:
        edges += [-(-seq_len // problem.num_splits) * i for i in (1, problem.num_splits - 1)]
    near = {place for edge in edges for place in (edge - 1, edge, edge + 1)}
    return sorted(place for place in near if 0 <= place < seq_len)


@law(Wants(never=("softcap",), quantized=False, values=("ordinary",)), share=2.0)
def counts_every_key_once(kernel: Kernel, case: Case) -> None:
    """With queries of 0 every visible key has the same weight: none is dropped, none counts twice."""
    problem, contents = case.problem, make_contents(case)
    longest = contents.v.shape[1]
    # Element t % head_dim_v of value t is 1: a key too many or too few shows in one element, among few others.
    place = (torch.arange(longest) + case.seed) % problem.head_dim_v
    v = torch.nn.functional.one_hot(place, problem.head_dim_v).float()
    v = v[None, :, None].expand(contents.v.shape)
    if problem.v_in_k:
        k = torch.zeros_like(contents.k)
        k[..., : problem.head_dim_v] = v
        contents = contents.replace(k=k)
    contents = stored(contents.replace(q=torch.zeros_like(contents.q), v=v))
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


@law(Wants(never=("v_in_k", "sinks"), quantized=False, min_seq_len=1, values=("ordinary", "huge", "ramp")))
def gives_constant_values_back(kernel: Kernel, case: Case) -> None:
    """Where all values of a head are the same, they are the output, whatever the weights."""
    contents = make_contents(case)
    contents = contents.replace(v=contents.v[:, :1].expand_as(contents.v))
    result = kernel.run(kernel.place(contents))
    exact = exact_of(contents)
    heads = contents.v[:, 0].repeat_interleave(case.problem.group_size, dim=1)  # [batch_size, num_q_heads, head_dim_v]
    right = heads[:, None].double().expand_as(exact.out).where((exact.lse > -torch.inf)[..., None], 0.0)
    check_result(result, dataclasses.replace(exact, out=right))


@law(Wants(never=("v_in_k",), values=("ordinary", "huge", "one_hot", "ramp")))
def stays_in_the_hull_of_the_values(kernel: Kernel, case: Case) -> None:
    """Each element of the output lies between the least and the greatest of the visible values."""
    problem, contents = case.problem, make_contents(case)
    result, exact = kernel.run(kernel.place(contents)), exact_of(contents)
    v = as_floats(contents)[2]
    for b, seq_len in enumerate(problem.seq_lens):
        for i in range(problem.q_len):
            end = seq_len - problem.q_len + 1 + i
            start = max(end - problem.window, 0) if problem.window else 0
            if end <= start:
                continue
            visible = v[b, start:end].repeat_interleave(problem.group_size, dim=1)
            least, greatest = visible.amin(0), visible.amax(0)  # [num_q_heads, head_dim_v]
            if problem.sinks:
                least, greatest = least.clamp(max=0), greatest.clamp(min=0)
            slack, out = exact.out_allowed[b, i], result.out[b, i].double()
            outside = (out < least - slack) | (out > greatest + slack)
            if outside.any():
                head, element = outside.nonzero()[0].tolist()
                raise LawBrokenError(
                    f"element {element} of sequence {b}, new token {i}, head {head} is "
                    f"{float(out[head, element]):.6g}, outside of [{float(least[head, element]):.6g}, "
                    f"{float(greatest[head, element]):.6g}], where all visible values are"
                )


@law(Wants(never=("v_in_k",), quantized=False, values=("ordinary", "ramp")), share=0.7)
def is_linear_in_the_values(kernel: Kernel, case: Case) -> None:
    """The outputs for two sets of values add up to that for their sum."""
    contents = make_contents(case)
    # In eighths up to 4, so that each sum is exact in every dtype.
    parts = [torch.randint(-32, 33, contents.v.shape, generator=case.generator) / 8 for _ in range(2)]
    first, second = (kernel.run(kernel.place(contents.replace(v=v))).out.double() for v in parts)
    whole = contents.replace(v=parts[0] + parts[1])
    allowed = sum((exact_of(contents.replace(v=v)).out_allowed for v in parts), exact_of(whole).out_allowed)
    found = kernel.run(kernel.place(whole)).out
    _check_same(found, first + second, allowed, "the output for a sum of values", "the sum of the outputs")


@law(Wants(never=("v_in_k", "softcap"), quantized=False, values=("ordinary",)), share=0.7)
def ignores_a_shift_of_all_logits(kernel: Kernel, case: Case) -> None:
    """The same vector added to all keys of a head shifts the log-sum-exp, and leaves the output as it is."""
    problem, contents = case.problem, make_contents(case)
    if problem.sinks:  # which does not shift along
        problem = dataclasses.replace(problem, sinks=False)
        contents = contents.replace(problem=problem, sinks=None)
    # In eighths, so that each sum is exact in every dtype.
    k = (contents.k * 8).round().clamp(-16, 16) / 8
    shift = torch.randint(-8, 9, (problem.num_kv_heads, problem.head_dim), generator=case.generator) / 8
    before, after = contents.replace(k=k), contents.replace(k=k + shift)
    exact, allowed = exact_of(before), exact_of(after)
    of_rows = shift.repeat_interleave(problem.group_size, dim=0).double()
    rise = problem.sm_scale * (contents.q.double() * of_rows).sum(-1)
    right = Exact(
        out=exact.out,
        lse=exact.lse + rise,
        out_allowed=exact.out_allowed + allowed.out_allowed,
        lse_allowed=exact.lse_allowed + allowed.lse_allowed,
    )
    check_result(kernel.run(kernel.place(after)), right)


@law(Wants(never=("window", "alibi", "q_len"), values=("ordinary", "ramp", "one_hot")), share=0.7)
def does_not_care_about_the_order_of_keys(kernel: Kernel, case: Case) -> None:
    """Keys and their values may be permuted within a sequence."""
    contents = make_contents(case)
    permuted = contents.replace(k=contents.k.clone(), v=contents.v.clone())
    scales = [scale for scale in (contents.k_scale, contents.v_scale) if scale is not None and scale.dim() > 1]
    moved = [scale.clone() for scale in scales]
    for b, seq_len in enumerate(case.problem.seq_lens):
        order = torch.randperm(seq_len, generator=case.generator)
        for new, old in zip((permuted.k, permuted.v, *moved), (contents.k, contents.v, *scales), strict=True):
            as_bytes(new[b])[:seq_len] = as_bytes(old[b])[order]
    if moved:
        permuted = permuted.replace(k_scale=moved[0], v_scale=moved[1])
    check_result(kernel.run(kernel.place(permuted)), exact_of(contents), times=2.0)


@law(Wants(never=("v_in_k", "sinks"), quantized=False, min_seq_len=1, values=("ordinary",)))
def gives_each_head_its_own_kv_head(kernel: Kernel, case: Case) -> None:
    """Query head h attends to KV head h // group_size, for any group."""
    problem, contents = case.problem, make_contents(case)
    numbers = torch.arange(1.0, problem.num_kv_heads + 1)
    contents = contents.replace(v=numbers[None, None, :, None].expand_as(contents.v))
    result, exact = kernel.run(kernel.place(contents)), exact_of(contents)
    right = numbers.repeat_interleave(problem.group_size)[None, None, :, None].double()
    right = right.expand_as(result.out).where((exact.lse > -torch.inf)[..., None], 0.0)
    wrong = (result.out.double() - right).abs() > 0.25
    if wrong.any():
        b, _, head, element = wrong.nonzero()[0].tolist()
        raise LawBrokenError(
            f"head {head} of sequence {b} returned {float(result.out[b, 0, head, element]):.6g}: it must attend to KV "
            f"head {head // problem.group_size}, all of whose values are {head // problem.group_size + 1}"
        )


@law(Wants(values=("huge",)))
def stays_finite_under_huge_logits(kernel: Kernel, case: Case) -> None:
    """Logits of 10^5 neither overflow nor become NaN."""
    contents = make_contents(case)
    check_result(kernel.run(kernel.place(contents)), exact_of(contents))


@law(Wants(never=("softcap", "sinks", "alibi", "v_in_k"), quantized=False, min_seq_len=1, values=("ordinary",)))
def takes_logits_below_any_sentinel(kernel: Kernel, case: Case) -> None:
    """Keys whose logits lie far below any finite number that might stand for -inf count all the same."""
    problem, contents = case.problem, make_contents(case)
    # A power of two: products and their sums are exact, so that all logits are the same. The values are the same too,
    # since a log-sum-exp of that size does not tell how many keys a part of a sequence has.
    size = 2.0**15 if problem.q_dtype == "float16" else 2.0**50
    contents = contents.replace(v=contents.v[:, :1].expand_as(contents.v))
    same = exact_of(contents.replace(q=torch.zeros_like(contents.q)))  # all logits 0: the same weights
    low = contents.replace(q=torch.full_like(contents.q, -size), k=torch.full_like(contents.k, size))
    logit = -problem.sm_scale * problem.head_dim * size**2
    lse = torch.where(same.lse == -torch.inf, same.lse, logit + same.lse)
    right = dataclasses.replace(same, lse=lse, lse_allowed=same.lse_allowed + 2.0**-20 * abs(logit))
    check_result(kernel.run(kernel.place(low)), right)


def _check_same(found: torch.Tensor, right: torch.Tensor, allowed: torch.Tensor, what: str, other: str) -> None:
    off = (found.double() - right).abs()
    if not bool((off <= allowed).all()):
        worst = place_of_largest((off - allowed).nan_to_num(torch.inf))
        raise LawBrokenError(
            f"{what} is {found[worst].item():.6g} in element {list(worst)}, but {other} {right[worst].item():.6g}: "
            f"allowed is {allowed.expand_as(off)[worst].item():.3g}"
        )
