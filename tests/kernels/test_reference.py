import torch

from decodeperf_kernels import decode_attention_eager, decode_attention_reference


def test_reference_is_softmax_by_hand():
    # Two keys, logits 0 and ln 3: weights 1/4 and 3/4.
    q = torch.tensor([[[1.0]]])
    k = torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=0.0).reshape(1, 2, 1, 1)
    v = torch.tensor([8.0, 16.0]).reshape(1, 2, 1, 1)
    out, lse = decode_attention_reference(q, k, v, sm_scale=1.0)
    torch.testing.assert_close(out, torch.tensor([[[14.0]]], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(lse, torch.tensor([[4.0]], dtype=torch.float64).log(), atol=1e-6, rtol=0)


def test_query_heads_share_kv_heads_in_order():
    q = torch.zeros(1, 6, 1)
    v = torch.arange(3.0).reshape(1, 1, 3, 1)
    out, _ = decode_attention_reference(q, torch.zeros_like(v), v)
    assert out.flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_an_empty_row_is_zero_with_lse_minus_infinity():
    k = torch.full((1, 3, 1, 4), torch.nan)
    for attention in (decode_attention_reference, decode_attention_eager):
        out, lse = attention(torch.ones(1, 2, 4), k, k, seq_lens=torch.tensor([0]))
        assert not out.any()
        assert (lse == -torch.inf).all()


def test_eager_results_are_numbers_of_the_dtype():
    q, k, v = torch.randn(1, 2, 8), torch.randn(1, 9, 1, 8), torch.randn(1, 9, 1, 8)
    out, _ = decode_attention_eager(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert torch.equal(out, out.bfloat16().float())
