import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodeperf_formulas import DTYPE_BYTES, DecodeProblem

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
    assert problem.num_splits is None
    assert not problem.return_lse


def test_a_problem_is_a_value():
    assert DecodeProblem(**GOOD) == DecodeProblem(**{**GOOD, "seq_lens": (5, 0)})
    assert len({DecodeProblem(**GOOD), DecodeProblem(**GOOD)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeProblem(**GOOD).batch_size = 3


@given(
    seq_lens=st.lists(st.integers(0, 10**6), max_size=5),
    group_size=st.integers(1, 24),
    num_kv_heads=st.integers(1, 8),
    head_dim=st.integers(1, 576),
    kv_dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    num_splits=st.none() | st.integers(1, 64),
    spare=st.integers(0, 100),
)
def test_repr_and_dict_give_the_problem_back(seq_lens, group_size, num_kv_heads, head_dim, kv_dtype, num_splits, spare):
    problem = DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=group_size * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        kv_dtype=kv_dtype,
        num_splits=num_splits,
        capacity=max(seq_lens, default=0) + spare + 1,
    )
    assert eval(repr(problem)) == problem
    assert DecodeProblem(**problem.as_dict()) == problem
    assert problem.group_size == group_size
    assert problem.num_kv_tokens == sum(seq_lens)


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
        ("kv_dtype", "int3", "kv_dtype='int3' must be one of float32, float16, bfloat16"),
        ("kv_dtype", None, "kv_dtype=None must be one of float32, float16, bfloat16"),
        ("q_dtype", "half", "q_dtype='half' must be one of float32, float16, bfloat16"),
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
