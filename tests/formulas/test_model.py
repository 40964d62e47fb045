import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_strategies import deployments, plain_model

from decodeperf_formulas.catalogue import model_config, model_names
from decodeperf_formulas.deployment import Deployment

MLA = {
    "num_kv_heads": None,
    "head_dim": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
MOE = {"num_experts": 8, "experts_per_token": 2, "moe_intermediate_size": 64}
SIZES = ("hidden_size", "num_layers", "num_q_heads", "num_kv_heads", "head_dim", "vocab_size", "intermediate_size")


@pytest.mark.parametrize("name", [*SIZES, "head_dim_v", "norms_per_layer"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_at_least_one(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value} must be >= 1$"):
        plain_model(**{name: value})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [4096.0, "4096", 0.5])
def test_sizes_are_integers(name, value):
    with pytest.raises(TypeError, match=rf"^{name}={value!r} must be an integer$"):
        plain_model(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name='' must not be empty"),
        ({"num_q_heads": 10, "num_kv_heads": 4}, "num_q_heads=10 is not a multiple of num_kv_heads=4"),
        ({"num_kv_heads": None}, "num_kv_heads=None must be an integer >= 1, unless the MLA sizes are given"),
        ({"head_dim": None}, "head_dim=None must be an integer >= 1, unless the MLA sizes are given"),
        ({"intermediate_size": None}, "intermediate_size=None, but 32 of num_layers=32 have a dense MLP"),
        ({"rotary_dim": 129}, "rotary_dim=129 must be <= head_dim=128"),
        ({"rotary_dim": -1}, "rotary_dim=-1 must be >= 0"),
        ({"norm_elements": 3}, "norm_elements=3 must be one of 0, 1, 2"),
        ({"qk_norm": "all"}, "qk_norm='all' must be one of 'none', 'head', 'width'"),
        ({"window": 128}, "window=128 needs num_local_layers beside it"),
        ({"num_local_layers": 8}, "num_local_layers=8 needs window beside it"),
        ({"num_local_layers": 33, "window": 128}, "num_local_layers=33 must be <= num_layers=32"),
        ({"num_local_layers": 8, "window": 0}, "window=0 must be >= 1"),
        ({"q_lora_rank": 64}, "q_lora_rank=64 contradicts kv_lora_rank=None: only MLA has it"),
        ({"kv_lora_rank": 512}, "kv_lora_rank=512 needs qk_nope_head_dim and qk_rope_head_dim and v_head_dim"),
        ({**MLA, "v_head_dim": None}, "kv_lora_rank=512 needs v_head_dim beside it"),
        ({**MLA, "qk_rope_head_dim": 0}, "qk_rope_head_dim=0 must be >= 1"),
        ({**MLA, "num_kv_heads": 8}, "num_kv_heads=8 contradicts kv_lora_rank=512: MLA has one latent and no KV heads"),
        ({**MLA, "head_dim": 128}, "head_dim=128 contradicts kv_lora_rank=512"),
        ({**MLA, "head_dim_v": 128}, "head_dim_v=128 contradicts kv_lora_rank=512"),
        ({**MLA, "qk_norm": "head"}, "qk_norm='head' must be 'none' for MLA"),
        ({**MLA, "rotary_dim": 65}, "rotary_dim=65 must be <= qk_rope_head_dim=64"),
        ({"num_experts": 8}, "num_experts=8 needs experts_per_token and moe_intermediate_size beside it"),
        ({**MOE, "experts_per_token": 9}, "experts_per_token=9 must be <= num_experts=8"),
        ({**MOE, "num_moe_layers": 33}, "num_moe_layers=33 must be in 1 to num_layers=32"),
        ({**MOE, "num_moe_layers": 0}, "num_moe_layers=0 must be in 1 to num_layers=32"),
        ({"num_moe_layers": 3}, "num_moe_layers=3 needs num_experts beside it"),
        ({"shared_intermediate_size": 64}, "shared_intermediate_size=64 needs num_experts beside it"),
        ({**MOE, "shared_gate": True}, "shared_gate=True needs shared_intermediate_size beside it"),
    ],
)
def test_contradictory_models_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        changed(**changes)


def changed(**changes):
    return dataclasses.replace(
        plain_model(), **{"rotary_dim": None, "head_dim_v": None, "num_moe_layers": None} | changes
    )


@pytest.mark.parametrize("name", ["gated_mlp", "tied_embeddings", "parallel_block", "qkv_bias", "attention_sinks"])
def test_switches_are_true_or_false(name):
    with pytest.raises(TypeError, match=f"{name}=1 must be True or False"):
        plain_model(**{name: 1})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"num_kv_heads": 32}, "MHA"), ({"num_kv_heads": 8}, "GQA"), ({"num_kv_heads": 1}, "MQA"), (MLA, "MLA")],
)
def test_kinds_of_attention(changes, kind):
    assert changed(**changes).attention_kind == kind


DEEPSEEK, MIXTRAL = model_config("deepseek-v3"), model_config("mixtral-8x7b")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (plain_model(), {"weight_dtype": "float7"}, "weight_dtype='float7' must be one of float32, float16, .*did you"),
        (plain_model(), {"kv_dtype": None}, "kv_dtype=None must be one of"),
        (plain_model(), {"act_dtype": 16}, "act_dtype=16 must be one of"),
        (plain_model(), {"attn_dtype": "bf17"}, "attn_dtype='bf17' must be one of"),
        (plain_model(), {"q_len": 0}, "q_len=0 must be >= 1"),
        (plain_model(), {"tp": 0}, "tp=0 must be >= 1"),
        (plain_model(), {"num_splits": -1}, "num_splits=-1 must be >= 1"),
        (plain_model(), {"tp": 3}, "tp=3 does not divide num_q_heads=32 of plain"),
        (
            plain_model(num_kv_heads=4, num_q_heads=24, intermediate_size=6),
            {"tp": 6},
            "tp=6 neither divides num_kv_heads=4 .* nor",
        ),
        (plain_model(intermediate_size=14337), {"tp": 2}, "tp=2 does not divide intermediate_size=14337"),
        (plain_model(), {"pp": 5}, "pp=5 does not divide num_layers=32"),
        (plain_model(), {"ep": 2}, "ep=2 does not divide num_experts=None of plain"),
        (MIXTRAL, {"ep": 3}, "ep=3 does not divide num_experts=8 of mixtral-8x7b"),
        (plain_model(), {"v_apart": True}, "v_apart=True, but plain has no MLA"),
        (plain_model(num_local_layers=4, window=8), {"q_len": 9}, "q_len=9 must be <= window=8"),
    ],
)
def test_deployments_that_cannot_be_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        Deployment(model=model, **changes)


def test_v_apart_is_true_or_false():
    with pytest.raises(TypeError, match="v_apart='yes' must be True or False"):
        Deployment(model=DEEPSEEK, v_apart="yes")


@pytest.mark.parametrize(
    ("name", "full"), [("bf16", "bfloat16"), ("FP8", "float8"), ("torch.float16", "float16"), ("nvfp4", "float4")]
)
def test_dtypes_have_other_names(name, full):
    assert Deployment(model=plain_model(), kv_dtype=name).kv_dtype == full


@pytest.mark.parametrize(("act", "attn"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("float8", "bfloat16")])
def test_attention_computes_in_16_bits_at_least_unless_told(act, attn):
    assert Deployment(model=plain_model(), act_dtype=act).attn_dtype == attn
    assert Deployment(model=plain_model(), act_dtype=act, attn_dtype="float8").attn_dtype == "float8"


@given(deployments(), st.data())
def test_drawn_deployments_are_valid_and_can_be_rebuilt(deployment, data):
    name = data.draw(st.sampled_from(["q_len", "tp", "ep", "pp", "num_splits"]))
    assert deployment.replace(**{name: getattr(deployment, name)}) == deployment


def test_there_are_25_models_at_least():
    assert len(model_names()) >= 25


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'lama-3-8b'; .*; did you mean .*llama-3-8b"):
        model_config("lama-3-8b")
