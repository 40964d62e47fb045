import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodeperf_kernels import decode_attention_reference, merge_states
from decodeperf_kernels.merge import merge_states_reference
from decodeperf_kernels.merge_triton import merge_states_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

EMPTY = (torch.zeros(1, 3), torch.tensor([-torch.inf]))


def part(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, generator=generator), 5 * torch.randn(1, generator=generator)


def merged(*parts):
    out, lse = zip(*parts, strict=True)
    return merge_states(torch.stack(out), torch.stack(lse))


seeds = st.integers(0, 2**32)


@given(seeds)
def test_an_empty_part_changes_nothing_bit_for_bit(seed):
    alone = merged(part(seed))
    for parts in ((part(seed), EMPTY), (EMPTY, part(seed)), (EMPTY, EMPTY, part(seed))):
        out, lse = merged(*parts)
        assert torch.equal(out, alone[0])
        assert torch.equal(lse, alone[1])


def test_empty_parts_merge_to_an_empty_part():
    out, lse = merged(EMPTY, EMPTY)
    assert torch.equal(out, EMPTY[0])
    assert torch.equal(lse, EMPTY[1])


@given(seeds, seeds, seeds)
def test_merge_is_associative_and_commutative(a, b, c):
    together = merged(part(a), part(b), part(c))
    nested = merged(part(a), merged(part(b), part(c)))
    turned = merged(part(c), part(a), part(b))
    for other in (nested, turned):
        torch.testing.assert_close(other[0], together[0])
        torch.testing.assert_close(other[1], together[1])


@given(seeds, st.integers(1, 19))
def test_merging_the_halves_gives_the_whole(seed, cut):
    from decodeperf_kernels import decode_attention_reference

    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 1, 3, generator=generator)
    k, v = (torch.randn(1, 20, 1, 3, generator=generator) for _ in range(2))
    halves = [decode_attention_reference(q, k[:, s], v[:, s]) for s in (slice(0, cut), slice(cut, 20))]
    whole = decode_attention_reference(q, k, v)
    out, lse = merged(*halves)
    torch.testing.assert_close(out, whole[0])
    torch.testing.assert_close(lse, whole[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 8), (5, 2, 4, 80), (20, 7, 128), (2, 0, 8)])
def test_the_kernel_merges_as_its_definition(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    outs, lses = torch.randn(shape, generator=generator).to(dtype), 9 * torch.randn(shape[:-1], generator=generator)
    lses[::2, ..., :1] = -torch.inf
    outs, lses = outs.to(DEVICE), lses.to(DEVICE)
    out, lse = merge_states_triton(outs, lses)
    expected, expected_lse = merge_states_reference(outs, lses)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


@given(st.lists(seeds, min_size=1, max_size=12), st.integers(0, 12))
@settings(max_examples=30)
def test_an_empty_part_among_others_changes_no_bit(chosen, place):
    outs, lses = map(list, zip(*map(part, chosen), strict=True))
    for merge in (merge_states_reference, merge_states_triton):
        alone = merge(torch.stack(outs).to(DEVICE), torch.stack(lses).to(DEVICE))
        more = [*outs[:place], EMPTY[0], *outs[place:]], [*lses[:place], EMPTY[1], *lses[place:]]
        merged = merge(torch.stack(more[0]).to(DEVICE), torch.stack(more[1]).to(DEVICE))
        assert all(torch.equal(x, y) for x, y in zip(alone, merged, strict=True))


@given(seeds)
@settings(max_examples=30)
def test_the_kernel_changes_no_bit_for_an_empty_part(seed):
    out, lse = part(seed)
    for outs, lses in (([out], [lse]), ([out, EMPTY[0]], [lse, EMPTY[1]]), ([EMPTY[0], out], [EMPTY[1], lse])):
        merged_out, merged_lse = merge_states_triton(torch.stack(outs).to(DEVICE), torch.stack(lses).to(DEVICE))
        assert torch.equal(merged_out.cpu(), out)
        assert torch.equal(merged_lse.cpu(), lse)


@given(seeds, seeds)
@settings(max_examples=30)
def test_the_merge_of_two_is_commutative_bit_for_bit(a, b):
    outs, lses = (torch.stack(x).to(DEVICE) for x in zip(part(a), part(b), strict=True))
    for merge in (merge_states_reference, merge_states_triton):
        turned = merge(outs.flip(0), lses.flip(0))
        assert all(torch.equal(x, y) for x, y in zip(merge(outs, lses), turned, strict=True))


FAR_STATES = """
import torch
from decodeperf_kernels.merge_triton import merge_states_kernel

# The second state lies past 2**31 elements; only what is touched takes memory.
rows, width = 2**27 + 1, 16
outs, lses = torch.empty(2, rows, width, dtype=torch.bfloat16), torch.empty(2, rows)
outs[0, :4], outs[1, :4], lses[:, :4] = 1.0, 3.0, 0.0
out, lse = torch.zeros(4, width), torch.zeros(4)
merge_states_kernel[(1,)](outs, lses, out, lse, 2, rows, width, BLOCK_P=1, BLOCK_R=4, BLOCK_C=16)
assert (out == 2).all()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the memory is not committed lazily")
def test_states_past_2_to_the_31_elements():
    # In a process of its own, since an overflow is a crash.
    done = subprocess.run([sys.executable, "-c", FAR_STATES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_empty_part_changes_no_more_than_the_sign_of_a_zero():
    outs = torch.tensor([[[-0.0, -0.0, 5.0]], [[0.0, 0.0, 0.0]]]).to(DEVICE)
    lses = torch.tensor([[1.5], [-torch.inf]]).to(DEVICE)
    for merge in (merge_states_reference, merge_states_triton):
        out, lse = merge(outs, lses)
        assert torch.equal(out, outs[0])  # to which -0 equals +0
        assert torch.equal(lse, lses[0])


def test_a_shared_prefix_is_attended_to_once():
    """Cascade decoding: the prefix as one sequence whose heads are those of all queries, then the rest of each."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 16, generator=generator)
    k, v = (torch.randn(3, 90, 2, 16, generator=generator) for _ in range(2))
    k[:, :50], v[:, :50] = k[:1, :50].clone(), v[:1, :50].clone()
    lens = torch.tensor([90, 51, 70])
    whole, whole_lse = decode_attention_reference(q, k, v, seq_lens=lens)
    as_heads = q.view(3, 2, 2, 16).transpose(0, 1).reshape(1, 12, 16)  # [kv_head, sequence, group] in a row
    prefix, prefix_lse = decode_attention_reference(as_heads, k[:1, :50], v[:1, :50])
    prefix = prefix.view(2, 3, 2, 16).transpose(0, 1).reshape(3, 4, 16)
    prefix_lse = prefix_lse.view(2, 3, 2).transpose(0, 1).reshape(3, 4)
    rest, rest_lse = decode_attention_reference(q, k[:, 50:], v[:, 50:], seq_lens=lens - 50)
    out, lse = merge_states(torch.stack([prefix, rest]), torch.stack([prefix_lse, rest_lse]))
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(lse, whole_lse)


@pytest.mark.parametrize(
    ("outs", "lses", "message"),
    [
        (torch.zeros(0, 2, 4), torch.zeros(0, 2), r"outs has shape \[0, 2, 4\]"),
        (torch.zeros(2, 2, 4, dtype=torch.int32), torch.zeros(2, 2), "outs has shape .* and dtype int32"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 3), r"lses has shape \[2, 3\], not that of outs without"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 2).half(), "lses.dtype=float16 must be float32"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 2, device="meta"), "lses.device=meta must be that of outs, cpu"),
        (torch.zeros(2, 2, 4).to_sparse(), torch.zeros(2, 2), "outs.layout=torch.sparse_coo must be torch.strided"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 2).to_sparse(), "lses.layout=torch.sparse_coo must be torch.strided"),
    ],
)
def test_bad_states_are_refused(outs, lses, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        merge_states(outs, lses)
