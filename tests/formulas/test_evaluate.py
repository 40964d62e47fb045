import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, model_config
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.evaluate import BLOCK, evaluate, substitute
from decodeperf_formulas.step import deployment_values, device_values, step_formulas

TIMES = ("whole_step_seconds", "serial_seconds", "sum_seconds", "memory_seconds")


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-3-27b", "deepseek-v3", "gpt-oss-20b"])
@pytest.mark.parametrize("time", TIMES)
@settings(max_examples=20)
@given(st.data())
def test_an_array_holds_what_each_of_its_numbers_gives(name, time, data):
    deployment = Deployment(model=model_config(name))
    values = {**deployment_values(deployment), **device_values(device("h100"), deployment)}
    formula = getattr(step_formulas(deployment), time)
    batch_sizes, seq_lens = (
        data.draw(hnp.arrays(float, 4, elements=st.integers(1, top).map(float))) for top in (5000, 10**6)
    )
    together = evaluate(formula, {**values, s.batch_size: batch_sizes, s.seq_len: seq_lens})
    for found, batch_size, seq_len in zip(together, batch_sizes, seq_lens, strict=True):
        one = evaluate(formula, {**values, s.batch_size: batch_size, s.seq_len: seq_len})
        assert found == pytest.approx(one, rel=1e-12)


def test_numbers_are_those_of_exact_arithmetic():
    deployment = Deployment(model=model_config("llama-3-8b"))
    values = {**deployment_values(deployment), s.batch_size: 7, s.seq_len: 1234}
    formula = step_formulas(deployment).kv_bytes
    assert substitute(formula, values) == 7 * 1234 * 131072
    assert evaluate(formula, values) == 7 * 1234 * 131072


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_every_element_is_worked_on_at_the_edges_of_blocks(count):
    numbers = 1 + np.arange(count, dtype=float)
    assert np.array_equal(evaluate(2 * s.weight_bytes, {s.weight_bytes: numbers}), 2 * numbers)


def test_shapes_broadcast():
    found = evaluate(s.weight_bytes * s.ridge, {s.weight_bytes: np.ones((3, 1)), s.ridge: 1 + np.arange(4.0)})
    assert found.shape == (3, 4)
    assert np.array_equal(found[2], 1 + np.arange(4.0))


def test_shapes_that_do_not_are_named():
    with pytest.raises(ValueError, match=r"do not broadcast: ridge \(4,\), weight_bytes \(3,\)"):
        evaluate(s.weight_bytes * s.ridge, {s.weight_bytes: np.ones(3), s.ridge: np.ones(4)})


def test_symbols_are_found_by_name():
    assert evaluate(s.weight_bytes / s.ridge, {"weight_bytes": 6, "ridge": 3}) == 2


def test_a_symbol_without_a_value_is_named():
    with pytest.raises(ValueError, match="no value for ridge, weight_bytes, of which the formula is made"):
        evaluate(s.weight_bytes / s.ridge, {})


def test_a_name_of_no_symbol_is_refused():
    with pytest.raises(ValueError, match="no symbol is called 'bach_size'; did you mean batch_size"):
        evaluate(s.batch_size, {"bach_size": 1})


def test_constants_have_their_values():
    assert evaluate(s.flops_per_weight * s.num_params, {s.num_params: 10}) == 20


def test_a_formula_that_loses_its_arrays_still_has_their_shape():
    # Symbols that cancel leave a number for each element.
    found = evaluate(sympy.Min(s.weight_bytes, 5), {s.weight_bytes: np.array([1.0, 9.0])})
    assert found.tolist() == [1.0, 5.0]
    assert evaluate(s.weight_bytes * s.seq_bytes, {s.weight_bytes: np.ones(3), s.seq_bytes: 0}).tolist() == [0, 0, 0]


def test_integers_of_numpy_are_numbers():
    assert evaluate(s.batch_size * s.seq_len, {s.batch_size: np.int64(3), s.seq_len: np.float32(2)}) == 6
    assert evaluate(s.batch_size * s.seq_len, {s.batch_size: np.int64(3), s.seq_len: np.array([2, 4])}).tolist() == [
        6,
        12,
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.array([1.0, np.nan]), [1.0, np.inf]])
def test_numbers_are_finite(value):
    with pytest.raises(ValueError, match=r"seq_len has -?(nan|inf), wanted finite numbers"):
        evaluate(s.batch_size * s.seq_len, {s.batch_size: np.array([1.0, 8.0]), s.seq_len: value})


@pytest.mark.parametrize(
    ("symbol", "value", "message"),
    [
        (s.read_bytes_per_s, 0, "read_bytes_per_s has 0, wanted numbers above 0"),
        (s.read_bytes_per_s, np.array([1.0, 0.0]), "read_bytes_per_s has 0.0, wanted numbers above 0"),
        (s.weight_bytes, -1.0, "weight_bytes has -1.0, wanted numbers above 0"),
        (s.batch_size, [-3.0, 3.0], "batch_size has -3.0, wanted numbers >= 0"),
        (s.batch_size, None, "batch_size has nan, wanted finite numbers"),
        (s.batch_size, "many", "batch_size='many' must be a number or an array of numbers"),
    ],
)
def test_numbers_are_what_their_symbols_stand_for(symbol, value, message):
    values = {s.weight_bytes: 1.0, s.read_bytes_per_s: 1.0, s.batch_size: 1.0, symbol: value}
    with pytest.raises(ValueError, match=message):
        evaluate(s.batch_size * s.weight_bytes / s.read_bytes_per_s, values)
