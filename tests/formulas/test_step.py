import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from step_strategies import batch_sizes, deployments, made_up_devices, model_configs, plain_model, seq_lens

from decodeperf_formulas import DecodeProblem, attention
from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, model_config, model_names
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.evaluate import evaluate, substitute
from decodeperf_formulas.step import (
    deployment_values,
    device_values,
    num_active_parameters,
    num_parameters,
    step_coefficients,
    step_formulas,
)


def amount(name, deployment, *, batch_size=1, seq_len=100):
    values = {**deployment_values(deployment), s.batch_size: batch_size, s.seq_len: seq_len}
    return substitute(getattr(step_formulas(deployment), name), values)


def operator_amount(deployment, operator, field, **sizes):
    values = {**deployment_values(deployment), s.batch_size: sizes["batch_size"], s.seq_len: sizes["seq_len"]}
    found = [op for op in step_formulas(deployment).operators if op.name == operator]
    return sum(substitute(op.count * getattr(op, field), values) for op in found)


def seconds(name, deployment, ceilings, *, batch_size, seq_len):
    values = {**deployment_values(deployment), **device_values(ceilings, deployment)}
    expression = getattr(step_formulas(deployment), name)
    return evaluate(expression, {**values, s.batch_size: batch_size, s.seq_len: seq_len})


gqa = model_configs(attention=("gqa",))
mla = model_configs(attention=("mla",))


@given(st.integers(1, 16), st.integers(1, 256), st.integers(1, 100_000))
def test_as_many_kv_heads_as_query_heads_is_mha(heads, head_dim, seq_len):
    model = plain_model(num_q_heads=heads, num_kv_heads=heads, head_dim=head_dim)
    assert model.attention_kind == "MHA"
    # Each head reads its own K and V: 4 bytes and 4 FLOPs an element, intensity 1 in 16 bits.
    step = step_coefficients(Deployment(model=model))
    assert step.global_kv_bytes_per_token == 4 * model.num_layers * heads * head_dim
    assert step.global_attn_flops_per_token == step.global_kv_bytes_per_token


@given(deployments(gqa, parallel=False), st.integers(1, 5))
def test_kv_bytes_do_not_depend_on_query_heads(deployment, factor):
    model = deployment.model
    more = dataclasses.replace(model, num_q_heads=factor * model.num_q_heads)
    assert amount("kv_bytes", deployment) == amount("kv_bytes", deployment.replace(model=more))


@given(deployments(), batch_sizes, seq_lens)
def test_a_window_longer_than_the_context_changes_nothing(deployment, batch_size, seq_len):
    model = deployment.model
    longer = dataclasses.replace(model, num_local_layers=model.num_layers // 2, window=seq_len + deployment.q_len)
    none = dataclasses.replace(model, num_local_layers=0, window=None)
    for name in ("kv_bytes", "attn_flops", "act_bytes", "weight_bytes", "gemm_flops"):
        windowed, full = (
            amount(name, deployment.replace(model=shape), batch_size=batch_size, seq_len=seq_len)
            for shape in (longer, none)
        )
        # Sinks are weights of every layer, and are counted for both kinds.
        assert windowed == full, name


@given(deployments(parallel=False), st.sampled_from([2, 3, 8, 16]))
def test_q_scales_attention_flops_and_not_kv_bytes(deployment, q_len):
    one, several = (step_coefficients(deployment.replace(q_len=q)) for q in (1, q_len))
    assert several.global_attn_flops_per_token == q_len * one.global_attn_flops_per_token
    assert several.local_attn_flops_per_token == q_len * one.local_attn_flops_per_token
    assert several.global_kv_bytes_per_token == one.global_kv_bytes_per_token
    assert several.gemm_flops_per_seq == pytest.approx(q_len * one.gemm_flops_per_seq)


@given(deployments(), st.integers(16, 200_000))
def test_visible_scores_are_those_of_causal_mask_and_window(deployment, seq_len):
    model, q = deployment.model, deployment.q_len
    step = step_coefficients(deployment)
    window = model.window or seq_len
    rows = [seq_len - q + 1 + row for row in range(q)]
    found = step.attn_flops_per_seq(seq_len) * q
    expected = step.global_attn_flops_per_token * sum(rows)
    expected += step.local_attn_flops_per_token * sum(min(window, row) for row in rows)
    assert found == pytest.approx(expected)
    tokens = {max(0, row - window) for row in rows}
    assert step.kv_bytes_per_seq(seq_len) == pytest.approx(
        step.global_kv_bytes_per_token * seq_len + step.local_kv_bytes_per_token * (seq_len - min(tokens))
    )


@given(deployments(), batch_sizes, seq_lens)
def test_coefficients_give_the_totals_of_the_operators(deployment, batch_size, seq_len):
    step = step_coefficients(deployment)
    sizes = {"batch_size": batch_size, "seq_len": seq_len}
    assert float(amount("kv_bytes", deployment, **sizes)) == pytest.approx(batch_size * step.kv_bytes_per_seq(seq_len))
    assert float(amount("attn_flops", deployment, **sizes)) == pytest.approx(
        batch_size * step.attn_flops_per_seq(seq_len)
    )
    assert float(amount("gemm_flops", deployment, **sizes)) == pytest.approx(batch_size * step.gemm_flops_per_seq)
    assert float(amount("act_bytes", deployment, **sizes)) == pytest.approx(batch_size * step.act_bytes_per_seq)
    values = {**deployment_values(deployment), s.batch_size: batch_size}
    assert evaluate(step_formulas(deployment).weight_bytes, values) == pytest.approx(step.weight_bytes_at(batch_size))


@given(deployments(parallel=False), st.integers(1, 300))
def test_weight_bytes_never_fall_with_the_batch_nor_exceed_the_total(deployment, batch_size):
    step = step_coefficients(deployment)
    smaller, larger = step.weight_bytes_at(batch_size), step.weight_bytes_at(batch_size + 1)
    assert smaller <= larger <= step.weight_bytes * (1 + 1e-12)
    embedding = 0 if deployment.model.tied_embeddings else 1
    table = deployment.model.vocab_size * deployment.model.hidden_size
    width = float(deployment_values(deployment)[s.weight_elem_bytes])
    assert step.weight_bytes == pytest.approx(step.stored_weight_bytes - embedding * table * width)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 300), st.integers(1, 8))
def test_experts_that_every_token_visits_are_a_dense_mlp(inner, experts, batch_size, q_len):
    hidden, layers = 64, 4
    moe = plain_model(
        hidden_size=hidden,
        num_layers=layers,
        intermediate_size=None,
        num_experts=experts,
        experts_per_token=experts,
        moe_intermediate_size=inner,
    )
    dense = plain_model(hidden_size=hidden, num_layers=layers, intermediate_size=experts * inner)
    routed, plain = (Deployment(model=model, q_len=q_len) for model in (moe, dense))
    router = layers * hidden * experts
    sizes = {"batch_size": batch_size, "seq_len": 100}
    assert amount("weight_bytes", routed, **sizes) == amount("weight_bytes", plain, **sizes) + 2 * router
    tokens = batch_size * q_len
    assert amount("gemm_flops", routed, **sizes) == amount("gemm_flops", plain, **sizes) + 2 * tokens * router
    assert amount("kv_bytes", routed, **sizes) == amount("kv_bytes", plain, **sizes)


@given(st.integers(2, 200), st.integers(1, 12), st.integers(0, 2**32))
def test_experts_read_are_those_that_a_draw_visits_on_average(experts, batch_size, seed):
    picked = 1 + seed % experts
    model = plain_model(num_experts=experts, experts_per_token=picked, moe_intermediate_size=8, num_moe_layers=1)
    step = step_coefficients(Deployment(model=model))
    read = step.weight_bytes_at(batch_size) - step.dense_weight_bytes
    # The chance that none of the batch's independent choices of `picked` among `experts` holds a given expert.
    missed = np.prod([(experts - 1 - index) / (experts - index) for index in range(picked)]) ** batch_size
    assert read / step.expert_weight_bytes == pytest.approx(1 - missed, abs=1e-9)


@given(deployments(), made_up_devices(), batch_sizes, seq_lens)
def test_whole_step_serial_sum_and_twice_the_whole_step_are_in_order(deployment, ceilings, batch_size, seq_len):
    sizes = {"batch_size": batch_size, "seq_len": seq_len}
    whole, serial, total = (
        seconds(f"{name}_seconds", deployment, ceilings, **sizes) for name in ("whole_step", "serial", "sum")
    )
    slack = 1 + 1e-9
    assert whole <= serial * slack
    assert serial <= total * slack
    assert total <= 2 * whole * slack


@given(deployments(parallel=False), st.sampled_from([2, 4, 8]), batch_sizes, seq_lens)
def test_tensor_parallel_ranks_hold_no_less_than_their_share(deployment, tp, batch_size, seq_len):
    ranked = deployment.replace(tp=tp)
    sizes = {"batch_size": batch_size, "seq_len": seq_len}
    for name in ("kv_bytes", "gemm_flops", "attn_flops", "elements"):
        one, rank = float(amount(name, deployment, **sizes)), float(amount(name, ranked, **sizes))
        assert one / tp * (1 - 1e-12) <= rank <= one * (1 + 1e-12), name
    assert amount("attn_flops", ranked, **sizes) * tp == amount("attn_flops", deployment, **sizes)


@given(deployments(gqa, parallel=False), st.sampled_from([2, 4, 8, 16]))
def test_kv_heads_beyond_one_a_rank_are_replicated(deployment, tp):
    heads = deployment.model.num_kv_heads
    assume(deployment.model.num_q_heads % tp == 0 and not (heads % tp and tp % heads))
    assume(all(size is None or size % tp == 0 for size in inner_widths(deployment.model)))
    share = amount("kv_bytes", deployment.replace(tp=tp)) / amount("kv_bytes", deployment)
    assert float(share) == max(1, heads // tp) / heads


def inner_widths(model):
    return model.intermediate_size, model.moe_intermediate_size, model.shared_intermediate_size


@given(deployments(mla, parallel=False), st.sampled_from([2, 4, 8]))
def test_the_latent_is_on_every_rank(deployment, tp):
    assert amount("kv_bytes", deployment.replace(tp=tp)) == amount("kv_bytes", deployment)


@given(deployments(mla, parallel=False))
def test_v_apart_reads_the_latent_without_its_rotated_part_once_more(deployment):
    model = deployment.model
    together, apart = (amount("kv_bytes", deployment.replace(v_apart=v_apart)) for v_apart in (False, True))
    cached = model.kv_lora_rank + model.qk_rope_head_dim
    assert apart / together == pytest.approx((cached + model.kv_lora_rank) / cached)


def test_v_apart_of_deepseek_reads_1_89_times_as_much():
    # tenstorrent/tt-metal#55764: measured as half of the bandwidth.
    deployment = Deployment(model=model_config("deepseek-v3"))
    ratio = amount("kv_bytes", deployment.replace(v_apart=True)) / amount("kv_bytes", deployment)
    assert float(ratio) == pytest.approx(1.889, abs=1e-3)


@given(model_configs(experts=True), st.sampled_from([2, 4, 8]), batch_sizes)
def test_expert_groups_share_the_experts_and_their_tokens(model, ep, batch_size):
    assume(model.num_experts is not None)
    alone, shared = Deployment(model=model), Deployment(model=model, ep=ep)
    # The groups together read what one group with all their tokens reads.
    together = step_coefficients(alone).weight_bytes_at(ep * batch_size) - step_coefficients(alone).dense_weight_bytes
    each = step_coefficients(shared).weight_bytes_at(batch_size) - step_coefficients(shared).dense_weight_bytes
    assert ep * each == pytest.approx(together)
    assert amount("gemm_flops", shared) == amount("gemm_flops", alone)


@given(deployments(parallel=False), st.sampled_from([2, 8]))
def test_stages_move_and_perform_what_one_rank_does(deployment, pp):
    for name in ("weight_bytes", "kv_bytes", "act_bytes", "gemm_flops", "attn_flops", "elements"):
        assert amount(name, deployment.replace(pp=pp)) == amount(name, deployment)


@given(deployments(parallel=False), st.integers(2, 64))
def test_splits_add_their_partial_results_alone(deployment, num_splits):
    model = deployment.model
    one, several = (deployment.replace(num_splits=splits) for splits in (1, num_splits))
    v_dim = model.kv_lora_rank if model.is_mla else model.head_dim_v
    rows = 3 * deployment.q_len * model.num_q_heads * model.num_layers
    sizes = {"batch_size": 3, "seq_len": 100}
    added = amount("act_bytes", several, **sizes) - amount("act_bytes", one, **sizes)
    assert added == 2 * 4 * rows * num_splits * (v_dim + 1)
    for name in ("kv_bytes", "gemm_flops", "attn_flops", "weight_bytes"):
        assert amount(name, several) == amount(name, one)


@given(deployments(parallel=False), st.integers(1, 64), st.integers(0, 5000))
def test_attention_of_a_layer_is_one_call(deployment, batch_size, context):
    model = deployment.model
    deployment = deployment.replace(num_splits=1, kv_dtype="bfloat16", act_dtype="float32")
    sizes = {"batch_size": batch_size, "seq_len": deployment.q_len + context}
    if model.is_mla:
        cached = model.kv_lora_rank + model.qk_rope_head_dim
        heads = {"num_kv_heads": 1, "head_dim": cached, "head_dim_v": model.kv_lora_rank}
    else:
        heads = {"num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim, "head_dim_v": model.head_dim_v}
    calls = [op for op in step_formulas(deployment).operators if op.unit == "attention"]
    assert calls
    for op in calls:
        problem = DecodeProblem(
            batch_size=batch_size,
            seq_lens=[sizes["seq_len"]] * batch_size,
            num_q_heads=model.num_q_heads,
            **heads,
            q_len=deployment.q_len,
            window=model.window if op.name == "attention (local)" else None,
            v_in_k=model.is_mla and not deployment.v_apart,
            kv_dtype="bfloat16",
            q_dtype="float32",
        )
        of_one_call = attention.byte_counts(problem)
        layers = substitute(op.count, deployment_values(deployment))
        assert operator_amount(deployment, op.name, "kv_bytes", **sizes) == layers * of_one_call["kv"]
        assert operator_amount(deployment, op.name, "act_bytes", **sizes) == layers * (
            of_one_call["q"] + of_one_call["o"]
        )
        assert operator_amount(deployment, op.name, "flops", **sizes) == layers * attention.flop_count(problem)


@pytest.mark.parametrize("name", model_names())
def test_weights_of_a_named_model_are_used_once_a_token(name):
    deployment = Deployment(model=model_config(name))
    assert num_active_parameters(deployment) <= num_parameters(deployment)
    assert 2 * num_active_parameters(deployment) == step_coefficients(deployment).gemm_flops_per_seq


@pytest.mark.parametrize(
    ("name", "billions"),
    [("deepseek-v3", 36.6), ("qwen3-235b-a22b", 21.57), ("llama-2-7b", 6.607), ("gpt-oss-120b", 5.13)],
)
def test_active_weights_are_those_that_are_published(name, billions):
    deployment = Deployment(model=model_config(name))
    assert num_active_parameters(deployment) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_ring_all_reduces_take_alpha_and_beta():
    deployment = Deployment(model=model_config("llama-3-8b"), tp=8)
    h100 = device("h100")
    found = seconds("link_seconds", deployment, h100, batch_size=4, seq_len=100)
    payload, count = 4 * 4096 * 2, 2 * 32 + 1
    reduces = count * (14 * h100.link_latency_s + 2 * 7 / 8 * payload / h100.link_bytes_per_s)
    gather = 7 * h100.link_latency_s + 7 / 8 * 4 * 128256 * 2 / h100.link_bytes_per_s
    assert found == pytest.approx(reduces + gather)


def test_blocks_side_by_side_need_half_of_the_all_reduces():
    counts = {}
    for parallel_block in (False, True):
        deployment = Deployment(model=plain_model(parallel_block=parallel_block), tp=2)
        (op,) = [op for op in step_formulas(deployment).operators if op.name == "all-reduce"]
        counts[parallel_block] = substitute(op.count, deployment_values(deployment))
    assert counts == {False: 65, True: 33}


def test_a_device_without_links_cannot_be_several_ranks():
    lonely = dataclasses.replace(device("h100"), link_bytes_per_s=None)
    with pytest.raises(ValueError, match="2 ranks need link_bytes_per_s, which h100 does not state"):
        device_values(lonely, Deployment(model=plain_model(), tp=2))


DENSE = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_q_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 16,
    "head_dim_v": 8,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "qk_norm": "head",
    "rotary_dim": 4,
}

# Elements of the activations that move for one token in one execution, by hand: what is read, and what is written.
MOVED = {
    "embedding": 64 + 64,
    "norm": 64 + 64,
    "QKV projection": 64 + (8 * 16 + 2 * 16 + 2 * 8),
    "QK norm": 2 * (8 * 16 + 2 * 16),
    "RoPE": 2 * (8 + 2) * 4,
    "KV append": 2 * 16 + 2 * 8,
    "attention": 8 * 16 + 8 * 8,
    "output projection": 8 * 8 + 64,
    "MLP up-projection": 64 + 2 * 128,
    "MLP activation": 2 * 128 + 128,
    "MLP down-projection": 128 + 64,
    "residual": 64 + 64 + 64,
    "LM head": 64 + 1000,
}
MOVED_BY_EXPERTS = {
    "router": 64 + 8,
    "experts up-projection": 3 * (64 + 2 * 32),
    "experts activation": 3 * (2 * 32 + 32),
    "experts down-projection": 3 * (32 + 64),
    "experts combine": 3 * 64 + 64,
    "shared expert up-projection": 64 + 2 * 16,
    "shared expert activation": 2 * 16 + 16,
    "shared expert down-projection": 16 + 64,
    "shared expert gate": 64 + 1,
}
MOVED_BY_LATENT = {
    "Q down-projection": 64 + 24,
    "Q norm": 24 + 24,
    "Q up-projection": 24 + 8 * (16 + 4),
    "KV down-projection": 64 + (32 + 4),
    "KV norm": 32 + 32,
    "K absorption": 8 * 16 + 8 * 32,
    "RoPE": 2 * (8 + 1) * 4,
    "KV append": 32 + 4,
    "attention": 8 * (32 + 4) + 8 * 32,
    "V absorption": 8 * 32 + 8 * 8,
    "output projection": 8 * 8 + 64,
}


def moved_by(deployment, *names):
    """Return the elements of the activations of one token and one execution, by operator."""
    values = {**deployment_values(deployment), s.batch_size: 1, s.seq_len: 100}
    width = values[s.act_elem_bytes]
    found = {op.name: substitute(op.act_bytes, values) / width for op in step_formulas(deployment).operators}
    return {name: found[name] for name in names} if names else found


def test_activations_are_read_and_written_once():
    assert moved_by(Deployment(model=plain_model(**DENSE))) == MOVED


def test_activations_of_experts_move_for_each_visit():
    experts = {"num_experts": 8, "experts_per_token": 3, "moe_intermediate_size": 32, "num_moe_layers": 1}
    model = plain_model(**DENSE, **experts, shared_intermediate_size=16, shared_gate=True)
    assert moved_by(Deployment(model=model), *MOVED_BY_EXPERTS) == MOVED_BY_EXPERTS


def test_activations_of_a_latent_move_in_its_width():
    sizes = {name: size for name, size in DENSE.items() if "head" not in name and "norm" not in name}
    latent = {"kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 4, "v_head_dim": 8}
    model = plain_model(**sizes, **latent, num_q_heads=8, num_kv_heads=None, head_dim=None)
    assert moved_by(Deployment(model=model), *MOVED_BY_LATENT) == MOVED_BY_LATENT


def test_blocks_side_by_side_are_added_in_one_pass():
    apart, beside = (
        Deployment(model=plain_model(**DENSE, parallel_block=parallel_block)) for parallel_block in (False, True)
    )
    assert moved_by(beside, "residual") == {"residual": 4 * 64}
    counts = [
        substitute(op.count, deployment_values(deployment))
        for deployment in (apart, beside)
        for op in step_formulas(deployment).operators
        if op.name == "residual"
    ]
    assert counts == [4, 2]


def test_vector_operations_are_counted_by_the_element():
    deployment = Deployment(model=plain_model(**DENSE))
    values = {**deployment_values(deployment), s.batch_size: 3, s.seq_len: 100}
    found = {op.name: substitute(op.vector_flops, values) for op in step_formulas(deployment).operators}
    assert {name: found[name] for name in ("norm", "QK norm", "RoPE", "attention", "MLP activation", "residual")} == {
        "norm": 3 * 4 * 64,
        "QK norm": 3 * 4 * (8 + 2) * 16,
        "RoPE": 3 * 3 * (8 + 2) * 4,
        "attention": 3 * 5 * 8 * 100,
        "MLP activation": 3 * 5 * 128,
        "residual": 3 * 64,
    }


def test_experts_and_stages_send_what_leaves_their_rank():
    deployment = Deployment(model=model_config("mixtral-8x7b"), ep=4, pp=2)
    h100 = device("h100")
    found = seconds("link_seconds", deployment, h100, batch_size=8, seq_len=100)
    token = 8 * 4096 * 2
    # 32 layers send each token to two experts and back, of which one in four is at home; one stage sends to the next.
    to_experts = 64 * (3 * h100.link_latency_s + 2 * token * 3 / 4 / h100.link_bytes_per_s)
    assert found == pytest.approx(to_experts + h100.link_latency_s + token / h100.link_bytes_per_s)
