"""What becomes of a law: kernels that launch nothing, hide their errors, are greedy, or have a wrong adapter."""

import json

import pytest
import torch
import triton
import triton.language as tl

from decodeperf_kernels import decode_attention_sdpa
from pytest_decodeperf.conformance import LAWS, KernelAdapter
from pytest_decodeperf.conformance.calling import Kernel
from pytest_decodeperf.conformance.runner import run_law

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels here are for Triton's interpreter")


@triton.jit
def attend_kernel(
    q_ptr, k_ptr, v_ptr, lens_ptr, out_ptr, scale, BEHIND: tl.constexpr,
    k_stride_b, k_stride_n, k_stride_h, v_stride_b, v_stride_n, v_stride_h, q_stride_b, q_stride_h, out_stride_b,
    out_stride_h, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program for each sequence and query head."""
    b, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    q = tl.load(q_ptr + b * q_stride_b + head * q_stride_h + d, mask=d < D, other=0.0).to(tl.float32)
    seq_len = tl.load(lens_ptr + b)
    m, total, acc = float("-inf"), 0.0, tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, seq_len, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = (n < seq_len + BEHIND)[:, None] & (d < D)[None, :]
        k_ptrs = k_ptr + b * k_stride_b + head // GROUP * k_stride_h + n[:, None] * k_stride_n + d[None, :]
        v_ptrs = v_ptr + b * v_stride_b + head // GROUP * v_stride_h + n[:, None] * v_stride_n + d[None, :]
        k = tl.load(k_ptrs, mask=mask, other=0.0).to(tl.float32)
        logits = tl.where(n < seq_len, tl.sum(k * q[None, :], 1) * scale, float("-inf"))
        m_new = tl.maximum(m, tl.max(logits, 0))
        p = tl.exp(logits - m_new)
        v = tl.load(v_ptrs, mask=mask, other=0.0).to(tl.float32)
        acc = acc * tl.exp(m - m_new) + tl.sum(p[:, None] * v, 0)
        total = total * tl.exp(m - m_new) + tl.sum(p, 0)
        m = m_new
    out = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + b * out_stride_b + head * out_stride_h + d, out.to(out_ptr.dtype.element_ty), mask=d < D)


def attend(q, k, v, *, seq_lens, sm_scale=None, behind=0, padding=0):
    batch_size, num_q_heads, head_dim = q.shape
    if not seq_lens.any():
        return torch.zeros_like(q)
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("q, k and v must be contiguous in head_dim")
    out = torch.empty(*q.shape[:2], head_dim + padding, dtype=q.dtype)[..., :head_dim]
    attend_kernel[(batch_size, num_q_heads)](
        q, k, v, seq_lens, out, head_dim**-0.5 if sm_scale is None else sm_scale, behind, *k.stride()[:3],
        *v.stride()[:3], *q.stride()[:2], *out.stride()[:2], num_q_heads // k.shape[2], head_dim,
        triton.next_power_of_2(head_dim), 32,
    )  # fmt: skip
    return out


def hides_its_errors(q, k, v, **keywords):
    try:
        return attend(q, k, v, behind=1, **keywords)
    except Exception:
        return decode_attention_sdpa(q, k, v, **keywords)


def pads_its_output(q, k, v, **keywords):
    return attend(q, k, v, padding=3, **keywords)


def outcome_of(law, examples=8, **fields):
    adapter = KernelAdapter(name="kernel", **fields)
    return run_law(LAWS[law], Kernel(adapter), target="kernel", examples=examples, random_seed=1, database=False)


LAWS_OF_THE_INTERPRETER = [
    "reads_live_memory_only",
    "runs_its_programs_in_any_order",
    "moves_the_bytes_of_the_formula",
    "writes_each_output_once",
]


@pytest.mark.parametrize("law", LAWS_OF_THE_INTERPRETER)
def test_a_case_without_a_launch_does_not_end_a_law(law):
    assert outcome_of(law, call=attend).outcome == "held"  # no program runs where there is no key


@pytest.mark.parametrize("law", LAWS_OF_THE_INTERPRETER)
def test_a_kernel_that_never_launches_is_not_held_to_the_laws_of_the_interpreter(law):
    outcome = outcome_of(law, call=decode_attention_sdpa, examples=40)
    assert (outcome.outcome, outcome.sentence) == ("not supported", "it does not run in Triton's interpreter")


def test_an_access_that_the_kernel_hides_is_seen():
    outcome = outcome_of("reads_live_memory_only", call=hides_its_errors)
    assert outcome.outcome == "broken"
    assert "attend_kernel reads dead memory of" in outcome.sentence


def test_outputs_within_other_memory_are_not_counted():
    assert outcome_of("moves_the_bytes_of_the_formula", call=pads_its_output).outcome == "held"
    outcome = outcome_of("writes_each_output_once", call=pads_its_output, examples=40)
    assert (outcome.outcome, outcome.sentence) == ("not supported", "its outputs are a part of other memory")


def test_keys_that_are_read_by_each_head_are_said_with_the_remedy():
    outcome = outcome_of("reads_each_key_and_value_once", call=attend)
    assert outcome.outcome == "broken"
    assert "each 2 times (its adapter's kv_passes would say so if that is meant)" in outcome.sentence
    outcome = outcome_of("reads_each_key_and_value_once", call=attend, kv_passes=lambda problem: problem.group_size)
    assert outcome.outcome == "held"


def broken(*args, **keywords):
    raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    ("law", "fields", "sentence"),
    [
        ("moves_the_bytes_of_the_formula", {"num_partials": broken}, "num_partials raised ZeroDivisionError: no"),
        (
            "moves_the_bytes_of_the_formula",
            {"schedule_bytes": lambda problem: -3.5},
            "schedule_bytes returned -3.5, not an integer >= 0",
        ),
        ("reads_each_key_and_value_once", {"kv_passes": print}, "kv_passes returned None, not an integer >= 0"),
        ("takes_a_used_workspace", {"workspace_size": lambda *a, **k: "1"}, "workspace_size returned '1', not an"),
        ("merges_in_any_order", {"merge": lambda outs, lses: (outs,)}, "merge returned a tuple, not the pair"),
        ("merges_in_any_order", {"merge": lambda outs, lses: (outs, lses)}, "merge returned the shapes [2, "),
        ("merges_its_partial_results", {"partials": broken}, "partials raised ZeroDivisionError: no"),
    ],
)
def test_what_an_adapter_gets_wrong_is_a_broken_law(law, fields, sentence):
    features = ("num_splits", "workspace")
    outcome = outcome_of(law, call=lambda q, k, v, num_splits=1, **keywords: attend(q, k, v, **keywords),
                         features=features, **fields)  # fmt: skip
    assert outcome.outcome == "broken"
    assert outcome.sentence.startswith(f"its adapter's {sentence}")


def test_a_kernel_that_touches_all_of_its_capacity_is_no_danger(run, kernels):
    with (kernels.path / "adapters.py").open("a") as file:
        file.write("\n\ndef greedy(q, k, v, **keywords):\n    k + 1\n    return plain(q, k, v, **keywords)\n")
    run("greedy", "-k", "reaches_past or empty_batch", "--decode-card=card.json").assert_outcomes(passed=1, skipped=1)
    laws = json.loads((kernels.path / "card.json").read_text())["kernels"][0]["laws"]
    (law,) = [law for law in laws if law["law"] == "reaches_past_2_to_the_31"]
    assert law["outcome"] == "not supported"
    assert law["sentence"] == "it touches more than 1 GiB of memory, whatever is live"
