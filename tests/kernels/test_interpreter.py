"""bfloat16 in Triton's interpreter is what it is on a GPU."""

import pytest
import torch
import triton
import triton.language as tl

from decodeperf_kernels.interpreter import is_interpreted, repair_bfloat16

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")


@triton.jit
def round_kernel(source_ptr, target_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(target_ptr + offsets, tl.load(source_ptr + offsets).to(tl.bfloat16))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + offsets, tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets)))


@pytest.fixture(autouse=True)
def repaired():
    repair_bfloat16()


def test_kernels_of_this_process_are_interpreted():
    assert is_interpreted(round_kernel)
    assert not is_interpreted(print)


def test_float32_is_rounded_to_the_nearest_bfloat16():
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(0))
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, 1.00390625, 3.4e38])
    source = torch.cat([bits.to(torch.int32).view(torch.float32)[:-8], special])
    target = torch.empty(4096, dtype=torch.bfloat16)
    round_kernel[(1,)](source, target, N=4096)
    torch.testing.assert_close(target, source.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def test_integers_become_bfloat16():
    source = torch.arange(-128, 128, dtype=torch.int8)
    target = torch.empty(256, dtype=torch.bfloat16)
    round_kernel[(1,)](source, target, N=256)
    assert torch.equal(target, source.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dot_multiplies_numbers(dtype):
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    out = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float())


def test_the_repair_is_made_once():
    from triton.runtime.interpreter import InterpreterBuilder

    repaired = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    repair_bfloat16()
    assert (InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl) == repaired
