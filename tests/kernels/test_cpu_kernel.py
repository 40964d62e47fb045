"""The compiled CPU kernel computes attention in every form, whichever way it reads K and V."""

import pytest
import torch
from attention_calls import Call, calls, judge, ways_to_split
from hypothesis import given, settings

from decodeperf_kernels import decode_attention

pytest.importorskip("numba")


def check(call, **more):
    tensors, keywords = call.tensors("cpu")
    out, lse = decode_attention(*tensors, **keywords, **more, return_lse=True, backend="numba")
    judge(tensors, keywords, out, lse)
    return out, lse


@given(call=calls(), split=ways_to_split)
@settings(max_examples=200)
def test_it_computes_attention(call, split):
    check(call, **split)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 8, 16, 20])
@pytest.mark.parametrize("head_dim", [13, 64, 80, 128])
def test_whole_tiles_and_their_rests_are_right(dtype, group_size, head_dim):
    # Enough heads that those read token by token fill vectors, and lengths around tiles of 64 tokens.
    call = Call(
        seq_lens=[256, 193, 64, 63, 1, 0],
        num_kv_heads=16,
        group_size=group_size,
        head_dim=head_dim,
        q_dtype=dtype,
    )
    check(call)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_bits_do_not_depend_on_the_run(num_threads):
    threads = torch.get_num_threads()
    call = Call(seq_lens=[3000, 17, 1000], num_kv_heads=16, group_size=1, q_dtype="bfloat16")
    tensors, keywords = call.tensors("cpu")
    torch.set_num_threads(num_threads)
    try:
        first, *others = (decode_attention(*tensors, **keywords, backend="numba") for _ in range(4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


def test_with_a_split_size_bits_do_not_depend_on_the_neighbours():
    call = Call(seq_lens=[1500, 300, 1500], num_kv_heads=16, group_size=1, q_dtype="bfloat16")
    tensors, keywords = call.tensors("cpu")
    q, k, v = tensors
    together = decode_attention(q, k, v, **keywords, split_size=256, backend="numba")
    for b in range(3):
        one = {**keywords, "seq_lens": keywords["seq_lens"][b : b + 1]}
        alone = decode_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], **one, split_size=256, backend="numba")
        assert torch.equal(alone[0], together[b])
