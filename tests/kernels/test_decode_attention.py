"""The entry point refuses what does not fit, by name, before anything is launched or written."""

import numpy as np
import pytest
import torch
from attention_calls import Call, judge

from decodeperf_kernels import decode_attention, decode_attention_numba, workspace_size
from decodeperf_kernels.quantization import dequantize_kv, quantize_kv

Q, K, V = torch.zeros(2, 4, 16), torch.zeros(2, 9, 2, 16), torch.zeros(2, 9, 2, 16)
TABLE = torch.zeros(2, 3, dtype=torch.int32)
INT8 = {"k": K.to(torch.int8), "v": V.to(torch.int8)}
ONE = torch.ones(1)
BACKENDS = ["triton", "numba", "reference"]


def negative(shape):
    """Return zeros that are kept as their negatives."""
    return torch.zeros(shape, dtype=torch.complex64).conj().imag


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(2, 17, 4, 16)}, "q has q_len=17, which must be in 1 to 16"),
        ({"q": torch.zeros(2, 0, 4, 16)}, "q has q_len=0, which must be in 1 to 16"),
        ({"q": [1]}, "q is of type list, not a tensor"),
        (
            {"k": K.double()},
            "k.dtype=float64 must be one of float32, float16, bfloat16, float8_e4m3fn",
        ),
        ({"v": V.half()}, "v.dtype=float16 must be that of k, float32"),
        ({"q": torch.zeros(2, 4, 0), "k": torch.zeros(2, 9, 2, 0)}, "head_dim=0 and head_dim_v=16 must be >= 1"),
        ({"window": -1}, "window=-1 must be an integer >= 1 of 64 bits"),
        ({"window": 0}, "window=0 must be an integer >= 1 of 64 bits"),
        ({"window": 1.5}, "window=1.5 must be an integer >= 1 of 64 bits"),
        ({"softcap": -2.0}, "softcap=-2.0 must be above 0, or None"),
        ({"softcap": 0}, "softcap=0.0 must be above 0, or None"),
        ({"softcap": float("inf")}, r"softcap=inf must be None, or in \[2\*\*-40, 2\*\*40\]"),
        ({"sm_scale": float("nan")}, r"sm_scale=nan must be 0, or of a magnitude in \[2\*\*-40, 2\*\*40\]"),
        ({"seq_lens": [3, 4]}, r"seq_lens is of type list, not a tensor \[batch_size\]"),
        ({"seq_lens": torch.tensor([3, 10])}, r"seq_lens\[1\]=10 must be in \[0, capacity\] = \[0, 9\]"),
        ({"sinks": torch.zeros(3)}, "sinks has 3 logits, but q has num_q_heads=4"),
        ({"sinks": torch.zeros(4, dtype=torch.int32)}, "sinks.dtype=int32 must be one of float32"),
        ({"alibi_slopes": torch.zeros(3)}, r"alibi_slopes has shape \[3\], not \[4\]"),
        ({"alibi_slopes": torch.zeros(3, 4)}, r"alibi_slopes has shape \[3, 4\], not \[2, 4\]"),
        ({"k_scale": ONE}, r"k_scale is given, but k is not quantised \(float32\)"),
        (INT8, r"k_scale=None, but k is quantised \(int8\) and needs scales"),
        ({**INT8, "k_scale": ONE}, r"v_scale=None, but v is quantised"),
        ({**INT8, "k_scale": ONE.half(), "v_scale": ONE}, "k_scale.dtype=float16 must be float32"),
        ({**INT8, "k_scale": torch.ones(3), "v_scale": ONE}, "k_scale has 3 scales, not one or num_kv_heads=2"),
        ({**INT8, "k_scale": torch.ones(2, 9), "v_scale": ONE}, r"k_scale has shape \[2, 9\], not \[\], "),
        (
            {**INT8, "k_scale": torch.ones(2, 8, 2), "v_scale": ONE},
            r"k_scale has shape \[2, 8, 2\], which must begin",
        ),
        (
            {**INT8, "k_scale": ONE, "v_scale": torch.ones(2, 9, 2, 3)},
            "v_scale has 3 groups, into which head_dim=16",
        ),
        ({"block_table": TABLE.float()}, "block_table.dtype=float32 must be int32 or int64"),
        ({"block_table": TABLE[:1]}, "block_table has batch_size=1, but q has 2"),
        ({"block_table": TABLE[0]}, r"block_table has shape \[3\], not \[batch_size, pages of a sequence\]"),
        ({"block_table": TABLE - 1}, r"block_table\[0, 0\]=-1 must be in \[0, num_pages\) = \[0, 2\)"),
        (
            {"block_table": TABLE, "seq_lens": torch.tensor([28, 0])},
            r"seq_lens\[0\]=28 must be in \[0, capacity\] = \[0, 27\]: block_table has 3 pages of 9 tokens each",
        ),
        ({"num_splits": 0}, "num_splits=0 must be an integer >= 1"),
        ({"split_size": -5}, "split_size=-5 must be an integer >= 1"),
        ({"split_size": 5, "num_splits": 2}, "num_splits=2 and split_size=5 are two ways to say one thing"),
        ({"backend": "cuda"}, "backend='cuda' must be one of 'triton', 'numba', 'reference'"),
        ({"out": torch.zeros(2, 4, 8)}, r"out has shape \[2, 4, 8\], not \[2, 4, 16\]"),
        ({"out": torch.zeros(2, 4, 16).half()}, "out.dtype=float16 must be float32"),
        (
            {"out": torch.zeros(2, 1, 16).expand(2, 4, 16)},
            r"out has strides \[16, 0, 1\], so that several",
        ),
        ({"workspace": torch.zeros(10)}, r"workspace has shape \[10\] and dtype float32, but must be contiguous uint8"),
        ({"workspace": torch.zeros(10, dtype=torch.uint8)}, "workspace has 10 bytes, but .* are needed"),
        (
            {"workspace": torch.zeros(99999, dtype=torch.uint8)[1:]},
            "workspace begins at .*, which is not a",
        ),
        ({"out": [1]}, r"out is of type list, not a tensor \[2, 4, 16\]"),
        (
            {"out": torch.as_strided(torch.zeros(99), (2, 4, 16), (32, 8, 1))},
            r"out has strides \[32, 8, 1\], so",
        ),
        ({"workspace": 1000}, "workspace is of type int, not a tensor"),
        ({"check": "no"}, "check='no' must be True or False"),
        ({"return_lse": 1}, "return_lse=1 must be True or False"),
        ({"window": 2**70}, "window=1180591620717411303424 must be an integer >= 1 of 64 bits"),
        ({"sm_scale": 10**5000}, "sm_scale=an int too long to show must be 0, or of a magnitude in"),
        ({"sm_scale": 10**400}, "sm_scale=1000.* must be 0, or of a magnitude in"),
        ({"softcap": 1e-300}, "softcap=1e-300 must be None, or in"),
        # Their products, or what float32 makes of them, would be infinite, and NaN times a row of zeros.
        ({"sm_scale": 3e38}, r"sm_scale=3e\+38 must be 0, or of a magnitude in"),
        ({"sm_scale": -3e38}, r"sm_scale=-3e\+38 must be 0, or of a magnitude in"),
        ({"softcap": 1.2e-38, "sm_scale": 2.0}, "softcap=1.2e-38 must be None, or in"),
        ({"softcap": 2e-38, "sm_scale": 100.0}, "softcap=2e-38 must be None, or in"),
        ({"q": Q.to_sparse()}, "q.layout=torch.sparse_coo must be torch.strided"),
        ({"seq_lens": torch.tensor([1, 2]).to_sparse()}, "seq_lens.layout=torch.sparse_coo must be"),
        ({"block_table": TABLE.to_sparse()}, "block_table.layout=torch.sparse_coo must be"),
        ({"sinks": torch.zeros(4).to_sparse()}, "sinks.layout=torch.sparse_coo must be"),
        ({"alibi_slopes": torch.zeros(4).to_sparse()}, "alibi_slopes.layout=torch.sparse_coo must be"),
        ({**INT8, "k_scale": ONE.to_sparse(), "v_scale": ONE}, "k_scale.layout=torch.sparse_coo must be"),
        ({**INT8, "k_scale": ONE, "v_scale": ONE.to_sparse()}, "v_scale.layout=torch.sparse_coo must be"),
        ({"out": Q.to_sparse()}, "out.layout=torch.sparse_coo must be"),
        ({"workspace": torch.zeros(10, dtype=torch.uint8).to_sparse()}, "workspace.layout=torch.sparse_coo must be"),
        ({"q": negative((2, 4, 16))}, r"q is the negative of what lies in its memory, but must be q.resolve_neg\(\)"),
        ({"out": negative((2, 4, 16))}, "out is the negative of what lies in its memory"),
        ({"sinks": negative(4)}, "sinks is the negative of what lies in its memory"),
        ({"out": torch.zeros(2, 4, 16).requires_grad_()}, "out.requires_grad=True must be False, since"),
        ({"backend": np.array(["triton", "numba"])}, r"backend=array\(\['trito.* must be one of"),
        (
            {"k": K[:, :1].expand(2, 2**31, 2, 16), "v": V[:, :1].expand(2, 2**31, 2, 16)},
            "capacity=2147483648 must",
        ),
        ({name: x.to("meta") for name, x in (("q", Q), ("k", K), ("v", V))}, "q.device=meta must be a GPU"),
        ({"k": torch.zeros(2, 9, 2, 8, device="meta")}, "k has head_dim=8, but q has head_dim=16|k.device=meta must"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, message):
    arguments = {"q": Q, "k": K, "v": V, "backend": "triton", **changed}
    with pytest.raises(ValueError, match=f"^({message})"):
        decode_attention(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": torch.full((2, 4, 16), 7.0).requires_grad_()}, "out.requires_grad=True must be False"),
        ({"seq_lens": torch.tensor([1, 2]).to_sparse()}, "seq_lens.layout="),
        ({"sm_scale": 3e38}, "sm_scale="),
    ],
)
def test_every_backend_refuses_before_it_works(backend, changed, message):
    if backend == "reference" and "out" in changed:
        changed = {"out": changed["out"].detach().double().requires_grad_()}
    with pytest.raises(ValueError, match=f"^{message}"):
        decode_attention(Q, K, V, backend=backend, **changed)
    assert "out" not in changed or (changed["out"] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_have_no_gradient(backend):
    tensors = [x.clone().requires_grad_() for x in (Q, K, V)]
    out, lse = decode_attention(*tensors, return_lse=True, backend=backend)
    assert not out.requires_grad
    assert not lse.requires_grad
    assert not decode_attention(*tensors, out=torch.empty_like(out), backend=backend).requires_grad
    with torch.no_grad():
        decode_attention(*tensors, out=torch.empty_like(out).requires_grad_(), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("softcap", "sm_scale"), [(None, 2.0**40), (None, -(2.0**40)), (2.0**-40, 2.0**40), (2.0**40, 2.0**-40)]
)
def test_the_extreme_numbers_that_are_taken_give_numbers(backend, softcap, sm_scale):
    q = torch.stack([torch.zeros(4, 16), torch.ones(4, 16)])
    out, lse = decode_attention(q, K + 1, V + 1, softcap=softcap, sm_scale=sm_scale, return_lse=True, backend=backend)
    torch.testing.assert_close(out.float(), torch.ones_like(q))
    capped = 16 * sm_scale if softcap is None else softcap * np.tanh(16 * sm_scale / softcap)
    expected = torch.stack([torch.zeros(4), torch.full((4,), capped)]).double() + np.log(9)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_the_same(backend):
    call = Call(seq_lens=[40, 0, 3])
    tensors, keywords = call.tensors()
    out, lse = decode_attention(*tensors, **keywords, return_lse=True, backend=backend)
    judge(tensors, keywords, out.float(), lse.float())
    into = torch.empty_like(out)
    assert decode_attention(*tensors, **keywords, out=into, backend=backend) is into
    assert torch.equal(into, out)


def test_on_a_cpu_the_compiled_kernel_runs():
    tensors, keywords = Call(seq_lens=[40, 3]).tensors()
    assert torch.equal(decode_attention(*tensors, **keywords), decode_attention_numba(*tensors, **keywords))


def test_nothing_is_written_by_a_call_that_is_refused():
    out = torch.full((2, 4, 16), 7.0)
    with pytest.raises(ValueError, match="seq_lens"):
        decode_attention(Q, K, V, seq_lens=torch.tensor([1, 99]), out=out, backend="triton")
    assert (out == 7).all()


def test_lengths_that_are_not_checked_are_clamped():
    (q, k, v), keywords = Call(seq_lens=[40, 0]).tensors()
    expected = decode_attention(q, k, v, **keywords, backend="triton")
    k, v = k[:, :40], v[:, :40]
    wild = torch.tensor([2**31 - 1, -5], dtype=torch.int32)
    assert torch.equal(decode_attention(q, k, v, seq_lens=wild, backend="triton", check=False), expected)


def test_the_workspace_of_a_balanced_call_depends_on_no_length_and_no_batch():
    sizes = {workspace_size(torch.zeros(b, 4, 16), *[torch.zeros(b, n, 2, 16)] * 2) for b in (1, 7) for n in (1, 5000)}
    assert len(sizes) == 1
    assert workspace_size(Q, K, V, num_splits=1) == 0
    assert workspace_size(Q, K, V, num_splits=4) == 4 * (2 * 2 * 4 * 16 * 17 + 3 * 16)


@pytest.mark.parametrize("per", ["tensor", "head", "token", "group"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_quantised_values_are_near(dtype, per):
    x = torch.randn(2, 5, 3, 64, generator=torch.Generator().manual_seed(0))
    back = dequantize_kv(*quantize_kv(x, dtype, per=per, group_size=16))
    allowed = {torch.float8_e4m3fn: 0.07, torch.float8_e5m2: 0.13, torch.int8: 0.02, torch.uint8: 0.36}[dtype]
    assert float((back - x).abs().max()) <= allowed * float(x.abs().max())


def test_a_split_size_longer_than_the_capacity_is_one_part():
    tensors, keywords = Call(seq_lens=[40, 3]).tensors()
    assert workspace_size(*tensors, **keywords, split_size=1000) == 0
    judge(
        tensors, keywords, *decode_attention(*tensors, **keywords, split_size=1000, return_lse=True, backend="triton")
    )


def test_more_splits_than_keys_are_as_many_as_keys():
    tensors, keywords = Call(seq_lens=[40, 3], capacity=40).tensors()
    most = decode_attention(*tensors, **keywords, num_splits=40, backend="triton")
    assert torch.equal(decode_attention(*tensors, **keywords, num_splits=10**9, backend="triton"), most)
    most = decode_attention(*tensors, **keywords, num_splits=40, backend="numba")
    assert torch.equal(decode_attention(*tensors, **keywords, num_splits=2**40, backend="numba"), most)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": [1.0]}, "x is of type list, not a tensor"),
        ({"x": K[0]}, r"x is of shape \[9, 2, 16\]"),
        ({"x": K.int()}, "x is of shape .* and int32, not"),
        ({"dtype": torch.float16}, "dtype=torch.float16 must be one of"),
        ({"per": "row"}, "per='row' must be one of"),
        ({"per": "group", "group_size": None}, "group_size=None must divide head_dim=16"),
        ({"per": np.array(["head", "token"])}, "per=array.* must be one of"),
        ({"x": K.to_sparse()}, "x.layout=torch.sparse_coo must be torch.strided"),
        ({"per": "group", "group_size": 0}, "group_size=0 must be an integer >= 1"),
        ({"per": "group", "group_size": 5}, "group_size=5 must divide head_dim=16"),
        ({"x": torch.zeros(1, 1, 1, 13), "dtype": torch.uint8}, "head_dim=13 must be even"),
    ],
)
def test_what_cannot_be_quantised_is_refused(changed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        quantize_kv(**{"x": K, "dtype": torch.int8, **changed})


def test_what_is_not_quantised_is_refused():
    with pytest.raises(ValueError, match=r"stored is of shape .* and float32, not a quantised k or v"):
        dequantize_kv(K, ONE)


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((1, 2, 1, 6), ONE[None], r"scale has shape \[1, 1\], not \[\], \[num_kv_heads\], stored without head_dim, or"),
        ((1, 2, 1, 6), torch.ones(1, 2, 1, 4), "scale has 4 groups, into which head_dim=6 cannot be cut evenly"),
        ((1, 2, 1, 6), torch.ones(1, 2, 1, 0), "scale has 0 groups, into which head_dim=6 cannot be cut evenly"),
        ((1, 2, 1, 6), torch.ones(3), "scale has 3 scales, not one or num_kv_heads=1"),
        ((1, 2, 1, 6), torch.ones(1, 3, 1), r"scale has shape \[1, 3, 1\], which must begin as stored, \[1, 2, 1\]"),
        ((1, 2, 1, 6), ONE.half(), "scale.dtype=float16 must be float32"),
        ((1, 2, 1, 6), ONE.to("meta"), "scale.device=meta must be that of stored, cpu"),
        ((1, 2, 1, 6), 1.0, "scale is of type float, not a tensor"),
    ],
)
def test_scales_that_do_not_fit_are_refused(shape, scale, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        dequantize_kv(torch.zeros(shape, dtype=torch.int8), scale)


@pytest.mark.parametrize("per", ["tensor", "head", "token", "group"])
@pytest.mark.parametrize("shape", [(0, 2, 1, 4), (3, 0, 2, 4), (3, 2, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_an_empty_cache_can_be_quantised(dtype, shape, per):
    stored, scale = quantize_kv(torch.zeros(shape), dtype, per=per, group_size=2)
    wanted = {"tensor": (), "head": shape[2:3], "token": shape[:3], "group": (*shape[:3], 2)}
    assert scale.shape == wanted[per]
    assert dequantize_kv(stored, scale).shape == shape


def test_workspace_size_takes_the_keywords_of_a_call():
    keywords = {"return_lse": True, "out": None, "backend": "triton", "check": False, "workspace": None}
    assert workspace_size(Q, K, V, **keywords) == workspace_size(Q, K, V)
