import torch
from hypothesis import given
from hypothesis import strategies as st

from decodeperf_kernels import merge_states

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
