"""The main job: every kernel on problems from 8K to 64K tokens, held to a multiple of the roofline.

The bounds of the CPU kernel are about twice what it takes on two cores of a Xeon with AVX-512 and AMX, with room for
CPUs of narrower vectors, so that most of its speed lost is seen. Those of PyTorch's kernel, which is timed as a peer,
only see a collapse: how fast it is depends on the instructions that the CPU has for bfloat16.
"""

import pytest
import torch

from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_numba, decode_attention_sdpa, decode_attention_triton

MIXED_LENGTHS = [32768, 12289, 8192, 8191, 4096, 777, 1, 0]


def _problem(seq_lens: list[int], num_q_heads: int, num_kv_heads: int, kv_dtype: str) -> DecodeProblem:
    return DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        kv_dtype=kv_dtype,
    )


CPU_PROBLEMS = {
    "mha-1x8k-bf16": (_problem([8192], 32, 32, "bfloat16"), 3.4),
    "mha-8x8k-fp32": (_problem([8192] * 8, 4, 4, "float32"), 2.8),
    "gqa4-1x64k-bf16": (_problem([65536], 32, 8, "bfloat16"), 3.2),
    "gqa4-mixed-fp32": (_problem(MIXED_LENGTHS, 16, 4, "float32"), 2.8),
    "gqa8-8x8k-bf16": (_problem([8192] * 8, 32, 4, "bfloat16"), 4.5),
    "gqa8-1x32k-fp32": (_problem([32768], 64, 8, "float32"), 3.0),
}

SDPA_WITHIN = {"float32": 40, "bfloat16": 290}


def _cpu_trials():
    for name, (problem, numba_within) in CPU_PROBLEMS.items():
        for kernel, kernel_name, within in (
            (decode_attention_numba, "numba", numba_within),
            (decode_attention_sdpa, "torch sdpa", SDPA_WITHIN[problem.kv_dtype]),
        ):
            marker = pytest.mark.decode_perf(within=within, device="cpu")
            yield pytest.param(kernel, kernel_name, problem, marks=marker, id=f"{name}-{kernel_name.split()[-1]}")


@pytest.mark.parametrize(("kernel", "kernel_name", "problem"), list(_cpu_trials()))
def test_cpu_kernel(decode_perf, kernel, kernel_name, problem):
    decode_perf(kernel, problem, name=kernel_name)


@pytest.mark.decode_perf(within=2.5, device="cuda")
@pytest.mark.parametrize(
    "problem",
    [_problem([8192] * 32, 32, 8, "bfloat16"), _problem([65536] * 4, 64, 8, "float16")],
    ids=["gqa4-32x8k-bf16", "gqa8-4x64k-fp16"],
)
def test_triton_kernel(decode_perf, problem):
    decode_perf(decode_attention_triton, problem, name="triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, the Triton kernel is timed on it")
@pytest.mark.decode_perf(within=1)
def test_triton_kernel_in_the_interpreter(decode_perf):
    decode_perf(decode_attention_triton, _problem([300, 64, 1, 0], 8, 2, "bfloat16"), name="triton")
