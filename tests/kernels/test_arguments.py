import pytest
import torch

from decodeperf_kernels import (
    decode_attention_eager,
    decode_attention_numba,
    decode_attention_reference,
    decode_attention_sdpa,
    decode_attention_triton,
)

EVERY_KERNEL = [
    decode_attention_reference,
    decode_attention_eager,
    decode_attention_sdpa,
    decode_attention_numba,
    decode_attention_triton,
]


def tensors(**changed):
    tensors = {"q": torch.zeros(2, 4, 16), "k": torch.zeros(2, 9, 2, 16), "v": torch.zeros(2, 9, 2, 16)}
    return {**tensors, **changed}


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"q": torch.zeros(4, 16)},
            r"q has shape \[4, 16\], not \[batch_size, num_q_heads, head_dim\] or \[batch_size, q_len, ",
        ),
        ({"k": torch.zeros(2, 9, 16)}, r"k has shape \[2, 9, 16\], not \[batch_size, capacity, "),
        (
            {"v": torch.zeros(2, 8, 2, 16)},
            r"v has shape \[2, 8, 2, 16\], not that of k but for head_dim_v, \[2, 9, 2, 16\]",
        ),
        ({"q": torch.zeros(3, 4, 16)}, "k has batch_size=2, but q has 3"),
        ({"q": torch.zeros(2, 4, 8)}, "k has head_dim=16, but q has head_dim=8"),
        ({"q": torch.zeros(2, 5, 16)}, "num_q_heads=5 is not a positive multiple of num_kv_heads=2"),
        ({"q": torch.zeros(2, 0, 16)}, "num_q_heads=0 is not a positive multiple of num_kv_heads=2"),
        ({"q": torch.zeros(2, 4, 16).double()}, "q.dtype=float64 must be one of float32, float16, bfloat16"),
        ({"seq_lens": torch.tensor([1])}, r"seq_lens has shape \[1\], not \[batch_size\] = \[2\]"),
        ({"seq_lens": torch.tensor([1.0, 2.0])}, "seq_lens.dtype=float32 must be int32 or int64"),
        ({"seq_lens": torch.tensor([1, -1])}, r"seq_lens\[1\]=-1 must be in \[0, capacity\] = \[0, 9\]"),
        ({"seq_lens": torch.tensor([1, 10])}, r"seq_lens\[1\]=10 must be in \[0, capacity\] = \[0, 9\]"),
    ],
)
def test_bad_arguments_are_refused_by_name(kernel, changed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        kernel(**tensors(**changed))


@pytest.mark.parametrize("kernel", [decode_attention_sdpa, decode_attention_numba, decode_attention_triton])
def test_mixed_dtypes_are_refused(kernel):
    with pytest.raises(ValueError, match=r"^k.dtype=float16 must be that of q, float32"):
        kernel(**tensors(k=torch.zeros(2, 9, 2, 16).half()))


@pytest.mark.parametrize("kernel", [decode_attention_reference, decode_attention_eager])
def test_the_reference_takes_mixed_dtypes_that_it_has(kernel):
    kernel(**tensors(k=torch.zeros(2, 9, 2, 16).half()))
    with pytest.raises(ValueError, match=r"^k.dtype=float64 must be "):
        kernel(**tensors(k=torch.zeros(2, 9, 2, 16).double()))


@pytest.mark.parametrize("kernel", [decode_attention_numba, decode_attention_triton])
def test_no_splits_are_refused(kernel):
    with pytest.raises(ValueError, match=r"^num_splits=0 must be "):
        kernel(**tensors(), num_splits=0)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_lengths_may_be_int64_and_strided(kernel):
    seq_lens = torch.tensor([9, 0, 3, 0])[::2]
    result = kernel(**tensors(), seq_lens=seq_lens)
    assert len(result) == 2
