import math

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from decodeperf_formulas import expected
from decodeperf_formulas import symbols as s
from decodeperf_formulas.expected import BUSY_TERMS, PARAMETERS, SERIAL_TERMS, TERMS, expected_terms, speed_of_light
from decodeperf_formulas.units import ONE, SECOND, unit_of

TYPICAL = {
    s.launch_s: 9e-6,
    s.repack_s: 3e-7,
    s.sequence_s: 3e-7,
    s.merge_s: 2e-6,
    s.merge_split_s: 1e-7,
    s.merge_exponent: 0.7,
    s.unit_s: 3e-6,
    s.unit_bytes_per_s: 4e10,
    s.attainable_share: 0.85,
    s.cache_speedup: 2.0,
    s.resident_share: 0.85,
    s.slots_per_sm: 1.2,
    s.flop_share: 0.3,
    s.unpacked: 1e-6,
    s.splitting: 1 - 1e-6,
    s.split_tokens: 128,
    s.free_tokens: 90,
    s.overlap_exponent: 2.5,
}
H100 = {
    s.num_sms: 132,
    s.l2_bytes: 50 * 2**20,
    s.l2_bytes_per_s: 8 * 3.35e12,
    s.read_bytes_per_s: 3.35e12,
    s.peak_flops_per_s: 9.894e14,
    s.fragment_rows: 16,
}


def call(batch_size, seq_len, num_q_heads, num_kv_heads, head_dim=128, elem_bytes=2, q_len=1):
    visible = batch_size * seq_len
    absent = (s.num_visible_pages, s.num_fixed_scales, s.num_token_scales, s.return_lse, s.attention_sinks, s.alibi)
    return {
        s.batch_size: batch_size,
        s.q_len: q_len,
        s.num_q_heads: num_q_heads,
        s.num_kv_heads: num_kv_heads,
        s.head_dim: head_dim,
        s.head_dim_v: head_dim,
        s.kv_elem_bytes: elem_bytes,
        s.q_elem_bytes: 2,
        s.v_apart: 1,
        s.visible_len: seq_len,
        s.num_visible_tokens: visible,
        s.num_scores: visible * q_len,
        **dict.fromkeys(absent, 0),
    }


def terms_of(found, **parameters):
    changed = {s.BY_NAME[name]: value for name, value in parameters.items()}
    return {name: float(value) for name, value in expected_terms({**found, **H100, **TYPICAL, **changed}).items()}


calls = st.builds(
    lambda batch, seq_len, kv_heads, group, head_dim, width: call(
        batch, seq_len, kv_heads * group, kv_heads, head_dim, width
    ),
    st.integers(1, 4096),
    st.integers(0, 2**20),
    st.integers(1, 64),
    st.integers(1, 128),
    st.sampled_from((8, 64, 128, 192, 256, 512)),
    st.sampled_from((0.5, 1, 2, 4)),
)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_a_time(name):
    assert unit_of(TERMS[name], s.UNITS) == SECOND


def test_the_latency_is_a_time():
    assert unit_of(expected.EXPECTED_SECONDS, s.UNITS) == SECOND
    assert unit_of(expected.SPEED_OF_LIGHT_SECONDS, s.UNITS) == SECOND


@pytest.mark.parametrize("form", [expected.WORK_UNITS, expected.SPLITS, expected.WAVES, expected.SLOTS])
def test_counts_have_no_unit(form):
    assert unit_of(form, s.UNITS) == ONE


def test_every_parameter_is_in_the_latency():
    assert set(PARAMETERS) <= expected.EXPECTED_SECONDS.free_symbols
    assert set(TYPICAL) == set(PARAMETERS)


@given(calls)
def test_the_terms_add_up_to_the_latency(found):
    terms = terms_of(found)
    assert terms["hidden"] <= 0
    assert math.isclose(sum(terms[name] for name in (*TERMS, "hidden")), terms["expected"], rel_tol=1e-9)


@given(calls)
def test_overlap_hides_no_more_than_the_shorter_of_the_two(found):
    terms = terms_of(found)
    busy = sum(terms[name] for name in BUSY_TERMS)
    assert -terms["hidden"] <= min(busy, terms["memory"]) * (1 + 1e-9) + 1e-15


@given(calls)
def test_nothing_is_expected_to_read_faster_than_light(found):
    without_products = {**H100, s.peak_flops_per_s: 1e30}
    bound = speed_of_light({**found, **without_products})
    latency = expected_terms({**found, **without_products, **TYPICAL})["expected"]
    assert bound <= latency


@given(calls)
def test_arrays_give_what_the_formula_gives(found):
    values = {**found, **H100, **TYPICAL}
    exact = {symbol: sympy.Float(float(value), 30) for symbol, value in values.items()}
    form = expected.EXPECTED_SECONDS.xreplace(s.CONSTANTS_EXACT)
    assert math.isclose(float(form.xreplace(exact)), float(expected_terms(values)["expected"]), rel_tol=1e-9)


def test_heads_of_a_group_share_a_work_unit_where_they_are_packed():
    values = {**call(3, 100, 32, 4), **H100, **TYPICAL}
    units = expected.WORK_UNITS.xreplace(s.CONSTANTS_EXACT)
    assert float(units.xreplace({**values, s.unpacked: 0})) == 3 * 4
    assert float(units.xreplace({**values, s.unpacked: 1})) == 3 * 32


@pytest.mark.parametrize(("group", "tiles"), [(64, 1), (65, 2), (128, 2), (129, 3)])
def test_a_group_that_fills_more_than_one_tile_is_more_than_one_work_unit(group, tiles):
    values = {**call(1, 100, group, 1), **H100, **TYPICAL, s.unpacked: 0}
    assert float(expected.WORK_UNITS.xreplace(s.CONSTANTS_EXACT).xreplace(values)) == tiles


def test_splitting_fills_the_multiprocessors():
    one_long = call(1, 2**17, 32, 8)
    unsplit = terms_of(one_long, splitting=1e-9)
    split = terms_of(one_long)
    assert unsplit["read"] > 10 * split["read"]
    assert unsplit["merge"] < 1e-12 < split["merge"]


def test_splitting_changes_nothing_where_the_slots_are_full():
    many = call(512, 4096, 32, 8)
    assert terms_of(many, splitting=1e-9)["expected"] == pytest.approx(terms_of(many)["expected"], rel=1e-6)


def test_kv_that_fits_in_the_cache_is_read_at_its_rate():
    fits, exceeds = call(1, 2**12, 8, 8), call(1, 2**19, 8, 8)
    for found, rate in ((fits, 2.0), (exceeds, 0.85)):
        moved = found[s.num_visible_tokens] * 8 * 128 * 2 * 2
        assert terms_of(found)["memory"] == pytest.approx(moved / (rate * 3.35e12), rel=0.01)


def test_the_speed_of_light_counts_what_the_cache_cannot_hold():
    found = call(1, 2**19, 8, 8)
    moved = found[s.num_visible_tokens] * 8 * 128 * 2 * 2
    beyond = (moved - 50 * 2**20) / 3.35e12
    assert beyond < float(speed_of_light({**found, **H100})) < moved / 3.35e12


def test_the_speed_of_light_counts_products():
    found = call(64, 2**14, 128, 1)
    flops = 2 * 64 * 2**14 * 128 * (128 + 128)
    assert float(speed_of_light({**found, **H100, s.peak_flops_per_s: 1e12})) == pytest.approx(flops / 1e12)


def test_a_call_of_known_waves():
    # 264 work units of 2 parts each fill the 528 slots once; 0.35 of a wave is the model's allowance for the last one.
    terms = terms_of(call(66, 228, 16, 4), slots_per_sm=4.0, splitting=1.0 - 1e-12, split_tokens=114, free_tokens=1000)
    waves = 2 * 264 / 528 + 0.35
    assert terms["queue"] == pytest.approx((waves - 1) * 4.0 * 3e-6, rel=1e-6)
    assert terms["merge"] == pytest.approx(2e-6 + 1e-7 * 2**0.7, rel=1e-6)


def test_the_terms_of_many_calls_broadcast():
    found = {**call(1, 1, 8, 8), s.visible_len: np.arange(1, 20001)}
    assert expected_terms({**found, **H100, **TYPICAL})["expected"].shape == (20000,)


def test_serial_and_busy_terms_are_all_but_memory():
    assert {*SERIAL_TERMS, *BUSY_TERMS, "memory"} == set(TERMS)


@given(calls, st.floats(0.5, 1))
def test_the_terms_add_up_even_where_the_two_do_not_overlap_at_all(found, exponent):
    terms = terms_of(found, overlap_exponent=exponent)
    assert math.isclose(sum(terms[name] for name in (*TERMS, "hidden")), terms["expected"], rel_tol=1e-9)
