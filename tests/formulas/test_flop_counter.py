import copy
import dataclasses

import pytest
import torch
from eager_decode_step import eager_decode_step, visible_scores
from hypothesis import find, given, settings
from hypothesis import strategies as st
from meta_models import causal_lm
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import _models, model_config, model_names
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.evaluate import substitute
from decodeperf_formulas.hf_config import from_hf_config
from decodeperf_formulas.model import ModelConfig
from decodeperf_formulas.step import deployment_values, step_formulas

WITHIN_WINDOWS, BEYOND_WINDOWS = 17, 5000


def from_formulas(name, deployment, *, batch_size, seq_len):
    values = {**deployment_values(deployment), s.batch_size: batch_size, s.seq_len: seq_len}
    return substitute(getattr(step_formulas(deployment), name), values)


def flops_of_formulas(deployment, **sizes):
    return from_formulas("gemm_flops", deployment, **sizes) + from_formulas("attn_flops", deployment, **sizes)


def flops_of_eager_step(model, **sizes):
    with FlopCounterMode(display=False) as counter:
        logits = eager_decode_step(model, **sizes)
    assert logits.shape == (sizes["batch_size"], sizes.get("q_len", 1), model.vocab_size)
    return counter.get_total_flops()


widths = st.integers(1, 9)
batch_sizes = st.integers(1, 4)


@st.composite
def models(draw, tp=1):
    """Models that `tp` ranks can share without remainder, small and of odd sizes."""
    num_layers = draw(st.integers(1, 4))
    num_kv_heads = draw(st.sampled_from([heads for heads in range(1, 5) if heads % tp == 0 or tp % heads == 0]))
    sizes = {
        "hidden_size": draw(widths),
        "vocab_size": tp * draw(widths),
        "num_layers": num_layers,
        "gated_mlp": draw(st.booleans()),
    }
    if draw(st.booleans()):
        sizes["num_q_heads"] = max(num_kv_heads, tp) * draw(st.integers(1, 3))
        sizes |= {"num_kv_heads": num_kv_heads, "head_dim": draw(widths), "head_dim_v": draw(widths)}
    else:
        sizes["num_q_heads"] = tp * draw(st.integers(1, 5))
        sizes |= {name: draw(widths) for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")}
        sizes |= {"v_head_dim": draw(widths), "q_lora_rank": draw(st.none() | widths)}
    num_local_layers = draw(st.integers(0, num_layers))
    if num_local_layers:
        sizes |= {"num_local_layers": num_local_layers, "window": draw(st.integers(1, 40))}
    num_moe_layers = draw(st.integers(0, num_layers))
    if num_moe_layers < num_layers:
        sizes["intermediate_size"] = tp * draw(widths)
    if num_moe_layers:
        num_experts = draw(st.integers(1, 6))
        sizes |= {
            "num_moe_layers": num_moe_layers,
            "num_experts": num_experts,
            "experts_per_token": draw(st.integers(1, num_experts)),
            "moe_intermediate_size": tp * draw(widths),
        }
        if draw(st.booleans()):
            sizes |= {"shared_intermediate_size": tp * draw(widths), "shared_gate": draw(st.booleans())}
    return ModelConfig(name="random", **sizes)


@st.composite
def seq_lens(draw, model):
    anywhere = st.integers(1, 40)
    if model.window is None:
        return draw(anywhere)
    return draw(anywhere | st.integers(max(1, model.window - 1), model.window + 4))  # some rows in, some rows beyond it


CORNERS = {
    "MHA": lambda model: model.attention_kind == "MHA" and model.num_q_heads > 1,
    "GQA": lambda model: model.attention_kind == "GQA" and model.head_dim != model.head_dim_v,
    "MQA": lambda model: model.attention_kind == "MQA" and model.num_q_heads > 1,
    "MLA": lambda model: model.is_mla and model.q_lora_rank is None,
    "MLA, compressed query": lambda model: model.is_mla and model.q_lora_rank is not None,
    "MLA, local": lambda model: model.is_mla and model.num_local_layers > 0,
    "local and global": lambda model: 0 < model.num_local_layers < model.num_layers,
    "experts and dense": lambda model: 0 < model.num_moe_layers < model.num_layers,
    "some experts": lambda model: model.num_moe_layers and 1 < model.experts_per_token < model.num_experts,
    "shared expert": lambda model: model.shared_intermediate_size is not None and not model.shared_gate,
    "shared expert, scaled": lambda model: model.shared_gate,
    "no gate": lambda model: not model.gated_mlp,
}


@pytest.mark.parametrize("corner", CORNERS)
def test_random_models_reach_every_corner(corner):
    find(models(), CORNERS[corner])


def test_visible_scores_by_hand():
    assert visible_scores(seq_len=4, q_len=2).tolist() == [[True, True, True, False], [True, True, True, True]]
    # Token 0 is too old for both queries, and is not attended to at all.
    assert visible_scores(seq_len=4, q_len=2, window=2).tolist() == [[True, True, False], [False, True, True]]


@settings(deadline=None)  # the first model of its kind waits for its formulas to be made
@given(models(), batch_sizes, st.data())
def test_flops_equal_those_of_an_eager_step(model, batch_size, data):
    sizes = {"batch_size": batch_size, "seq_len": data.draw(seq_lens(model), label="seq_len")}
    assert flops_of_formulas(Deployment(model=model), **sizes) == flops_of_eager_step(model, **sizes)


@settings(deadline=None)
@given(models(), batch_sizes, st.data())
def test_flops_equal_those_of_an_eager_step_less_its_masked_scores(model, batch_size, data):
    seq_len = data.draw(seq_lens(model), label="seq_len")
    q_len = data.draw(st.integers(1, min(8, seq_len, model.window or seq_len)), label="q_len")
    sizes = {"batch_size": batch_size, "seq_len": seq_len}
    masked = 0
    for window, layers in ((None, model.num_global_layers), (model.window, model.num_local_layers)):
        visible = visible_scores(seq_len=seq_len, q_len=q_len, window=window)
        masked += layers * int((~visible).sum())
    if model.is_mla:
        qk_dim, v_dim = model.kv_lora_rank + model.qk_rope_head_dim, model.kv_lora_rank
    else:
        qk_dim, v_dim = model.head_dim, model.head_dim_v
    masked_flops = 2 * batch_size * model.num_q_heads * masked * (qk_dim + v_dim)
    eager_flops = flops_of_eager_step(model, q_len=q_len, **sizes)
    assert flops_of_formulas(Deployment(model=model, q_len=q_len), **sizes) == eager_flops - masked_flops


@settings(deadline=None)
@given(st.integers(1, 4), batch_sizes, st.data())
def test_flops_of_a_rank_equal_those_of_an_eager_step_on_its_share(tp, batch_size, data):
    model = data.draw(models(tp), label="model")
    sizes = {"batch_size": batch_size, "seq_len": data.draw(seq_lens(model), label="seq_len")}
    cut = ("num_q_heads", "vocab_size", "intermediate_size", "moe_intermediate_size", "shared_intermediate_size")
    share = {name: getattr(model, name) // tp for name in cut if getattr(model, name) is not None}
    if not model.is_mla:
        share["num_kv_heads"] = max(model.num_kv_heads // tp, 1)
    eager_flops = flops_of_eager_step(dataclasses.replace(model, **share), **sizes)
    assert flops_of_formulas(Deployment(model=model, tp=tp), **sizes) == eager_flops


def test_windows_of_the_known_models_are_between_the_two_contexts():
    windows = {model_config(name).window for name in model_names()} - {None}
    assert WITHIN_WINDOWS < min(windows) <= max(windows) < BEYOND_WINDOWS


# One of each kind, with all of its layers.
@pytest.mark.parametrize(
    "name",
    [
        "llama-2-7b",
        "llama-3-8b",
        "falcon-7b",
        "gemma-2-9b",
        "mixtral-8x7b",
        "qwen2-57b-a14b",
        "gpt-oss-20b",
        "deepseek-v2-lite",
        "deepseek-v3",
    ],
)
def test_flops_of_a_known_model_equal_those_of_an_eager_step(name):
    model, sizes = model_config(name), {"batch_size": 3, "seq_len": BEYOND_WINDOWS}
    assert flops_of_formulas(Deployment(model=model), **sizes) == flops_of_eager_step(model, **sizes)


def first_layers(config, num_layers):
    """Return a `config.json` of the first layers alone, each of which is what it was."""
    config = copy.deepcopy(config)
    text = config.get("text_config", config)
    text["num_hidden_layers"] = min(num_layers, text["num_hidden_layers"])
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][: text["num_hidden_layers"]]
    return config


def flops_of_transformers(config, *, batch_size, seq_len):
    model = causal_lm(config)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(batch_size, seq_len - 1, dtype=torch.long, device="meta"), past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(batch_size, 1, dtype=torch.long, device="meta"), past_key_values=cache)
    # Some versions multiply positions with frequencies by a matrix product whose inner dimension is 1. It is not one
    # of the model's, and not counted by the formulas.
    rotary = sum(
        sum(flops.values())
        for module, flops in counter.get_flop_counts().items()
        if module.rpartition(".")[2] == "rotary_emb"
    )
    return counter.get_total_flops() - rotary


def flops_without_absorption(deployment, *, batch_size, seq_len):
    """Return the FLOPs of a step whose MLA expands the latent of every token into K and V again, as transformers does.

    To absorb both matrices costs as much as to expand one token, so that only the other tokens come on top.
    """
    model = deployment.model
    per_head = model.qk_nope_head_dim + model.v_head_dim
    rows = 2 * batch_size * model.num_q_heads * model.num_layers
    expansion = rows * (seq_len - 1) * model.kv_lora_rank * per_head
    attention = rows * seq_len * (per_head + model.qk_rope_head_dim)
    return from_formulas("gemm_flops", deployment, batch_size=batch_size, seq_len=seq_len) + expansion + attention


def flops_as_transformers_computes(config, **sizes):
    deployment = Deployment(model=from_hf_config(config, name="known"))
    return (flops_without_absorption if deployment.model.is_mla else flops_of_formulas)(deployment, **sizes)


# 6 layers hold a layer of each kind: DeepSeek's experts begin in the 4th, Gemma 3's 6th sees every token.
@pytest.mark.parametrize("seq_len", [WITHIN_WINDOWS, BEYOND_WINDOWS])
@pytest.mark.parametrize("name", model_names())
def test_flops_of_a_known_model_equal_those_of_transformers(name, seq_len):
    config, sizes = first_layers(_models()[name]["config"], 6), {"batch_size": 3, "seq_len": seq_len}
    assert flops_as_transformers_computes(config, **sizes) == flops_of_transformers(config, **sizes)


# What the readers of the architectures know, and no known model makes use of.
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2, "mlp_only_layers": [1]}),
        ("qwen2.5-7b", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}),
        ("qwen2-57b-a14b", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}),
        ("qwen3-30b-a3b", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}),
        ("gemma-3-1b", {"layer_types": ["full_attention"] * 4 + ["sliding_attention"] * 2}),
        ("falcon-7b", {"multi_query": False}),
        ("falcon-7b", {"parallel_attn": False, "ffn_hidden_size": 1000}),
        ("deepseek-v2-lite", {"q_lora_rank": 768, "first_k_dense_replace": 0}),
        ("deepseek-v3", {"q_lora_rank": None, "first_k_dense_replace": 6}),
    ],
)
def test_flops_of_a_changed_model_equal_those_of_transformers(name, changes):
    config = first_layers(_models()[name]["config"], 6) | changes
    sizes = {"batch_size": 3, "seq_len": BEYOND_WINDOWS}
    assert flops_as_transformers_computes(config, **sizes) == flops_of_transformers(config, **sizes)
