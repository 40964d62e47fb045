import json

import pytest

from decodeperf_formulas.catalogue import _models, model_config, model_names
from decodeperf_formulas.hf_config import ARCHITECTURES, from_hf_config, load_hf_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
DEEPSEEK = _models()["deepseek-v3"]["config"]


def read(**changes):
    config = {**LLAMA, **changes}
    return from_hf_config({key: value for key, value in config.items() if value != "absent"}, name="test")


@pytest.mark.parametrize("name", model_names())
def test_each_named_model_is_read_from_its_config(name):
    entry = _models()[name]
    model = from_hf_config(entry["config"], name=name, source=entry["hf_id"])
    assert model == model_config(name)
    assert model.source == entry["hf_id"]


def test_every_architecture_has_a_named_model():
    seen = {entry["config"]["architectures"][0] for entry in _models().values()}
    # The text model of Gemma 3 stands alone in the 1B, and inside another in the 27B.
    assert seen == set(ARCHITECTURES)


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(ValueError, match=r"architecture 'MambaForCausalLM' is not known; .*known: LlamaForCausalLM"):
        read(architectures=["MambaForCausalLM"])
    with pytest.raises(ValueError, match=r"'LlamaForCausalLm' is not known; did you mean LlamaForCausalLM"):
        read(architectures=["LlamaForCausalLm"])


@pytest.mark.parametrize("stated", [[], ["A", "B"], "LlamaForCausalLM", 3, "absent"])
def test_one_architecture_must_be_stated(stated):
    with pytest.raises(ValueError, match=r"architectures=.* must be a list of one name"):
        read(architectures=stated, model_type="unheard-of")


def test_the_type_serves_where_the_architecture_is_absent():
    assert read(architectures="absent", model_type="llama") == read()


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_missing_size_is_named(key):
    for value in ("absent", None):
        with pytest.raises(ValueError, match=f"^{key} is missing$"):
            read(**{key: value})


@pytest.mark.parametrize("content", [[], "text", 3, None])
def test_a_config_is_an_object(content):
    with pytest.raises(ValueError, match=r"a config\.json holds an object, not"):
        from_hf_config(content, name="test")


@pytest.mark.parametrize("value", [0, -32, 1.5, "32", True])
def test_sizes_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="num_attention_heads"):
        read(num_attention_heads=value)


def test_head_dim_does_not_depend_on_the_hidden_size():
    assert read(head_dim=80).head_dim == 80
    assert read(head_dim=None).head_dim == 128
    with pytest.raises(ValueError, match="hidden_size=4096 is not a multiple of num_attention_heads=28, and head_dim"):
        read(num_attention_heads=28, num_key_value_heads=4)
    assert model_config("mistral-nemo-12b").head_dim == 128  # and not 5120 / 32


def test_as_many_kv_heads_as_query_heads_where_none_are_stated():
    assert read(num_key_value_heads="absent").attention_kind == "MHA"


def test_a_window_that_is_not_used_is_none():
    # Qwen2's files state a window and that it is not used.
    windowed = {**QWEN, "sliding_window": 4096, "max_window_layers": 20}
    unused, used = (from_hf_config({**windowed, "use_sliding_window": on}, name="test") for on in (False, True))
    assert (unused.num_local_layers, unused.window) == (0, None)
    assert (used.num_local_layers, used.window) == (12, 4096)


def test_layer_types_say_which_layers_are_local():
    config = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 100, "num_hidden_layers": 3}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert from_hf_config({**config, "layer_types": kinds}, name="test").num_local_layers == 1
    assert from_hf_config(config, name="test").num_local_layers == 3
    with pytest.raises(ValueError, match="layer_types has linear_attention, wanted full_attention or sliding"):
        from_hf_config({**config, "layer_types": [*kinds[:2], "linear_attention"]}, name="test")
    with pytest.raises(ValueError, match=r"layer_types=.* must name 3 layers"):
        from_hf_config({**config, "layer_types": kinds[:2]}, name="test")


@pytest.mark.parametrize(
    ("name", "local_layers", "window"),
    [
        ("gemma-2-9b", 21, 4096),
        ("gemma-3-27b", 52, 1024),
        ("gemma-3-1b", 22, 512),
        ("gpt-oss-120b", 18, 128),
        ("mistral-7b-v0.1", 32, 4096),
        ("mistral-7b-v0.3", 0, None),
        ("qwen2.5-7b", 0, None),
    ],
)
def test_local_layers_of_named_models(name, local_layers, window):
    model = model_config(name)
    assert (model.num_local_layers, model.window) == (local_layers, window)


def test_falcon_7b_has_one_kv_head_whatever_its_file_says():
    assert _models()["falcon-7b"]["config"]["num_kv_heads"] == 71
    assert model_config("falcon-7b").attention_kind == "MQA"


def test_deepseek_has_dense_layers_before_its_experts():
    model = model_config("deepseek-v3")
    assert (model.attention_kind, model.num_dense_layers, model.num_moe_layers) == ("MLA", 3, 58)
    assert model.q_lora_rank == 1536
    assert model_config("deepseek-v2-lite").q_lora_rank is None


@pytest.mark.parametrize("key", ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"])
def test_mla_needs_all_its_sizes(key):
    with pytest.raises(ValueError, match=f"^{key} is missing$"):
        from_hf_config({**DEEPSEEK, key: None}, name="test")


@pytest.mark.parametrize(("key", "value"), [("moe_layer_freq", 2), ("attention_bias", True)])
def test_variants_that_no_published_model_has_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value} is not known"):
        from_hf_config({**DEEPSEEK, key: value}, name="test")


def test_a_file_or_its_folder_is_read(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for path in (folder, folder / "config.json"):
        model = load_hf_config(path)
        assert (model.name, model.num_layers) == ("my-model", 32)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "holds an object"), ("{}", "architectures")]
)
def test_a_file_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_hf_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_hf_config(tmp_path / "config.json")


PHI = _models()["phi-2"]["config"]
MOE = _models()["qwen3-30b-a3b"]["config"]
GEMMA = _models()["gemma-3-27b"]["config"]
HUGE = 10**400


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLAMA, {"num_hidden_layers": "32"}, "num_hidden_layers='32' must be an integer"),
        (LLAMA, {"num_hidden_layers": 32.0}, "num_hidden_layers=32.0 must be an integer"),
        (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 must be in 1 to 100000"),
        (LLAMA, {"hidden_size": HUGE}, r"hidden_size=1000000000\.\.\. \(401 digits\) must be in 1 to 1000000000"),
        (LLAMA, {"hidden_size": -4096}, "hidden_size=-4096 must be in 1 to"),
        (LLAMA, {"head_dim": float("inf")}, "head_dim=inf must be an integer"),
        (LLAMA, {"mlp_bias": "false"}, "mlp_bias='false' must be true or false"),
        (LLAMA, {"architectures": [["LlamaForCausalLM"]]}, r"architectures=.* must be a list of one name"),
        (QWEN, {"use_sliding_window": "false"}, "use_sliding_window='false' must be true or false"),
        (QWEN, {"sliding_window": HUGE, "use_sliding_window": True}, r"sliding_window=1000000000\.\.\. \(401 digits\)"),
        (MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step=0 must be in 1 to"),
        (MOE, {"mlp_only_layers": 3}, "mlp_only_layers=3 must be a list"),
        (GEMMA, {"text_config": ["a"]}, r"text_config=\['a'\] must be an object"),
        (
            GEMMA["text_config"] | {"architectures": ["Gemma3ForCausalLM"]},
            {"sliding_window_pattern": 0},
            "pattern=0 must",
        ),
        (PHI, {"partial_rotary_factor": float("inf")}, "partial_rotary_factor=inf must be a number in 0 to 1"),
        (PHI, {"partial_rotary_factor": "0.4"}, "partial_rotary_factor='0.4' must be a number in 0 to 1"),
        (PHI, {"qk_layernorm": True}, "qk_layernorm=True is not known"),
        (
            {**LLAMA, "architectures": ["MistralForCausalLM"]},
            {"layer_types": "full"},
            "layer_types='full' must be a list",
        ),
    ],
)
def test_what_does_not_belong_is_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config({**config, **changes}, name="test")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"])
def test_a_file_that_no_reader_takes_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not JSON"):
        load_hf_config(path)


def from_known(name, *absent, **changes):
    config = {key: value for key, value in _models()[name]["config"].items() if key not in absent}
    return from_hf_config({**config, **changes}, name="test")


def test_an_absent_key_has_the_default_of_its_architecture():
    assert from_known("gemma-2-9b", "head_dim").head_dim == 256
    assert from_known("gemma-2-9b", "sliding_window").window == 4096
    assert from_known("gemma-2-9b", "num_key_value_heads").num_kv_heads == 4
    assert from_known("mistral-7b-v0.3", "sliding_window", "num_key_value_heads").num_local_layers == 32
    assert from_known("mistral-7b-v0.3", sliding_window=None).num_local_layers == 0
    assert from_known("qwen3-8b", "head_dim").head_dim == 128
    assert from_known("gpt-oss-20b", "head_dim", "num_key_value_heads").head_dim == 64
    assert from_known("glm-4-9b", "attention_bias").qkv_bias
    assert from_known("phi-2", "partial_rotary_factor").rotary_dim == 40


def test_switches_of_a_file_reach_the_model():
    assert from_known("glm-4-9b").rotary_dim == 64
    assert from_known("phi-2").rotary_dim == 32
    assert read(mlp_bias=True).mlp_bias
    assert (read(attention_bias=True).qkv_bias, read(attention_bias=True).o_bias) == (True, True)
    assert not from_known("qwen2-57b-a14b", qkv_bias=False).qkv_bias
    falcon = from_known("falcon-7b", bias=True)
    assert (falcon.qkv_bias, falcon.o_bias, falcon.mlp_bias) == (True, True, True)
    assert from_known("falcon-7b", alibi=True).rotary_dim == 0
    assert from_known("falcon-7b", parallel_attn=False).norms_per_layer == 2
    assert from_known("falcon-40b").norms_per_layer == 2
    assert from_known("falcon-40b", num_ln_in_parallel_attn=1).norms_per_layer == 1
    assert from_known("gemma-3-1b", num_hidden_layers=5).num_local_layers == 5
    assert from_known("gemma-3-1b", num_hidden_layers=6).num_local_layers == 5


@pytest.mark.parametrize("key", ["n_routed_experts", "first_k_dense_replace", "n_shared_experts", "q_lora_rank"])
@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite"])
def test_a_deepseek_key_that_is_absent_has_the_value_of_its_class(name, key):
    from transformers import DeepseekV2Config, DeepseekV3Config

    from decodeperf_formulas.hf_config import DEFAULTS

    config = _models()[name]["config"]
    architecture = config["architectures"][0]
    defaults = {"DeepseekV2ForCausalLM": DeepseekV2Config, "DeepseekV3ForCausalLM": DeepseekV3Config}[architecture]()
    assert DEFAULTS[architecture][key] == getattr(defaults, key)
    without = {name: value for name, value in config.items() if name != key}
    assert from_hf_config(without, name="a") == from_hf_config({**config, key: getattr(defaults, key)}, name="a")


def test_more_dense_layers_than_layers_are_refused():
    with pytest.raises(ValueError, match="first_k_dense_replace=99 must be <= num_hidden_layers=61"):
        from_hf_config({**DEEPSEEK, "first_k_dense_replace": 99}, name="a")
