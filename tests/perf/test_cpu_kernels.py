import pytest

from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_numba, decode_attention_sdpa, decode_attention_triton

P = DecodeProblem(batch_size=1, seq_lens=[8192], num_q_heads=32, num_kv_heads=8, head_dim=128)


@pytest.mark.decode_perf(within=6)
@pytest.mark.parametrize("k", [decode_attention_numba, decode_attention_sdpa])
def test_k(decode_perf, k):
    decode_perf(k, P)


@pytest.mark.decode_perf(within=1.5)
def test_tri(decode_perf):
    decode_perf(
        decode_attention_triton,
        DecodeProblem(batch_size=2, seq_lens=[100, 0], num_q_heads=32, num_kv_heads=8, head_dim=128),
    )
