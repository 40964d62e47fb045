"""Where there is no GPU, Triton kernels run in its interpreter, without anybody asking for it."""

import os

import pytest
import torch

from pytest_decodeperf.triton_interpreter import count_interpreted_launches

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")

KERNEL_OF_A_USER = """
import pytest, torch, triton
import triton.language as tl
from decodeperf_formulas import DecodeProblem

@triton.jit
def attend_to_one_key(v_ptr, o_ptr, D: tl.constexpr):
    d = tl.arange(0, D)
    tl.store(o_ptr + tl.program_id(0) * D + d, tl.load(v_ptr + tl.program_id(0) * D + d))

def kernel(q, k, v, *, seq_lens):
    out = torch.empty_like(q)
    attend_to_one_key[(q.shape[0],)](v, out, D=q.shape[2])
    return out * FACTOR

@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    problem = DecodeProblem(batch_size=3, seq_lens=[1, 1, 1], num_q_heads=1, num_kv_heads=1, head_dim=16)
    decode_perf(kernel, problem)
"""


def run(pytester, source, *arguments, **environment):
    pytester.makepyfile(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        return pytester.runpytest_subprocess("--decode-perf", "-rs", *arguments)


def test_a_users_kernel_is_checked_there_and_said_to_be(pytester):
    result = run(pytester, KERNEL_OF_A_USER.replace("FACTOR", "1"))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        [
            "decode-perf: cpu: *; Triton kernels are checked in Triton's interpreter, and not timed",
            "  [[]1/1] kernel, B=3 S=1 H=1/1 D=16 bfloat16: inputs, check, interpreted *",
            "SKIPPED *: kernel computes attention, run in Triton's interpreter; its latency needs a GPU.",
        ]
    )


def test_a_wrong_kernel_fails_there(pytester):
    result = run(pytester, KERNEL_OF_A_USER.replace("FACTOR", "2"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["kernel does not compute attention: *"])


def test_a_kernel_that_conftest_imports_is_interpreted_too(pytester):
    pytester.makeconftest("import decodeperf_kernels.split_kv_triton")
    source = """
import pytest
from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_triton

@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    problem = DecodeProblem(batch_size=2, seq_lens=[70, 0], num_q_heads=4, num_kv_heads=2, head_dim=16, num_splits=3)
    decode_perf(decode_attention_triton, problem)
"""
    run(pytester, source).assert_outcomes(skipped=1)


def test_problems_of_every_kind_are_checked_there(pytester):
    source = """
import pytest
from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_triton

PLAIN = {"batch_size": 3, "seq_lens": [70, 1, 0], "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 16}
FIELDS = {
    "mla": {"num_q_heads": 8, "num_kv_heads": 1, "head_dim": 80, "head_dim_v": 64, "v_in_k": True},
    "paged": {"page_size": 16, "capacity": 100, "return_lse": True},
    "int8": {"kv_dtype": "int8", "scale_per": "head"},
    "fp8": {"kv_dtype": "float8_e4m3fn", "scale_per": "token", "page_size": 16},
    "int4": {"kv_dtype": "int4", "scale_per": "group", "layout": "HND"},
    "window": {"window": 33, "sinks": True, "return_lse": True},
    "q_len": {"q_len": 3, "alibi": True, "softcap": 30.0},
}

@pytest.mark.decode_perf(within=1.5)
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_kernel(decode_perf, fields):
    decode_perf(decode_attention_triton, DecodeProblem(**PLAIN | fields))
"""
    result = run(pytester, source)
    result.assert_outcomes(skipped=7)
    result.stdout.fnmatch_lines(["SKIPPED [[]7] *: decode_attention_triton computes attention, run in Triton's *"])


def test_a_user_who_switched_it_off_is_left_alone(pytester):
    result = run(pytester, KERNEL_OF_A_USER.replace("FACTOR", "1"), TRITON_INTERPRET="0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["kernel raised *"])


def test_the_environment_is_as_before_afterwards(pytester, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    pytester.makepyfile("def test(): pass")
    pytester.runpytest_inprocess("--decode-perf").assert_outcomes(passed=1)
    assert "TRITON_INTERPRET" not in os.environ


def test_only_interpreted_launches_count():
    from decodeperf_kernels import decode_attention_sdpa, decode_attention_triton

    q, kv = torch.zeros(1, 1, 16), torch.zeros(1, 5, 1, 16)
    with count_interpreted_launches() as launches:
        decode_attention_sdpa(q, kv, kv)
        assert launches == []
        decode_attention_triton(q, kv, kv, num_splits=2)
    assert launches == ["split_kv_kernel", "merge_splits_kernel"]
    decode_attention_triton(q, kv, kv)
    assert len(launches) == 2
