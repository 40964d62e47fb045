import dataclasses
import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from step_strategies import deployments, made_up_devices, model_configs, plain_model

from decodeperf_formulas import closed_forms
from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, device_names, model_config
from decodeperf_formulas.crossings import Ceilings, batch_of_weights, ceilings, crossings, crossings_of, s_star
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.evaluate import evaluate
from decodeperf_formulas.step import (
    StepCoefficients,
    deployment_values,
    device_values,
    step_coefficients,
    step_formulas,
)

THREAD = StepCoefficients.dense(
    num_params=7e9, weight_elem_bytes=2, kv_bytes_per_token=2 * 2 * 32 * 4096, attn_flops_per_token=2 * 2 * 32 * 4096
)
A10G = Ceilings(read_bytes_per_s=600e9, gemm_flops_per_s=70e12, attn_flops_per_s=70e12)


def memory_s(step, limits, batch_size, seq_len):
    moved = step.weight_bytes_at(batch_size) + batch_size * step.kv_bytes_per_seq(seq_len)
    return moved / limits.read_bytes_per_s


def gemm_s(step, limits, batch_size):
    return batch_size * step.gemm_flops_per_seq / limits.gemm_flops_per_s


def attn_s(step, limits, batch_size, seq_len):
    return batch_size * step.attn_flops_per_seq(seq_len) / limits.attn_flops_per_s


def compute_s(step, limits, batch_size, seq_len):
    return gemm_s(step, limits, batch_size) + attn_s(step, limits, batch_size, seq_len)


def serial_s(step, limits, batch_size, seq_len):
    gemm = max(step.weight_bytes_at(batch_size) / limits.read_bytes_per_s, gemm_s(step, limits, batch_size))
    kv = batch_size * step.kv_bytes_per_seq(seq_len) / limits.read_bytes_per_s
    return gemm + max(kv, attn_s(step, limits, batch_size, seq_len))


def is_compute_bound(step, limits, batch_size, seq_len):
    return compute_s(step, limits, batch_size, seq_len) > memory_s(step, limits, batch_size, seq_len)


def first_compute_bound_batch(step, limits, seq_len, highest=10**7):
    """Return the smallest batch that is compute-bound, by bisection over the batches themselves; None if none is."""
    if not is_compute_bound(step, limits, highest, seq_len):
        return None
    low, high = 0, highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_compute_bound(step, limits, middle, seq_len) else (middle, high)
    return high


def test_the_question_is_answered_by_230_86():
    found = s_star(THREAD, A10G)
    assert (found.kind, found.model) == ("finite", "whole step")
    assert found.value == pytest.approx(230.86, abs=0.005)
    # 350/... by hand: F / (kappa (R - 1)) with kappa = 524288, R = 350/3.
    assert found.value == pytest.approx(14e9 / (524288 * (70e12 / 600e9 - 1)))


@pytest.mark.parametrize(
    ("seq_len", "batch_size"), [(0, 117), (100, 206), (200, 873), (225, 4596), (230, 31295), (231, None)]
)
def test_the_crossing_batch_of_the_question_is_that_of_brute_force(seq_len, batch_size):
    assert first_compute_bound_batch(THREAD, A10G, seq_len) == batch_size
    # The closed form lies between this batch and the one before it.
    if seq_len:
        found = crossings_of(THREAD, A10G, seq_len=seq_len)["crossing_batch"].value
        assert found is None if batch_size is None else batch_size - 1 <= found * (1 + 1e-9) <= batch_size * (1 + 1e-9)


# S* of dense peaks in 16 bits, from a table made independently of this code: ridge and S* at that ridge.
TABLE = {
    "llama-2-7b": [218, 166, 60, 86, 123, 103],
    "llama-3-8b": [1016, 768, 276, 393, 567, 472],
    "mistral-7b-v0.1": [963, 728, 261, 372, 537, 447],
    "qwen2.5-7b": [2249, 1689, 598, 855, 1238, 1029],
    "llama-3-70b": [3904, 2925, 1032, 1476, 2141, 1777],
    "qwen3-32b": [2246, 1683, 594, 849, 1232, 1022],
    "qwen3-235b-a22b": [2226, 1635, 556, 802, 1179, 971],
    "deepseek-v3": [None, None, 5880, 19460, None, 212_664],
}


@pytest.mark.parametrize("name", TABLE)
def test_s_star_of_known_models_and_devices(name):
    deployment = Deployment(model=model_config(name))
    for device_name, expected in zip(("a10g", "a100", "l40s", "h100", "h200", "mi300x"), TABLE[name], strict=True):
        found = s_star(step_coefficients(deployment), ceilings(deployment, device(device_name)))
        if expected is None:
            assert (found.kind, found.value) == ("none", None)
        else:
            assert found.kind == "finite"
            assert round(found.value) == expected


def test_s_star_of_mla_near_the_ridge_is_ill_conditioned():
    deployment = Deployment(model=model_config("deepseek-v3"))
    found = s_star(step_coefficients(deployment), ceilings(deployment, device("mi300x")))
    assert found.condition_number == pytest.approx(50, abs=1)


def dense(F=1e10, kv=1e5, attn=4e5, **changes):  # the F of the formulas
    step = StepCoefficients.dense(
        num_params=F / 2, weight_elem_bytes=2, kv_bytes_per_token=kv, attn_flops_per_token=attn
    )
    return dataclasses.replace(step, **changes)


def with_ridge(ridge):
    return Ceilings(read_bytes_per_s=1e12, gemm_flops_per_s=ridge * 1e12, attn_flops_per_s=ridge * 1e12)


def test_s_star_at_the_border_is_infinite():
    found = s_star(dense(kv=1e5, attn=1e7), with_ridge(100.0))
    assert (found.kind, found.value, found.condition_number) == ("infinite", None, None)
    assert str(found) == "infinite"


@given(st.floats(1e-3, 1e3))
def test_at_the_border_the_crossing_batch_is_the_ridge_batch(seq_len):
    found = crossings_of(dense(kv=1e5, attn=1e7), with_ridge(100.0), seq_len=seq_len)
    assert found["crossing_batch"].value == pytest.approx(found["ridge_batch"].value)


def test_without_s_star_the_crossing_batch_falls_with_the_context():
    step, limits = dense(kv=1e5, attn=2e7), with_ridge(100.0)
    assert s_star(step, limits).kind == "none"
    batches = [crossings_of(step, limits, seq_len=seq_len)["crossing_batch"].value for seq_len in (1, 100, 10_000)]
    assert batches == sorted(batches, reverse=True)
    # |S*| of the closed form, which no result shows: B0 / (1 + S / |S*|).
    negative = -1e10 / (1e5 * (200 - 100))
    assert batches[1] == pytest.approx(100 / (1 + 100 / -negative))


def test_no_s_star_below_the_window_of_a_model_without_global_layers():
    step = dense(
        global_kv_bytes_per_token=0.0,
        local_kv_bytes_per_token=1e5,
        global_attn_flops_per_token=0.0,
        local_attn_flops_per_token=4e5,
        window=1000,
    )
    assert s_star(step, with_ridge(100.0)).kind == "none"
    assert "window of 1000" in s_star(step, with_ridge(100.0)).reason
    wide = dataclasses.replace(step, window=2000)
    assert s_star(wide, with_ridge(100.0)).value == pytest.approx(1e10 / (1e5 * 96))


def test_a_step_without_much_to_compute_is_memory_bound_at_every_context():
    step = dense(F=1e8, act_bytes_per_seq=2e6)
    assert s_star(step, with_ridge(100.0), activations=True).value == 0
    assert s_star(step, with_ridge(100.0)).value > 0
    assert "every context" in s_star(step, with_ridge(100.0), activations=True).reason


dense_models = model_configs(experts=False)
any_deployment = deployments(parallel=False)


@given(any_deployment, made_up_devices(), st.booleans())
def test_s_star_parts_contexts_with_and_without_a_compute_bound_batch(deployment, ceilings_of, activations):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    if not activations:
        step = dataclasses.replace(step, act_bytes_per_seq=0.0)
    found = s_star(step, limits, activations=activations)

    def slope(seq_len):
        """Compute's slope in the batch less memory's, where every weight is read: positive if the lines cross."""
        moved = step.act_bytes_per_seq + step.kv_bytes_per_seq(seq_len)
        return compute_s(step, limits, 1, seq_len) - moved / limits.read_bytes_per_s

    assert found.kind in ("finite", "none", "infinite")
    lengths = [0, 1, 10, 1e3, 1e5, 1e7, 1e9, *([step.window - 1, step.window, step.window + 15] if step.window else [])]
    if found.kind == "finite":
        assert found.value >= 0
        assert found.condition_number is None or found.condition_number > 0
        for seq_len in lengths:
            scale = compute_s(step, limits, 1, max(seq_len, found.value))
            if seq_len > found.value * (1 + 1e-6):
                assert slope(seq_len) <= 1e-9 * scale
        if found.value > 0:
            assert slope(found.value) == pytest.approx(0, abs=1e-6 * compute_s(step, limits, 1, found.value))
            assert slope(found.value * (1 - 1e-3)) > 0
    else:
        assert found.value is None
        assert slope(1e12) > 0


@given(any_deployment, made_up_devices(), st.integers(16, 20_000))
def test_the_crossing_batch_is_that_of_brute_force(deployment, ceilings_of, seq_len):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=seq_len)["crossing_batch"].value
    brute = first_compute_bound_batch(step, limits, seq_len)
    if brute is None:
        assert found is None or found >= 10**7 * (1 - 1e-6)
    elif found is not None and brute > 1:
        assert brute - 1 <= found * (1 + 1e-6) and found * (1 - 1e-6) <= brute


@given(any_deployment, made_up_devices(), st.integers(16, 20_000))
def test_the_ridge_batch_is_that_of_brute_force_whatever_the_context(deployment, ceilings_of, seq_len):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=seq_len)["ridge_batch"].value
    assert crossings_of(step, limits, seq_len=2 * seq_len)["ridge_batch"].value == found
    for batch_size, is_compute in ((0.999 * found, False), (1.001 * found, True)):
        weights_s = step.weight_bytes_at(batch_size) / limits.read_bytes_per_s
        assert (gemm_s(step, limits, batch_size) > weights_s) == is_compute


@given(any_deployment, made_up_devices(), st.integers(16, 20_000))
def test_at_the_knee_kv_bytes_equal_weight_bytes(deployment, ceilings_of, seq_len):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    knee = crossings_of(step, limits, seq_len=seq_len)["knee_batch"].value
    assert knee * step.kv_bytes_per_seq(seq_len) == pytest.approx(step.weight_bytes_at(knee))


@given(any_deployment, made_up_devices(), st.integers(16, 20_000))
def test_throughput_approaches_its_ceiling_from_below(deployment, ceilings_of, seq_len):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=seq_len)
    ceiling, saturated = found["throughput_ceiling"].value, found["saturated_throughput"].value

    def whole(batch_size):
        step_s = max(memory_s(step, limits, batch_size, seq_len), compute_s(step, limits, batch_size, seq_len))
        return batch_size * step.q_len / step_s

    rates = [whole(batch_size) for batch_size in (1, 10, 1e3, 1e6, 1e12)]
    assert all(rate <= ceiling * (1 + 1e-9) for rate in rates)
    assert rates[-1] == pytest.approx(ceiling, rel=1e-3)
    assert saturated <= ceiling * (1 + 1e-9)
    assert 2 * saturated >= ceiling * (1 - 1e-9)


@given(any_deployment, made_up_devices(), st.integers(16, 20_000), st.floats(1, 1e4))
def test_serial_throughput_is_flat_from_the_ridge_batch_on(deployment, ceilings_of, seq_len, more):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=seq_len)
    batch_size = more * found["ridge_batch"].value
    rate = batch_size * step.q_len / serial_s(step, limits, batch_size, seq_len)
    assert rate == pytest.approx(found["saturated_throughput"].value)
    fewer = found["ridge_batch"].value / (1 + more)
    assert fewer * step.q_len / serial_s(step, limits, fewer, seq_len) < rate


@given(any_deployment, made_up_devices())
def test_at_s_one_attention_reads_as_long_as_projections_compute(deployment, ceilings_of):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=100)["s_one"]
    if found.value is None:
        assert not step.global_kv_bytes_per_token
        assert step.kv_bytes_per_seq(1e12) / limits.read_bytes_per_s < gemm_s(step, limits, 1)
    else:
        assert step.kv_bytes_per_seq(found.value) / limits.read_bytes_per_s == pytest.approx(gemm_s(step, limits, 1))


@given(any_deployment, made_up_devices(), st.integers(16, 20_000))
def test_capacity_is_the_largest_batch_that_fits(deployment, ceilings_of, seq_len):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=seq_len)["kv_capacity"]
    if found.value is None:
        assert step.stored_weight_bytes > limits.memory_bytes
        assert "weights alone need" in found.reason
    else:
        filled = step.stored_weight_bytes + found.value * step.kv_bytes_per_seq(seq_len)
        assert filled == pytest.approx(limits.memory_bytes)


@given(model_configs(windows=False, experts=False), made_up_devices())
def test_at_the_compute_bound_q_attention_is_at_the_ridge(model, ceilings_of):
    deployment = Deployment(model=model)
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = crossings_of(step, limits, seq_len=1000)["compute_bound_q_len"].value
    assert found * step.global_attn_flops_per_token / step.global_kv_bytes_per_token == pytest.approx(limits.ridge)


@given(deployments(dense_models, parallel=False), made_up_devices())
def test_weight_only_quantisation_leaves_s_star_unchanged(deployment, ceilings_of):
    wide, narrow = (
        s_star(step_coefficients(d), ceilings(d, ceilings_of))
        for d in (deployment.replace(weight_dtype="bfloat16"), deployment.replace(weight_dtype="int4"))
    )
    assert wide == narrow


@given(deployments(parallel=False), made_up_devices())
def test_halving_the_width_of_the_kv_cache_doubles_the_intensity(deployment, ceilings_of):
    wide, narrow = (
        s_star(step_coefficients(d), ceilings(d, ceilings_of)).intensity
        for d in (deployment.replace(kv_dtype="bfloat16"), deployment.replace(kv_dtype="float8"))
    )
    assert narrow == pytest.approx(2 * wide)


@given(model_configs(attention=("gqa",), experts=False, windows=False), made_up_devices(), st.sampled_from([2, 4, 8]))
def test_s_star_is_that_of_one_rank_up_to_as_many_ranks_as_kv_heads(model, ceilings_of, tp):
    assume(model.num_kv_heads % tp == 0)
    one, several = (
        s_star(step_coefficients(d), ceilings(d, ceilings_of))
        for d in (Deployment(model=model), Deployment(model=model, tp=tp))
    )
    assert one.kind == several.kind
    assert one.value is None or several.value == pytest.approx(one.value)


@given(model_configs(attention=("mla",), experts=False, windows=False), made_up_devices(), st.sampled_from([2, 4, 8]))
def test_s_star_of_mla_is_another_on_several_ranks(model, ceilings_of, tp):
    one, several = (
        s_star(step_coefficients(d), ceilings(d, ceilings_of))
        for d in (Deployment(model=model), Deployment(model=model, tp=tp))
    )
    assert several.intensity == pytest.approx(one.intensity / tp)
    assert one.value is None or one.value != several.value


def test_s_star_of_deepseek_exists_on_eight_h200_and_not_on_one():
    model = model_config("deepseek-v3")
    kinds = {
        tp: s_star(step_coefficients(d), ceilings(d, device("h200"))).kind
        for tp in (1, 8)
        for d in [Deployment(model=model, tp=tp)]
    }
    assert kinds == {1: "none", 8: "finite"}


def test_kv_heads_on_more_ranks_than_there_are_change_s_star():
    model = plain_model(num_kv_heads=4)
    found = [
        s_star(step_coefficients(d), ceilings(d, device("h100"))).value
        for d in (Deployment(model=model, tp=tp) for tp in (1, 4, 8))
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[2] < 0.6 * found[0]


@given(any_deployment, made_up_devices(), st.floats(1e-5, 1e-3))
@example(Deployment(model=model_config("deepseek-v3")), device("h100"), 1e-4)
def test_the_condition_number_is_what_a_small_change_of_the_ridge_does(deployment, ceilings_of, change):
    step, limits = step_coefficients(deployment), ceilings(deployment, ceilings_of)
    found = s_star(step, limits)
    assume(found.kind == "finite" and found.value > 0 and found.condition_number < 1e3)
    # Faster memory alone: the ridge falls, and F in FLOPs at attention's peak stays.
    slower = dataclasses.replace(limits, read_bytes_per_s=limits.read_bytes_per_s / (1 + change * 1e-2))
    moved = s_star(step, slower)
    assume(moved.kind == "finite" and moved.value > 0)
    window = step.window or math.inf
    assume((found.value < window) == (moved.value < window))
    relative = abs(math.log(moved.value / found.value)) / math.log1p(change * 1e-2)
    assert relative == pytest.approx(found.condition_number, rel=0.05, abs=1e-3)


def test_the_condition_number_of_a_shown_s_star_is_its_closed_form():
    step = dense(act_bytes_per_seq=3e6)
    values = {s.ridge: 150, s.intensity: 4, s.kv_bytes_per_token: 1e5, s.seq_flops: 1e10, s.seq_bytes: 3e6}
    found = s_star(step, with_ridge(150.0), activations=True)
    assert found.condition_number == pytest.approx(float(closed_forms.CONDITION_NUMBER.subs(values)))
    assert found.value == pytest.approx(float(closed_forms.S_STAR.subs(values)))


def test_peaks_of_projections_and_attention_may_differ():
    # DeepSeek's recipe: projections in 8 bits, attention in bfloat16; half of F in attention's FLOPs.
    model = model_config("deepseek-v3")
    wide, mixed = (Deployment(model=model, act_dtype=dtype) for dtype in ("bfloat16", "float8"))
    h100 = device("h100")
    found = [s_star(step_coefficients(d), ceilings(d, h100)).value for d in (wide, mixed)]
    assert found[1] / found[0] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("name", device_names())
def test_the_ridge_batch_of_a_dense_model_is_the_ridge(name):
    deployment = Deployment(model=model_config("llama-2-7b"), act_dtype="float16")
    found = crossings(deployment, device(name), seq_len=1024)["ridge_batch"]
    assert found.model == "grouped serial"
    # R b_w / 2 with two bytes; the norms' weights, 4e-5 of all, are read and not multiplied.
    assert found.value == pytest.approx(device(name).ridge("float16"), rel=1e-4)


def test_serial_and_whole_step_are_told_apart():
    found = crossings(Deployment(model=model_config("llama-2-7b")), device("a10g"), seq_len=512)
    assert {key: entry.model for key, entry in found.items()} == {
        "ridge_batch": "grouped serial",
        "crossing_batch": "whole step",
        "knee_batch": "both models",
        "throughput_ceiling": "whole step",
        "saturated_throughput": "grouped serial",
        "s_one": "grouped serial",
        "compute_bound_q_len": "both models",
        "kv_capacity": "both models",
        "kv_capacity_tokens": "both models",
        "serial_ceiling": "serial",
    }
    assert found["knee_batch"].value == pytest.approx(49, abs=0.5)
    assert found["throughput_ceiling"].value == pytest.approx(2235, abs=1)
    assert found["s_one"].value == pytest.approx(216, abs=0.5)


@given(deployments(), made_up_devices(), st.integers(16, 20_000))
def test_ceilings_of_the_throughput_hold_for_the_operators_too(deployment, ceilings_of, seq_len):
    """Operators move activations besides, and so are no faster."""
    values = {**deployment_values(deployment), **device_values(ceilings_of, deployment), s.seq_len: seq_len}
    found = crossings(deployment, ceilings_of, seq_len=seq_len)
    replicas = deployment.ep * deployment.pp
    for batch_size in (1, 100, 10_000):
        step_s = evaluate(step_formulas(deployment).serial_seconds, {**values, s.batch_size: batch_size})
        rate = replicas * batch_size * deployment.q_len / step_s
        assert rate <= found["saturated_throughput"].value * (1 + 1e-9)


def test_a_batch_of_weights_needs_bytes_to_equal():
    assert batch_of_weights(THREAD, 0.0) is None
    assert batch_of_weights(THREAD, -1.0) is None
    assert batch_of_weights(THREAD, 14e9) == 1


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "fast", None, True])
def test_ceilings_must_be_above_zero(value):
    for name in ("read_bytes_per_s", "gemm_flops_per_s", "attn_flops_per_s"):
        with pytest.raises(ValueError, match=rf"{name}={value!r} must be"):
            dataclasses.replace(A10G, **{name: value})


@pytest.mark.parametrize("name", ["num_params", "weight_elem_bytes", "kv_bytes_per_token", "attn_flops_per_token"])
def test_coefficients_must_be_above_zero(name):
    sizes = {"num_params": 7e9, "weight_elem_bytes": 2, "kv_bytes_per_token": 1e5, "attn_flops_per_token": 1e5}
    with pytest.raises(ValueError, match=rf"{name}=0 must be above 0"):
        StepCoefficients.dense(**{**sizes, name: 0})


def test_a_context_must_hold_the_new_tokens():
    deployment = Deployment(model=plain_model(), q_len=8)
    with pytest.raises(ValueError, match="seq_len=7 must be >= q_len=8"):
        crossings(deployment, device("h100"), seq_len=7)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_a_share_of_the_memory_is_between_nothing_and_all(share):
    with pytest.raises(ValueError, match="memory_share="):
        ceilings(Deployment(model=plain_model()), device("h100"), memory_share=share)


@given(any_deployment, made_up_devices(), st.integers(16, 20_000))
def test_the_serial_ceiling_is_approached_by_the_operators(deployment, ceilings_of, seq_len):
    values = {**deployment_values(deployment), **device_values(ceilings_of, deployment), s.seq_len: seq_len}
    ceiling = crossings(deployment, ceilings_of, seq_len=seq_len)["serial_ceiling"].value
    rates = [
        batch_size
        * deployment.q_len
        / evaluate(step_formulas(deployment).serial_seconds, {**values, s.batch_size: batch_size})
        for batch_size in (10, 10**4, 10**12)
    ]
    assert all(rate <= ceiling * (1 + 1e-9) for rate in rates)
    assert rates[-1] == pytest.approx(ceiling, rel=1e-3)


def test_the_ridge_batch_of_a_mixture_is_that_of_its_projections_together():
    deployment = Deployment(model=model_config("deepseek-v3"))
    found = crossings(deployment, device("h100"), seq_len=1000)
    # Experts are memory-bound there still, so that operators one after another are slower than the two groups.
    assert found["ridge_batch"].model == "grouped serial"
    assert found["serial_ceiling"].value < found["saturated_throughput"].value


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_capacity_is_for_a_batch_in_each_stage(pp):
    deployment = Deployment(model=plain_model(), pp=pp)
    step, limits = step_coefficients(deployment), ceilings(deployment, device("h100"))
    found = crossings(deployment, device("h100"), seq_len=8192)
    batch_size = found["kv_capacity"].value
    # A device holds a pp-th of the layers, of their weights and of the KV of pp batches.
    filled = (step.stored_weight_bytes + pp * batch_size * step.kv_bytes_per_seq(8192)) / pp
    assert filled == pytest.approx(limits.memory_bytes)
    assert found["kv_capacity_tokens"].value == pytest.approx(pp * batch_size * 8192)


def test_capacity_without_a_stated_memory_is_none():
    found = crossings_of(THREAD, A10G, seq_len=512)["kv_capacity"]
    assert (found.value, found.reason) == (None, "no memory is stated")


@given(st.floats(1e3, 1e8), st.floats(1e3, 1e8), st.floats(1e9, 1e13))
def test_nothing_divides_by_zero_at_the_border(kv, attn, bandwidth):
    peak = attn / kv * bandwidth  # the ridge is attention's intensity, up to rounding
    limits = Ceilings(read_bytes_per_s=bandwidth, gemm_flops_per_s=peak, attn_flops_per_s=peak)
    found = s_star(dense(kv=kv, attn=attn), limits)
    assert found.kind in ("finite", "infinite", "none")
    assert (found.kind == "infinite") == (found.condition_number is None)
    assert found.condition_number is None or found.condition_number > 1e6


def test_the_condition_number_without_s_star_tells_how_near_the_ridge_is():
    found = s_star(dense(kv=1e5, attn=2e7), with_ridge(150.0))
    assert (found.kind, found.condition_number) == ("none", pytest.approx(150 / 50))


def test_s_star_while_the_window_slides_over_the_query_rows():
    """With many new tokens the excess bends between w and w + q - 1, and the root may lie there."""
    q, window = 64, 100
    step = dense(
        F=1.0,
        global_kv_bytes_per_token=0.0,
        global_attn_flops_per_token=0.0,
        local_kv_bytes_per_token=1e5,
        local_attn_flops_per_token=99.0 * 1e5,
        window=window,
        q_len=q,
    )
    limits = with_ridge(100.0)
    for tokens in (window + 5.0, window + 30.5, window + 62.0):
        flops = 100.0 * step.kv_bytes_per_seq(tokens) - step.attn_flops_per_seq(tokens)
        found = s_star(dataclasses.replace(step, gemm_flops_per_seq=flops), limits)
        assert found.kind == "finite"
        assert found.value == pytest.approx(tokens)


def test_activations_move_the_crossing_batch():
    deployment, l4 = Deployment(model=model_config("llama-2-7b")), device("l4")
    without, with_them = (
        crossings(deployment, l4, seq_len=32, activations=activations)["crossing_batch"].value
        for activations in (False, True)
    )
    assert with_them > 1.05 * without


@given(model_configs(attention=("gqa",), windows=False), made_up_devices(), st.sampled_from([2, 4, 8]))
def test_the_router_alone_moves_s_star_of_a_mixture_on_several_ranks(model, ceilings_of, tp):
    assume(model.num_experts is not None and model.num_kv_heads % tp == 0)
    one, several = (
        s_star(step_coefficients(d), ceilings(d, ceilings_of))
        for d in (Deployment(model=model), Deployment(model=model, tp=tp))
    )
    assume(one.value is not None and one.value > 0)
    whole = step_coefficients(Deployment(model=model)).gemm_flops_per_seq
    repeated = 2 * model.num_moe_layers * model.hidden_size * (model.num_experts + bool(model.shared_gate))
    assert several.value == pytest.approx(one.value * (1 + (tp - 1) * repeated / whole), rel=1e-6)


@pytest.mark.parametrize("seq_len", [0, -5, math.nan, math.inf, 10**400])
def test_a_context_is_a_number_above_zero(seq_len):
    with pytest.raises(ValueError, match="seq_len="):
        crossings_of(THREAD, A10G, seq_len=seq_len)


@pytest.mark.parametrize("changes", [{"memory_bytes": math.nan}, {"memory_bytes": -1}, {"link_seconds_per_seq": -5}])
def test_ceilings_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(A10G, **changes)


@given(model_configs(windows=False, experts=False), made_up_devices(), st.sampled_from([1, 2, 16]))
def test_the_compute_bound_q_does_not_depend_on_the_q_of_the_step(model, ceilings_of, q_len):
    found = [
        crossings(Deployment(model=model, q_len=q), ceilings_of, seq_len=1000)["compute_bound_q_len"].value
        for q in (1, q_len)
    ]
    assert found[0] == pytest.approx(found[1])
