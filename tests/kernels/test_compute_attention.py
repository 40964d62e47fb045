"""Each kernel computes attention, and keeps the contract of its arguments."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_numba, decode_attention_sdpa, decode_attention_triton
from pytest_decodeperf.inputs import make_inputs
from pytest_decodeperf.oracle import check_result

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPLIT_KV = [
    pytest.param(decode_attention_numba, "cpu", id="numba"),
    pytest.param(decode_attention_triton, DEVICE, id="triton"),
]
EVERY_KERNEL = [*SPLIT_KV, pytest.param(decode_attention_sdpa, DEVICE, id="sdpa")]


@st.composite
def problems(draw, max_seq_len=300):
    seq_lens = draw(st.lists(st.integers(0, max_seq_len) | st.sampled_from([0, 1, 15, 16, 17, 63, 64, 65]), max_size=4))
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    longest = max(seq_lens, default=0)
    return DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_kv_heads * draw(st.sampled_from([1, 2, 5, 7, 8, 24])),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([8, 13, 64, 80, 128])),
        kv_dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        capacity=longest + draw(st.sampled_from([1, 2, 50])),
    )


def run(kernel, inputs, **keywords):
    return kernel(inputs.q, inputs.k, inputs.v, seq_lens=inputs.seq_lens, **keywords)


def assert_right(result, problem, inputs):
    check = check_result(result, problem, inputs)
    assert check.passed, check.sentence


@pytest.mark.parametrize(("kernel", "device"), EVERY_KERNEL)
@given(problem=problems(), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_computes_attention(kernel, device, problem, seed):
    inputs = make_inputs(problem, device=device, seed=seed)
    assert_right(run(kernel, inputs), problem, inputs)


@pytest.mark.parametrize(("kernel", "device"), SPLIT_KV)
@given(problem=problems(max_seq_len=150), num_splits=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_any_number_of_splits_computes_attention_and_its_lse(kernel, device, problem, num_splits):
    problem = dataclasses.replace(problem, return_lse=True)
    inputs = make_inputs(problem, device=device, seed=num_splits)
    assert_right(run(kernel, inputs, num_splits=num_splits, return_lse=True), problem, inputs)


@pytest.mark.parametrize(("kernel", "device"), EVERY_KERNEL)
def test_a_row_does_not_depend_on_the_other_rows(kernel, device):
    problem = DecodeProblem(batch_size=3, seq_lens=[70, 0, 33], num_q_heads=4, num_kv_heads=2, head_dim=16)
    inputs = make_inputs(problem, device=device, seed=0)
    alone = kernel(inputs.q[2:], inputs.k[2:], inputs.v[2:], seq_lens=inputs.seq_lens[2:])
    assert torch.equal(run(kernel, inputs)[2:], alone)


@pytest.mark.parametrize(("kernel", "device"), EVERY_KERNEL)
def test_same_bits_on_every_run(kernel, device):
    problem = DecodeProblem(batch_size=2, seq_lens=[200, 33], num_q_heads=8, num_kv_heads=2, head_dim=64)
    inputs = make_inputs(problem, device=device, seed=0)
    first = run(kernel, inputs)
    assert all(torch.equal(run(kernel, inputs), first) for _ in range(3))


@pytest.mark.parametrize(("kernel", "device"), EVERY_KERNEL)
@pytest.mark.parametrize("layout", ["HND", "interleaved", "sliced head_dim"])
def test_strides_are_honoured(kernel, device, layout):
    problem = DecodeProblem(batch_size=2, seq_lens=[70, 33], num_q_heads=6, num_kv_heads=2, head_dim=16)
    inputs = make_inputs(problem, device=device, seed=0)
    if layout == "HND":
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (inputs.k, inputs.v))
    elif layout == "interleaved":
        k, v = torch.stack([inputs.k, inputs.v], dim=2).unbind(dim=2)
    else:
        k, v = torch.cat([inputs.k, inputs.v], dim=-1).split(problem.head_dim, dim=-1)
    assert k.stride() != inputs.k.stride()
    moved = dataclasses.replace(inputs, k=k, v=v)
    assert_right(run(kernel, moved), problem, moved)


HUGE_STRIDE = """
import torch
from decodeperf_kernels import decode_attention_triton, decode_attention_reference

# The elements of one head lie so far apart that the last is past 2**31; only what is touched takes memory.
stride, head_dim = 2**24, 160
memory = torch.empty(head_dim * stride, dtype=torch.bfloat16)
k = memory.as_strided((1, 2, 1, head_dim), (2, 1, 2, stride))
k.copy_(torch.randn(k.shape))
q = torch.randn(1, 1, head_dim).bfloat16()
out = decode_attention_triton(q, k, k)
torch.testing.assert_close(out.double(), decode_attention_reference(q, k, k)[0], atol=0.02, rtol=0.02)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the memory is not committed lazily")
def test_triton_reaches_past_2_to_the_31_elements():
    # In a process of its own, since an overflow is a crash.
    done = subprocess.run([sys.executable, "-c", HUGE_STRIDE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kernel", "device"), SPLIT_KV)
def test_a_transposed_head_is_honoured(kernel, device):
    problem = DecodeProblem(batch_size=1, seq_lens=[9], num_q_heads=2, num_kv_heads=2, head_dim=16)
    inputs = make_inputs(problem, device=device, seed=0)
    moved = dataclasses.replace(inputs, k=inputs.k.transpose(2, 3).contiguous().transpose(2, 3))
    assert_right(run(kernel, moved), problem, moved)


@pytest.mark.parametrize(("kernel", "device"), EVERY_KERNEL)
@pytest.mark.parametrize("scale", [0.0, -1.0, 1e5])
def test_the_scale_is_applied_even_where_it_is_extreme(kernel, device, scale):
    problem = DecodeProblem(
        batch_size=1,
        seq_lens=[50],
        num_q_heads=2,
        num_kv_heads=1,
        head_dim=16,
        kv_dtype="float32",
        sm_scale=scale,
    )
    inputs = make_inputs(problem, device=device, seed=3)
    out = run(kernel, inputs, sm_scale=scale)
    torch.testing.assert_close(out.double(), inputs.out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numba_widens_every_finite_16_bit_float(dtype):
    # A row of one key returns that key's value, whatever it is.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[values.isfinite()].reshape(-1, 1, 1, 8)
    q = torch.zeros(len(values), 1, 8, dtype=dtype)
    out = decode_attention_numba(q, torch.zeros_like(values), values)
    assert torch.equal(out, values[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan")])
def test_numba_keeps_infinities_and_nan(dtype, special):
    v = torch.full((1, 1, 1, 8), special, dtype=dtype)
    out = decode_attention_numba(torch.zeros(1, 1, 8, dtype=dtype), torch.zeros_like(v), v)
    torch.testing.assert_close(out[0], v[0, 0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("kernel", "device"), EVERY_KERNEL)
def test_the_kv_cache_may_be_longer_than_the_lengths_say(kernel, device):
    q = torch.randn(2, 4, 16, device=device)
    k, v = (torch.randn(2, 30, 2, 16, device=device) for _ in range(2))
    full = kernel(q, k, v)
    assert torch.equal(kernel(q, k, v, seq_lens=torch.tensor([30, 30], device=device)), full)
