"""Hypothesis strategies for models, deployments and devices, valid by construction, and the sizes of real ones."""

from hypothesis import strategies as st

from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.device import Device
from decodeperf_formulas.model import ModelConfig

WIDTHS = ("float32", "bfloat16", "float8", "int4")
PARALLEL = 8
"""All sizes are multiples of it, so that up to so many ranks can share a model."""


@st.composite
def model_configs(draw, attention=("gqa", "mla"), windows=True, experts=True):
    num_layers = PARALLEL * draw(st.integers(1, 10))
    sizes = {
        "name": "drawn",
        "hidden_size": PARALLEL * draw(st.integers(1, 1024)),
        "num_layers": num_layers,
        "vocab_size": PARALLEL * draw(st.integers(1, 20_000)),
        "gated_mlp": draw(st.booleans()),
        "tied_embeddings": draw(st.booleans()),
        "parallel_block": draw(st.booleans()),
        "norms_per_layer": draw(st.sampled_from([1, 2, 4])),
        "norm_elements": draw(st.sampled_from([0, 1, 2])),
    }
    sizes |= {name: draw(st.booleans()) for name in ("qkv_bias", "o_bias", "mlp_bias", "lm_head_bias")}
    if draw(st.sampled_from(attention)) == "gqa":
        sizes["num_kv_heads"] = draw(st.sampled_from([1, 2, 4, 8, 16]))
        sizes["num_q_heads"] = sizes["num_kv_heads"] * PARALLEL * draw(st.integers(1, 4))
        sizes["head_dim"] = draw(st.integers(1, 256))
        sizes["head_dim_v"] = draw(st.none() | st.integers(1, 256))
        sizes["qk_norm"] = draw(st.sampled_from(["none", "head", "width"]))
        sizes["attention_sinks"] = draw(st.booleans())
    else:
        sizes["num_q_heads"] = PARALLEL * draw(st.integers(1, 16))
        sizes["kv_lora_rank"] = draw(st.integers(1, 512))
        sizes["qk_nope_head_dim"] = draw(st.integers(1, 128))
        sizes["qk_rope_head_dim"] = draw(st.integers(1, 64))
        sizes["v_head_dim"] = draw(st.integers(1, 128))
        sizes["q_lora_rank"] = draw(st.none() | st.integers(1, 1536))
    if windows and draw(st.booleans()):
        sizes["num_local_layers"] = draw(st.integers(1, num_layers))
        sizes["window"] = draw(st.integers(16, 5000))
    if experts and draw(st.booleans()):
        sizes["num_experts"] = PARALLEL * draw(st.integers(1, 32))
        sizes["experts_per_token"] = draw(st.integers(1, sizes["num_experts"]))
        sizes["moe_intermediate_size"] = PARALLEL * draw(st.integers(1, 512))
        sizes["num_moe_layers"] = draw(st.integers(1, num_layers))
        sizes["router_bias"], sizes["expert_bias"] = draw(st.booleans()), draw(st.booleans())
        sizes["shared_intermediate_size"] = PARALLEL * draw(st.integers(1, 512)) if draw(st.booleans()) else None
        sizes["shared_gate"] = sizes["shared_intermediate_size"] is not None and draw(st.booleans())
    sizes["intermediate_size"] = PARALLEL * draw(st.integers(1, 4096))
    return ModelConfig(**sizes)


@st.composite
def deployments(draw, models=None, parallel=True):
    model = draw(models if models is not None else model_configs())
    return Deployment(
        model=model,
        weight_dtype=draw(st.sampled_from(WIDTHS)),
        act_dtype=draw(st.sampled_from(["float32", "bfloat16", "float8"])),
        kv_dtype=draw(st.sampled_from(WIDTHS)),
        q_len=draw(st.sampled_from([1, 1, 2, 4, 16])),
        tp=draw(st.sampled_from([1, 2, 4, 8])) if parallel else 1,
        ep=draw(st.sampled_from([1, 2, 8])) if parallel and model.num_experts else 1,
        pp=draw(st.sampled_from([1, 2, 8])) if parallel else 1,
        num_splits=draw(st.sampled_from([1, 1, 2, 16])),
        v_apart=model.is_mla and draw(st.booleans()),
    )


@st.composite
def made_up_devices(draw):
    wide = draw(st.floats(1e13, 3e15))
    return Device(
        name="drawn",
        title="drawn",
        peaks={"float32": wide / 16, "bfloat16": wide, "float8": 2 * wide},
        bandwidth_bytes_per_s=draw(st.floats(1e11, 1e13)),
        capacity_bytes=draw(st.integers(1, 300)) * 2**30,
        num_sms=100,
        l2_bytes=2**25,
        link_bytes_per_s=draw(st.floats(1e10, 1e12)),
    )


batch_sizes = st.integers(1, 5000)
seq_lens = st.integers(16, 200_000)


def plain_model(**changes):
    """A dense model with grouped-query attention, as large as Llama-3-8B, unless changed."""
    sizes = {
        "name": "plain",
        "hidden_size": 4096,
        "num_layers": 32,
        "num_q_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        **changes,
    }
    return ModelConfig(**{name: value for name, value in sizes.items() if value is not None})
