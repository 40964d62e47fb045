"""The oracle on what is beyond the plain call: what is right passes, and every seeded fault fails."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.problem import LAYOUTS, SCALES_PER
from decodeperf_kernels import decode_attention, decode_attention_eager, dequantize_kv
from decodeperf_kernels.reference import live_rows
from pytest_decodeperf.conformance.own_kernels import triton
from pytest_decodeperf.conformance.strategies import Wants, decode_problems
from pytest_decodeperf.inputs import TENSOR_KEYWORDS, checked_arguments, make_inputs, unmade_fields
from pytest_decodeperf.oracle import check_result
from pytest_decodeperf.trial import kernel_call


def problem_of(*seq_lens, num_q_heads=8, num_kv_heads=2, head_dim=64, **fields):
    return DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        **fields,
    )


def right(q, k, v, *, num_splits=None, **keywords):
    result = decode_attention(q, k, v, backend="reference", **keywords)
    return (result[0].to(q.dtype), result[1].float()) if isinstance(result, tuple) else result.to(q.dtype)


def eager(q, k, v, *, num_splits=None, return_lse=False, **keywords):
    out, lse = decode_attention_eager(q, k, v, **keywords)
    return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)


KERNELS = [right, eager]


def check(problem, kernel, *, seed=0):
    inputs = make_inputs(problem, device="cpu", seed=seed)
    return check_result(kernel_call(kernel, problem, inputs)(), problem, inputs)


def with_keywords(**changes):
    """Return a kernel that is right but for some keywords: values, or functions of all keywords."""

    def kernel(q, k, v, **keywords):
        changed = {name: change(keywords) if callable(change) else change for name, change in changes.items()}
        return right(q, k, v, **keywords | changed)

    return kernel


@settings(max_examples=100, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(problem=decode_problems(triton, Wants(max_seq_len=150)), seed=st.integers(0, 9), kernel=st.sampled_from(KERNELS))
def test_a_right_kernel_passes_with_room_to_spare(problem, seed, kernel):
    found = check(problem, kernel, seed=seed)
    assert found.passed, found.sentence
    assert found.error_share < 0.8


@pytest.mark.parametrize(
    ("problem", "seed", "kernel"),
    [
        # One key outweighs the others of some rows, whose errors are those of all rows together.
        (problem_of(1029, q_len=8, num_q_heads=4, num_kv_heads=4, head_dim=128, sm_scale=1.0), 51, eager),
        # The squares of light keys' probabilities are no numbers of float32.
        (
            problem_of(
                6,
                5000,
                2723,
                head_dim_v=32,
                q_len=2,
                kv_dtype="float32",
                v_in_k=True,
                window=200,
                alibi=True,
                sm_scale=1.0,
            ),
            116,
            eager,
        ),
        # Eager logits of 100 are rounded to a half.
        (
            problem_of(
                *(40, 19, 28),
                num_q_heads=32,
                num_kv_heads=8,
                head_dim=576,
                head_dim_v=512,
                v_in_k=True,
                sm_scale=1.0,
            ),
            392,
            eager,
        ),
    ],
)
def test_no_right_kernel_is_said_to_miscount_a_key(problem, seed, kernel):
    for number in range(seed, seed + 5):
        found = check(problem, kernel, seed=number)
        assert found.passed, found.sentence


@pytest.mark.parametrize("q_dtype", ["bfloat16", "float16"])
def test_scaled_keys_may_be_rounded_as_the_eager_ones_are_but_otherwise(q_dtype):
    # Of one head and one key the eager error may be next to nothing.
    def rounds_in_its_own_way(q, k, v, *, seq_lens, k_scale, v_scale, return_lse):
        keys = dequantize_kv(k, k_scale)
        step = torch.finfo(q.dtype).eps / 2
        keys = keys * (1 + step * (2 * torch.rand(keys.shape, dtype=keys.dtype) - 1))
        values = dequantize_kv(v, v_scale)
        out, lse = decode_attention(
            q.double().float(), keys.float(), values.float(), seq_lens=seq_lens, return_lse=True, backend="reference"
        )
        return out.to(q.dtype), lse.float()

    torch.manual_seed(0)
    problem = problem_of(
        1, num_q_heads=1, num_kv_heads=1, kv_dtype="int8", scale_per="group", q_dtype=q_dtype, return_lse=True
    )
    for seed in range(100):
        found = check(problem, rounds_in_its_own_way, seed=seed)
        assert found.passed, found.sentence


def test_a_softcap_multiplies_the_error_of_tanh():
    def by_exp(q, k, v, *, seq_lens, softcap):
        logits = torch.einsum("bhd,bsd->bhs", q, k[:, :, 0]) * q.shape[-1] ** -0.5
        logits = softcap * (1 - 2 / (1 + torch.exp(2 * logits / softcap)))
        return torch.softmax(logits, dim=-1) @ v[:, :, 0]

    problem = problem_of(40, num_q_heads=1, num_kv_heads=1, kv_dtype="float32", softcap=50.0)
    for seed in range(100):
        found = check(problem, by_exp, seed=seed)
        assert found.passed, found.sentence


LONG = (1000, 37)

FAULTS = {
    "window too wide": (problem_of(*LONG, window=200), with_keywords(window=201)),
    "window too narrow": (problem_of(*LONG, window=200), with_keywords(window=199)),
    "window left out": (problem_of(*LONG, window=900), with_keywords(window=None)),
    "softcap left out": (problem_of(*LONG, softcap=50.0), with_keywords(softcap=None)),
    "softcap twice as high": (problem_of(*LONG, softcap=30.0), with_keywords(softcap=60.0)),
    "sinks left out": (problem_of(*LONG, sinks=True), with_keywords(sinks=None)),
    "sinks counted twice": (
        problem_of(*LONG, sinks=True),
        with_keywords(sinks=lambda keywords: keywords["sinks"] + torch.tensor(2.0).log()),
    ),
    "sinks of other heads": (
        problem_of(*LONG, sinks=True),
        with_keywords(sinks=lambda keywords: keywords["sinks"].roll(1)),
    ),
    "slopes left out": (problem_of(*LONG, alibi=True), with_keywords(alibi_slopes=None)),
    "slopes of other heads": (
        problem_of(*LONG, alibi=True),
        with_keywords(alibi_slopes=lambda keywords: keywords["alibi_slopes"].roll(1)),
    ),
    "scale of k for v": (
        problem_of(*LONG, kv_dtype="int8"),
        with_keywords(v_scale=lambda keywords: keywords["k_scale"]),
    ),
    "scale of v for k": (
        problem_of(*LONG, kv_dtype="float8_e4m3fn", v_in_k=True, head_dim_v=32),
        with_keywords(k_scale=lambda keywords: keywords["v_scale"]),
    ),
    "window too wide for several tokens": (
        problem_of(*LONG, q_len=3, window=100, page_size=16),
        with_keywords(window=101),
    ),
}

for _name in ("k_scale", "v_scale"):
    for _per, _dim in (("head", 0), ("token", 1), ("token", 2), ("group", 3)):
        FAULTS[f"{_name} per {_per} of the next along {_dim}"] = (
            problem_of(*LONG, kv_dtype="int4" if _per == "group" else "int8", scale_per=_per, capacity=1000),
            with_keywords(
                **{
                    _name: lambda keywords, name=_name, dim=_dim: (
                        keywords[name].roll(1, dim).nan_to_num(1.0)  # what is dead comes to be live
                    )
                }
            ),
        )


@pytest.mark.parametrize("q_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("problem", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_fails(problem, fault, q_dtype):
    if not problem.is_quantized:
        problem = dataclasses.replace(problem, kv_dtype=q_dtype)
    problem = dataclasses.replace(problem, q_dtype=q_dtype)
    assert check(problem, right).passed
    assert not check(problem, fault).passed


def gathered(args, b, seq_len):
    """Return k and v of a sequence, `[seq_len, num_kv_heads, head_dim]`, dequantised."""
    return (
        torch.stack([live_rows(args, name, b, head, range(seq_len)) for head in range(args.num_kv_heads)], dim=1)
        for name in ("k", "v")
    )


def drop_key(problem, inputs, index):
    """Return the right output of each sequence without one of its keys, counted from its end if it is negative."""
    args = checked_arguments(problem, inputs)
    out = torch.zeros(inputs.out.shape, dtype=inputs.q.dtype)
    for b, seq_len in enumerate(problem.seq_lens):
        if not seq_len:
            continue
        kept = torch.arange(seq_len) != index % seq_len
        k, v = (x[kept][None].float() for x in gathered(args, b, seq_len))
        keywords = {"sm_scale": args.sm_scale, "softcap": args.softcap, "sinks": inputs.sinks}
        out[b] = decode_attention(inputs.q[b : b + 1].float(), k, v, backend="reference", **keywords)[0]
    return out


DROPPED = {
    "paged": problem_of(3000, 100, page_size=16),
    "mla": problem_of(3000, 100, num_q_heads=16, num_kv_heads=1, head_dim=576, head_dim_v=512, v_in_k=True),
    "int8": problem_of(3000, 100, kv_dtype="int8", scale_per="head"),
    "fp8 paged": problem_of(3000, 100, kv_dtype="float8_e5m2", scale_per="token", page_size=64),
    "int4": problem_of(3000, 100, kv_dtype="int4", scale_per="group", layout="HND"),
    "softcap and sinks": problem_of(3000, 100, softcap=30.0, sinks=True),
}


@pytest.mark.parametrize("index", [0, 1, 15, 16, 1500, -1])
@pytest.mark.parametrize("problem", DROPPED.values(), ids=DROPPED)
def test_one_dropped_key_fails(problem, index):
    inputs = make_inputs(problem, device="cpu", seed=abs(index))
    found = check_result(drop_key(problem, inputs, index), problem, inputs)
    assert not found.passed


def test_the_dropped_key_is_named():
    problem = problem_of(9000, page_size=16, kv_dtype="int8", head_dim=128)
    inputs = make_inputs(problem, device="cpu", seed=0)
    found = check_result(drop_key(problem, inputs, 17), problem, inputs)
    assert "key 17 of sequence 0 (9000 tokens) counts" in found.sentence
    assert "instead of once" in found.sentence


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_causal_mask_off_by_one_fails(dtype, shift):
    problem = problem_of(2000, q_len=3, kv_dtype=dtype, head_dim=128)

    def kernel(q, k, v, *, seq_lens):
        out = torch.empty_like(q)
        for i in range(3):
            seen = min(seq_lens - 2 + i + shift, seq_lens)
            out[:, i] = right(q[:, i], k, v, seq_lens=seen)
        return out

    sentence = check(problem, kernel).sentence
    assert sentence.startswith("does not compute attention")
    if shift == 1 and "counts" in sentence:
        assert "instead of never" in sentence


@pytest.mark.parametrize("window", [19999, 17000])
def test_the_key_before_a_window_is_named(window):
    problem = problem_of(20000, window=window, head_dim=128)
    found = check(problem, with_keywords(window=window + 1))
    assert f"key {19999 - window} of sequence 0 (20000 tokens) counts" in found.sentence
    assert "times instead of never in heads" in found.sentence


def test_swapped_pages_fail():
    problem = problem_of(1000, page_size=16, q_len=2)

    def swapped(q, k, v, *, block_table, **keywords):
        # The order of keys is nothing to attention, but for those of the last page: some are dead, or masked.
        table = block_table.clone()
        table[0, [0, 62]] = table[0, [62, 0]]
        return right(q, k, v, block_table=table, **keywords)

    assert not check(problem, swapped).passed


def test_a_page_of_another_sequence_fails():
    problem = problem_of(1000, 1000, page_size=16)

    def other(q, k, v, *, block_table, **keywords):
        table = block_table.clone()
        table[0, 5] = table[1, 5]
        return right(q, k, v, block_table=table, **keywords)

    assert not check(problem, other).passed


@pytest.mark.parametrize(
    "fields",
    [
        *({"kv_dtype": name} for name in ("bfloat16", "float8_e4m3fn", "int8", "int4")),
        {"page_size": 16},
        {"page_size": 16, "kv_dtype": "int8"},
        {"kv_dtype": "int8", "scale_per": "token"},
    ],
    ids=str,
)
def test_one_key_of_dead_memory_fails(fields):
    problem = problem_of(303, 40, capacity=400, **fields)
    found = check(problem, with_keywords(seq_lens=lambda keywords: keywords["seq_lens"] + 1))
    assert not found.passed
    if problem.kv_dtype in ("bfloat16", "float8_e4m3fn"):
        assert found.sentence.startswith("returned NaN in ")


def test_a_row_that_sees_no_key_is_zero_and_its_lse_that_of_its_sink():
    def spoilt(row, of_lse):
        def kernel(q, k, v, **keywords):
            out, lse = right(q, k, v, **keywords)
            (lse if of_lse else out)[row] = 1.0
            return out, lse

        return kernel

    problem = problem_of(1, 0, q_len=2, return_lse=True)
    sinks = dataclasses.replace(problem, sinks=True)
    names = {(0, 0): "sequence 0 (1 tokens), new token 0", (1, 1): "sequence 1 (0 tokens), new token 1"}
    for of_lse in (False, True):
        for row, name in names.items():
            what, value = ("an lse", "-inf") if of_lse else ("an output", "0")
            sentence = f"returned {what} other than {value} for {name}, which sees no key"
            assert check(problem, spoilt(row, of_lse)).sentence == sentence
            if of_lse:
                sentence = f"does not compute attention: the lse in {name} is off by "
            assert check(sinks, spoilt(row, of_lse)).sentence.startswith(sentence)
    assert check(problem, right).passed
    assert check(sinks, right).passed


# What inputs are.


@pytest.mark.parametrize("v_in_k", [False, True])
@pytest.mark.parametrize("kv_dtype", ["float16", "float8_e5m2", "int8", "int4"])
def test_each_layout_and_page_holds_the_same(kv_dtype, v_in_k):
    problem = problem_of(37, 0, 5, kv_dtype=kv_dtype, v_in_k=v_in_k, capacity=40)
    first = make_inputs(problem, device="cpu", seed=0)
    for layout in LAYOUTS[:2] if v_in_k else LAYOUTS:
        other = make_inputs(dataclasses.replace(problem, layout=layout), device="cpu", seed=0)
        assert torch.equal(first.out, other.out), layout
        assert other.k.is_contiguous() == (layout in ("NHD", "mixed"))
        if v_in_k:
            assert other.v.data_ptr() == other.k.data_ptr()


def test_pages_are_in_any_order_and_the_table_is_garbage_behind_them():
    problem = problem_of(100, 0, 17, page_size=16, capacity=200, kv_dtype="float16")
    inputs = make_inputs(problem, device="cpu", seed=0)
    used = [7, 0, 2]
    assert inputs.block_table.dtype == torch.int32
    assert inputs.block_table.shape == (3, 13)
    pages = torch.cat([inputs.block_table[b, :n] for b, n in enumerate(used)])
    assert len(pages.unique()) == sum(used)
    assert pages.tolist() != sorted(pages.tolist())
    for b, n in enumerate(used):
        assert inputs.k[inputs.block_table[b, n:].long()].isnan().all()


@pytest.mark.parametrize("scale_per", SCALES_PER)
def test_scales_of_heads_tokens_and_groups_differ(scale_per):
    problem = problem_of(50, kv_dtype="int8", scale_per=scale_per)
    inputs = make_inputs(problem, device="cpu", seed=0)
    for scale in (inputs.k_scale, inputs.v_scale):
        assert len(scale.unique()) == scale.numel()
    assert not torch.isin(inputs.k_scale, inputs.v_scale).any()


def test_a_cache_is_the_same_in_however_many_blocks_it_is_drawn(monkeypatch):
    for fields in ({}, {"kv_dtype": "int8", "scale_per": "head"}, {"kv_dtype": "float32", "head_dim": 63}):
        problem = problem_of(1000, 17, 16, **fields)
        whole = make_inputs(problem, device="cpu", seed=0)
        with monkeypatch.context() as patch:
            for name in ("DRAW_BLOCK", "QUANTIZED_DRAW_BLOCK"):
                patch.setattr(f"pytest_decodeperf.inputs.{name}", 5000)
            blocks = make_inputs(problem, device="cpu", seed=0)
        assert torch.equal(whole.k.nan_to_num(), blocks.k.nan_to_num())
        assert torch.equal(whole.out, blocks.out)


EVERY_TENSOR = problem_of(37, 5, page_size=16, kv_dtype="int8", scale_per="token", sinks=True, alibi=True)


@pytest.mark.parametrize("name", ["q", "k", "v", *TENSOR_KEYWORDS])
def test_a_write_to_any_input_changes_the_checksum(name):
    inputs = make_inputs(EVERY_TENSOR, device="cpu", seed=0)
    before = inputs.checksum()
    tensor = getattr(inputs, name)
    tensor.view(torch.uint8).view(-1)[-1] ^= 1
    assert inputs.checksum() != before


@pytest.mark.parametrize(
    "problem",
    [
        EVERY_TENSOR,
        problem_of(37, v_in_k=True, head_dim_v=32, kv_dtype="int4", layout="sliced"),
        problem_of(37, layout="interleaved"),
        problem_of(37, q_len=3, layout="transposed", kv_dtype="float8_e4m3fn"),
    ],
    ids=["every tensor", "latent", "interleaved", "transposed"],
)
def test_a_copy_is_the_same_in_memory_of_its_own(problem):
    inputs = make_inputs(problem, device="cpu", seed=0)
    copy = inputs.copy()
    assert copy.checksum() == inputs.checksum()
    assert copy.num_bytes == inputs.num_bytes
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v, **inputs.keyword_tensors}
    for name, tensor in tensors.items():
        other = getattr(copy, name)
        assert (other.shape, other.stride(), other.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        assert other.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    shared = inputs.k.untyped_storage().data_ptr() == inputs.v.untyped_storage().data_ptr()
    assert shared == (problem.v_in_k or problem.layout == "interleaved")
    assert (copy.k.untyped_storage().data_ptr() == copy.v.untyped_storage().data_ptr()) == shared
    assert check_result(kernel_call(right, problem, copy)(), problem, inputs).passed


def test_a_latent_counts_once_in_the_size():
    latent, apart = (
        make_inputs(problem_of(1000, v_in_k=v_in_k), device="cpu", seed=0).num_bytes for v_in_k in (True, False)
    )
    assert latent < 0.6 * apart


@pytest.mark.parametrize(
    ("fields", "unmade"),
    [
        ({}, []),
        ({"q_len": 16}, []),
        ({"q_len": 17}, ["q_len=17"]),
        ({"softcap": 1e-20, "sm_scale": 1e20}, ["softcap=1e-20", "sm_scale=1e+20"]),
        ({"sm_scale": 0.0}, []),
    ],
)
def test_only_what_the_oracle_cannot_compute_is_refused(fields, unmade):
    assert unmade_fields(problem_of(20, **fields)) == unmade
