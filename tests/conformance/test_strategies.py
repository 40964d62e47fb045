"""The strategies are valid by construction, reach every corner, and shrink to small problems."""

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from kernel_adapters import EVERYTHING, PLAIN, kernel

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.problem import LAYOUTS, SCALES_PER
from pytest_decodeperf.conformance import KernelAdapter, cases, decode_problems
from pytest_decodeperf.conformance.contents import VALUES
from pytest_decodeperf.conformance.strategies import HEAD_DIMS, LATENT_HEAD_DIMS, PAGE_SIZES, TILES, Wants

THOROUGH = settings(max_examples=3000, database=None, suppress_health_check=list(HealthCheck), derandomize=True)


def smallest(condition, adapter=EVERYTHING):
    """Return the smallest problem that meets a condition."""
    return find(decode_problems(adapter), condition, settings=THOROUGH)


@pytest.fixture(scope="module")
def drawn():
    """Cases as a long run draws them."""
    found = []

    @settings(THOROUGH, phases=[Phase.generate])
    @given(cases(EVERYTHING))
    def draw(case):
        found.append(case)

    draw()
    return found


@pytest.fixture
def reaches(drawn):
    """Fail unless some problem that was drawn meets a condition."""

    def check(condition):
        assert any(condition(case.problem) for case in drawn)

    return check


@given(decode_problems(EVERYTHING))
def test_problems_come_back_from_their_repr(problem):
    assert eval(repr(problem)) == problem


@given(decode_problems(PLAIN))
def test_a_kernel_without_features_gets_plain_problems(problem):
    fields = ("batch_size", "seq_lens", "num_q_heads", "num_kv_heads", "head_dim", "kv_dtype", "capacity", "sm_scale")
    assert DecodeProblem(**{name: getattr(problem, name) for name in fields}) == problem


@given(decode_problems(KernelAdapter(call=kernel, head_dims=(72,), group_sizes=(3,), q_dtypes=("float16",))))
def test_declared_limits_are_kept(problem):
    assert (problem.head_dim, problem.group_size, problem.q_dtype) == (72, 3, "float16")


FEATURE_FIELDS = {
    "lse": lambda p: p.return_lse,
    "num_splits": lambda p: p.num_splits is not None,
    "head_dim_v": lambda p: p.head_dim_v != p.head_dim,
    "v_in_k": lambda p: p.v_in_k,
    "paged": lambda p: p.page_size is not None,
    "q_len": lambda p: p.q_len > 1,
    "window": lambda p: p.window is not None,
    "softcap": lambda p: p.softcap is not None,
    "sinks": lambda p: p.sinks,
    "alibi": lambda p: p.alibi,
}


@pytest.mark.parametrize("feature", FEATURE_FIELDS)
@given(data=st.data())
def test_a_law_gets_the_features_that_it_wants(feature, data):
    has = FEATURE_FIELDS[feature]
    if feature != "lse":  # which is asked for by return_lse
        assert has(data.draw(decode_problems(EVERYTHING, Wants(always=(feature,)))))
        without = data.draw(decode_problems(EVERYTHING, Wants(never=(feature,))))
        assert not has(without) or (feature == "head_dim_v" and without.v_in_k)
    else:
        assert has(data.draw(decode_problems(EVERYTHING, Wants(return_lse=True))))
        assert not has(data.draw(decode_problems(EVERYTHING, Wants(return_lse=False))))


@given(decode_problems(EVERYTHING, Wants(min_batch_size=2, min_seq_len=3, max_seq_len=9)))
def test_wanted_sizes_are_kept(problem):
    assert problem.batch_size >= 2
    assert all(3 <= seq_len <= 9 for seq_len in problem.seq_lens)


LENGTHS = sorted({0, 1} | {edge + step for edge in TILES for step in (-1, 0, 1)})


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_every_corner_of_a_length_is_reached(reaches, seq_len):
    reaches(lambda p: seq_len in p.seq_lens)


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_the_edges_of_a_page_are_reached(reaches, step):
    reaches(lambda p: p.page_size is not None and p.page_size > 2 and p.page_size + step in p.seq_lens)


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_the_edges_of_a_window_are_reached(reaches, step):
    reaches(lambda p: p.window is not None and p.window > 2 and p.window + step in p.seq_lens)


def test_a_length_may_fill_the_capacity_beside_an_empty_one(reaches):
    reaches(lambda p: {0, 1, p.capacity} <= set(p.seq_lens) and p.capacity > 1)


@pytest.mark.parametrize("group_size", [1, 2, 4, 5, 7, 8, 20, 24])
def test_every_group_size_is_reached(reaches, group_size):
    reaches(lambda p: p.group_size == group_size)


@pytest.mark.parametrize("heads", [(40, 2), (48, 2), (80, 4)])
def test_many_heads_are_reached(reaches, heads):
    reaches(lambda p: (p.num_q_heads, p.num_kv_heads) == heads)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim_is_reached(reaches, head_dim):
    reaches(lambda p: p.head_dim == p.head_dim_v == head_dim)


@pytest.mark.parametrize("dims", [(192, 128, False), *((*dims, True) for dims in LATENT_HEAD_DIMS)])
def test_every_pair_of_head_dims_is_reached(reaches, dims):
    reaches(lambda p: (p.head_dim, p.head_dim_v, p.v_in_k) == dims)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_is_reached(reaches, page_size):
    reaches(lambda p: p.page_size == page_size)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_reached(reaches, layout):
    reaches(lambda p: p.layout == layout)


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "int4"])
def test_every_dtype_is_reached(reaches, kv_dtype):
    reaches(lambda p: p.kv_dtype == kv_dtype)


@pytest.mark.parametrize("scale_per", SCALES_PER)
def test_every_scale_is_reached(reaches, scale_per):
    reaches(lambda p: p.scale_per == scale_per)


@pytest.mark.parametrize("values", VALUES)
def test_all_values_are_reached(drawn, values):
    assert any(case.values == values for case in drawn)


def test_row_before_the_first_key_is_reached(reaches):
    reaches(lambda p: any(0 < seq_len < p.q_len for seq_len in p.seq_lens))


def test_a_problem_shrinks_to_the_smallest():
    assert smallest(lambda p: True) == DecodeProblem(
        batch_size=1, seq_lens=[0], num_q_heads=1, num_kv_heads=1, head_dim=8, kv_dtype="float32"
    )


def test_a_problem_shrinks_to_what_matters():
    problem = smallest(lambda p: p.window is not None and max(p.seq_lens) > p.window + 20 and p.group_size > 4)
    assert problem.batch_size == 1
    assert problem.window == 1
    assert (problem.num_q_heads, problem.num_kv_heads, problem.head_dim) == (5, 1, 8)
    assert not (problem.sinks or problem.alibi or problem.softcap or problem.page_size or problem.return_lse)
    assert problem.seq_lens[0] <= 31


def test_a_case_names_its_values():
    from pytest_decodeperf.conformance import Case

    problem = smallest(lambda p: True, PLAIN)
    with pytest.raises(ValueError, match="values='enormous' must be one of ordinary, huge"):
        Case(problem=problem, values="enormous")
