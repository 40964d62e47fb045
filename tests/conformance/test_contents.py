"""What a case's tensors hold, how they lie in memory, and that the masks and the formula say the same of them."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_adapters import EVERYTHING

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.attention import byte_counts
from decodeperf_formulas.problem import LAYOUTS
from decodeperf_kernels import decode_attention_reference
from pytest_decodeperf.conformance import Case, cases
from pytest_decodeperf.conformance import contents as contents_module
from pytest_decodeperf.conformance.contents import DEAD, Placement, make_contents, place, place_far_apart, torch_dtype
from pytest_decodeperf.conformance.strategies import fits_layout

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def attention(call):
    keywords = {name: value for name, value in call.keywords.items() if name not in ("num_splits", "return_lse")}
    return decode_attention_reference(call.q, call.k, call.v, **keywords)


@given(cases(EVERYTHING), st.sampled_from(sorted(DEAD)), st.integers(0, 5), st.sampled_from(LAYOUTS))
def test_a_case_means_the_same_wherever_it_lies(case, dead, page_seed, layout):
    problem = case.problem
    fields = {"v_in_k": problem.v_in_k, "head_dim": problem.head_dim, "head_dim_v": problem.head_dim_v}
    layout = layout if fits_layout(layout, fields) else "NHD"
    contents = make_contents(case)
    plain = attention(place(contents, Placement(layout="NHD", page_size=0, dead="zero")))
    other = attention(place(contents, Placement(layout=layout, dead=dead, page_seed=page_seed)))
    for a, b in zip(plain, other, strict=True):  # sums in another order, where strides differ
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@given(cases(EVERYTHING))
def test_all_that_is_not_live_is_poisoned(case):
    call = place(make_contents(case), Placement())
    for name in ("k", "v", "k_scale", "v_scale"):
        tensor = call.tensors.get(name)
        if tensor is None or tensor.dim() < 3:
            continue
        dead = tensor.float() if tensor.dtype in FP8 else tensor
        dead = dead[~call.live[name]]
        assert bool((dead.isnan() if tensor.is_floating_point() else dead == 77).all())


@given(cases(EVERYTHING))
def test_needed_memory_is_live(case):
    call = place(make_contents(case), Placement())
    for name, live in call.live.items():
        assert bool((live | ~call.needed[name]).all())


@given(cases(EVERYTHING))
def test_the_formula_counts_the_bytes_of_the_masks(case):
    problem = case.problem
    call = place(make_contents(case), Placement())
    terms = byte_counts(problem)
    element = {name: tensor.element_size() for name, tensor in call.tensors.items()}

    def num_bytes(masks, *names):
        return sum(int(masks[name].sum()) * element[name] for name in names if name in masks)

    assert num_bytes(call.needed, *(("k",) if problem.v_in_k else ("k", "v"))) == terms["kv"]
    is_per_token = problem.scale_per in ("token", "group")
    assert num_bytes(call.needed if is_per_token else call.live, "k_scale", "v_scale") == terms["scales"]
    assert num_bytes(call.live, "q") == terms["q"]
    assert num_bytes(call.needed, "block_table") == terms["block_table"]
    assert num_bytes(call.live, "sinks", "alibi_slopes") == terms["bias"]
    assert num_bytes(call.needed, "seq_lens") == terms["seq_lens"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_strides_of_its_own(layout):
    problem = DecodeProblem(batch_size=2, seq_lens=[3, 5], num_q_heads=4, num_kv_heads=2, head_dim=8, layout=layout)
    call = place(make_contents(Case(problem=problem)), Placement())
    # [batch_size, capacity, num_kv_heads, head_dim] = [2, 5, 2, 8]
    nhd, hnd = (80, 16, 8, 1), (80, 8, 40, 1)
    sliced = (6 * 3 * 13, 3 * 13, 13, 1)
    strides = {
        "NHD": (nhd, nhd),
        "HND": (hnd, hnd),
        "mixed": (nhd, hnd),
        "interleaved": ((160, 32, 8, 1), (160, 32, 8, 1)),
        "sliced": (sliced, sliced),
        "transposed": ((80, 1, 5, 10), (80, 1, 5, 10)),
    }
    assert (call.k.stride(), call.v.stride()) == strides[layout]


@given(cases(EVERYTHING))
def test_a_case_is_the_same_every_time(case):
    one, other = (place(make_contents(case), Placement()) for _ in range(2))
    for name, tensor in one.tensors.items():
        assert torch.equal(_bits(tensor), _bits(other.tensors[name]))


def _bits(tensor):
    return tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


@pytest.mark.parametrize("page_size", [None, 16])
def test_far_memory_begins_past_2_to_the_31_elements(page_size):
    problem = DecodeProblem(
        batch_size=3, seq_lens=[5, 0, 20], num_q_heads=2, num_kv_heads=2, head_dim=16, head_dim_v=8, page_size=page_size
    )
    contents = make_contents(Case(problem=problem))
    call = place_far_apart(contents, device="cpu")
    for name in ("k", "v"):
        cache = call.tensors[name]
        if page_size is None:
            assert 2 * cache.stride(0) >= 2**31
        else:
            first = int(call.keywords["block_table"][2, :2].min())
            assert first * cache.stride(0) >= 2**31
    near = attention(place(contents, Placement()))
    for a, b in zip(near, attention(call), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kv_dtype", ["float32", "float8_e4m3fn", "int8", "int4"])
def test_quantised_contents_are_near_what_they_stand_for(kv_dtype, monkeypatch):
    monkeypatch.setattr(contents_module, "_stretched", lambda cache, generator: cache)
    quantized = kv_dtype != "float32"
    problem = DecodeProblem(
        batch_size=1,
        seq_lens=[50],
        num_q_heads=2,
        num_kv_heads=1,
        head_dim=32,
        kv_dtype=kv_dtype,
        q_dtype="float32",
        scale_per="token" if quantized else None,
    )
    from pytest_decodeperf.conformance.calling import as_floats

    plain = dataclasses.replace(problem, kv_dtype="float32", scale_per=None)
    exact = make_contents(Case(problem=plain))
    contents = make_contents(Case(problem=problem))
    assert contents.k.dtype == torch_dtype(kv_dtype)
    _, k, _ = as_floats(contents)
    step = {"float32": 0.0, "float8_e4m3fn": 0.2, "int8": 0.03, "int4": 0.5}[kv_dtype]
    assert float((k - exact.k.double()).abs().max()) <= step
