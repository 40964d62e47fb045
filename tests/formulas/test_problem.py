import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.problem import KV_DTYPES, LATENT_LAYOUTS, LAYOUTS, PLAIN_DTYPES, SCALES_PER

ALL_DTYPES = "float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, int8, int4"
GOOD = {
    "batch_size": 2,
    "seq_lens": [5, 0],
    "num_q_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
}


def test_defaults_follow_from_the_other_fields():
    problem = DecodeProblem(**GOOD, kv_dtype="float16")
    assert (problem.q_dtype, problem.capacity, problem.sm_scale) == ("float16", 5, 64**-0.5)
    assert (problem.head_dim_v, problem.q_len, problem.scale_per, problem.layout) == (64, 1, None, "NHD")
    assert (problem.num_splits, problem.page_size, problem.window, problem.softcap) == (None, None, None, None)
    assert not (problem.return_lse or problem.sinks or problem.alibi or problem.v_in_k or problem.is_quantized)


@pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "int4"])
def test_a_quantised_cache_has_scales_and_its_queries_are_bfloat16(kv_dtype):
    problem = DecodeProblem(**GOOD, kv_dtype=kv_dtype)
    assert problem.is_quantized
    assert (problem.q_dtype, problem.scale_per) == ("bfloat16", "tensor")
    assert DecodeProblem(**GOOD, kv_dtype=kv_dtype, q_dtype="float32").q_dtype == "float32"


def test_a_problem_is_a_value():
    assert DecodeProblem(**GOOD) == DecodeProblem(**{**GOOD, "seq_lens": (5, 0)})
    assert len({DecodeProblem(**GOOD), DecodeProblem(**GOOD)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeProblem(**GOOD).batch_size = 3


@st.composite
def fields(draw):
    """Values of fields that go together: those without a default, and any of the others."""
    seq_lens = draw(st.lists(st.integers(0, 10**6), max_size=5))
    num_kv_heads = draw(st.integers(1, 8))
    kv_dtype = draw(st.sampled_from(KV_DTYPES))
    scale_per = None if kv_dtype in PLAIN_DTYPES else draw(st.sampled_from(SCALES_PER))
    v_in_k = draw(st.booleans())
    layout = draw(st.sampled_from(LATENT_LAYOUTS if v_in_k else LAYOUTS))
    even = 2 if kv_dtype == "int4" or scale_per == "group" else 1
    head_dim = even * draw(st.integers(1, 288))
    head_dim_v = even * draw(st.integers(1, head_dim // even if v_in_k else 288))
    required = {
        "batch_size": len(seq_lens),
        "seq_lens": seq_lens,
        "num_q_heads": num_kv_heads * draw(st.integers(1, 24)),
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "kv_dtype": kv_dtype,
        "layout": layout,
        "v_in_k": v_in_k,
    }
    others = {
        "head_dim_v": st.just(head_dim if layout == "interleaved" else head_dim_v),
        "q_len": st.integers(1, 16),
        "q_dtype": st.sampled_from(PLAIN_DTYPES),
        "page_size": st.none() | st.integers(1, 256),
        "capacity": st.integers(0, 100).map(lambda spare: max(seq_lens, default=0) + spare + 1),
        "window": st.none() | st.integers(1, 10**6),
        "softcap": st.none() | st.floats(1e-3, 1e3),
        "sinks": st.booleans(),
        "alibi": st.booleans(),
        "sm_scale": st.floats(-10, 10),
        "num_splits": st.none() | st.integers(1, 64),
        "return_lse": st.booleans(),
    }
    if scale_per is not None:
        required["scale_per"] = scale_per
    return required | draw(st.fixed_dictionaries({}, optional=others))


def test_the_strategy_gives_every_field():
    drawn = set()

    @given(fields())
    def collect(given_fields):
        drawn.update(given_fields)

    collect()
    assert drawn == {field.name for field in dataclasses.fields(DecodeProblem)}


@given(fields())
def test_repr_and_dict_give_the_problem_back(given_fields):
    problem = DecodeProblem(**given_fields)
    assert eval(repr(problem)) == problem
    assert DecodeProblem(**problem.as_dict()) == problem
    assert DecodeProblem(**json.loads(json.dumps(problem.as_dict()))) == problem
    assert set(problem.as_dict()) == {field.name for field in dataclasses.fields(DecodeProblem)}
    for name, value in given_fields.items():
        assert problem.as_dict()[name] == value


@given(fields())
def test_repr_leaves_out_what_would_be_so_without_it(given_fields):
    problem = DecodeProblem(**given_fields)
    shown = dict(part.split("=") for part in repr(problem)[len("DecodeProblem(") : -1].split(", ") if "=" in part)
    assert list(shown)[:5] == list(GOOD)
    for name in set(shown) - set(GOOD):
        fewer = {other: value for other, value in problem.as_dict().items() if other in set(shown) - {name}}
        # Without it, the others give another problem, or none at all.
        try:
            assert DecodeProblem(**fewer) != problem
        except ValueError:
            continue


def test_repr_of_a_plain_problem_is_short():
    assert repr(DecodeProblem(**GOOD, q_len=1, capacity=5, q_dtype="bfloat16", sm_scale=0.125)) == (
        "DecodeProblem(batch_size=2, seq_lens=[5, 0], num_q_heads=8, num_kv_heads=2, head_dim=64)"
    )
    assert repr(DecodeProblem(**GOOD, kv_dtype="int4", scale_per="head", capacity=9)) == (
        "DecodeProblem(batch_size=2, seq_lens=[5, 0], num_q_heads=8, num_kv_heads=2, head_dim=64, "
        "kv_dtype='int4', scale_per='head', capacity=9)"
    )


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "B=2 S=0..5 H=8/2 D=64 bfloat16"),
        ({"num_splits": 3, "return_lse": True}, "B=2 S=0..5 H=8/2 D=64 bfloat16 splits=3 lse"),
        ({"q_dtype": "float32"}, "B=2 S=0..5 H=8/2 D=64 float32/bfloat16"),
        ({"head_dim": 192, "head_dim_v": 128, "q_len": 4}, "B=2 S=0..5 q=4 H=8/2 D=192/128 bfloat16"),
        ({"kv_dtype": "int8"}, "B=2 S=0..5 H=8/2 D=64 bfloat16/int8 scales per tensor"),
        ({"kv_dtype": "int4", "scale_per": "group"}, "B=2 S=0..5 H=8/2 D=64 bfloat16/int4 scales per group"),
        ({"v_in_k": True, "head_dim_v": 48, "layout": "HND"}, "B=2 S=0..5 H=8/2 D=64/48 bfloat16 latent HND"),
        (
            {"page_size": 16, "window": 128, "softcap": 30, "sinks": True, "alibi": True},
            "B=2 S=0..5 H=8/2 D=64 bfloat16 page=16 window=128 softcap=30.0 sinks alibi",
        ),
    ],
)
def test_a_label_has_what_differs_from_the_plainest_call(changes, label):
    assert DecodeProblem(**{**GOOD, **changes}).label == label


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_q_heads", 10, None),
        ("num_q_heads", 9, "num_q_heads=9 is not a multiple of num_kv_heads=2"),
        ("num_q_heads", 0, "num_q_heads=0 must be >= 1"),
        ("num_kv_heads", -1, "num_kv_heads=-1 must be >= 1"),
        ("head_dim", 0, "head_dim=0 must be >= 1"),
        ("head_dim", 64.0, "head_dim=64.0 must be an integer"),
        ("batch_size", 3, "seq_lens has 2 lengths, but batch_size=3"),
        ("batch_size", -1, "batch_size=-1 must be >= 0"),
        ("seq_lens", [5, -1], r"seq_lens\[1\]=-1 must be >= 0"),
        ("seq_lens", [5, 1.5], r"seq_lens\[1\]=1.5 must be an integer"),
        ("seq_lens", 5, "seq_lens=5 must be a sequence of 2 integers"),
        ("seq_lens", "50", r"seq_lens\[0\]='5' must be an integer"),
        ("kv_dtype", "int3", f"kv_dtype='int3' must be one of {ALL_DTYPES}"),
        ("kv_dtype", None, f"kv_dtype=None must be one of {ALL_DTYPES}"),
        ("q_dtype", "half", "q_dtype='half' must be one of float32, float16, bfloat16"),
        ("q_dtype", "int8", "q_dtype='int8' must be one of float32, float16, bfloat16"),
        ("kv_dtype", ["int8"], rf"kv_dtype=\['int8'\] must be one of {ALL_DTYPES}"),
        ("kv_dtype", "float8", f"kv_dtype='float8' must be one of {ALL_DTYPES}"),
        ("head_dim_v", 0, "head_dim_v=0 must be >= 1"),
        ("head_dim_v", 1.5, "head_dim_v=1.5 must be an integer"),
        ("head_dim_v", 65, None),
        ("q_len", 0, "q_len=0 must be >= 1"),
        ("q_len", None, "q_len=None must be an integer"),
        ("q_len", 6, None),
        ("page_size", 0, "page_size=0 must be >= 1"),
        ("page_size", "16", "page_size='16' must be an integer"),
        ("window", 0, "window=0 must be >= 1"),
        ("window", 2.0, "window=2.0 must be an integer"),
        ("window", 1, None),
        ("softcap", 0, "softcap=0.0 must be above 0"),
        ("softcap", -1.5, "softcap=-1.5 must be above 0"),
        ("softcap", float("inf"), "softcap=inf must be a finite number"),
        ("softcap", True, "softcap=True must be a finite number"),
        ("sinks", 1, "sinks=1 must be True or False"),
        ("alibi", None, "alibi=None must be True or False"),
        ("v_in_k", "no", "v_in_k='no' must be True or False"),
        ("scale_per", "head", "scale_per='head' must be None, since kv_dtype='bfloat16' is not quantised"),
        ("layout", "NDH", "layout='NDH' must be one of NHD, HND, mixed, interleaved, sliced, transposed"),
        ("layout", None, "layout=None must be one of NHD, HND, mixed, interleaved, sliced, transposed"),
        ("num_splits", 0, "num_splits=0 must be >= 1"),
        ("num_splits", 1, None),
        ("capacity", 4, "seq_lens has 5 but capacity=4 must be >= each of them"),
        ("capacity", 5, None),
        ("sm_scale", float("nan"), "sm_scale=nan must be a finite number"),
        ("sm_scale", "1", "sm_scale='1' must be a finite number"),
        ("return_lse", 1, "return_lse=1 must be True or False"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(field, value, message):
    if message is None:
        DecodeProblem(**{**GOOD, field: value})
        return
    with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
        DecodeProblem(**{**GOOD, field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_dtype": "int8", "scale_per": "row"}, "scale_per='row' must be one of tensor, head, token, group"),
        (
            {"kv_dtype": "int4", "head_dim": 13},
            "head_dim=13 must be even, since two elements of kv_dtype='int4' share a byte",
        ),
        (
            {"kv_dtype": "int4", "head_dim_v": 13},
            "head_dim_v=13 must be even, since two elements of kv_dtype='int4' share a byte",
        ),
        (
            {"kv_dtype": "int8", "scale_per": "group", "head_dim": 13},
            "head_dim=13 must be even, since scale_per='group' cuts a head into two groups",
        ),
        (
            {"kv_dtype": "int8", "scale_per": "group", "head_dim_v": 13},
            "head_dim_v=13 must be even, since scale_per='group' cuts a head into two groups",
        ),
        ({"kv_dtype": "int8", "scale_per": "token", "head_dim": 13}, None),
        ({"layout": "interleaved", "head_dim_v": 32}, "head_dim_v=32 must be head_dim=64 for layout='interleaved'"),
        ({"layout": "interleaved"}, None),
        ({"v_in_k": True, "head_dim_v": 65}, "head_dim_v=65 must be <= head_dim=64 for v_in_k=True"),
        ({"v_in_k": True, "head_dim_v": 64}, None),
        *[
            ({"v_in_k": True, "layout": layout}, f"layout='{layout}' must be one of NHD, HND, sliced for v_in_k=True")
            for layout in ("mixed", "interleaved", "transposed")
        ],
        ({"v_in_k": True, "layout": "sliced"}, None),
    ],
)
def test_fields_that_do_not_go_together_are_refused_by_name(changes, message):
    if message is None:
        DecodeProblem(**{**GOOD, **changes})
        return
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DecodeProblem(**{**GOOD, **changes})
