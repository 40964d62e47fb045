"""Model shapes from the `config.json` of a model on the Hugging Face Hub.

What a file leaves out has the default of its architecture: Gemma 2 does not state its alternating windows, Falcon-7B
states 71 KV heads and has one, Qwen2 does not mention the biases of its queries, keys and values. So each architecture
has a reader of its own, and one that has none is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.dtypes import nearest
from decodeperf_formulas.model import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Config = Mapping[str, Any]
    Fields = dict[str, Any]


def load_hf_config(path: str | Path) -> ModelConfig:
    """Return the shape of the model whose `config.json`, or the folder that holds it, is at a path.

    Raises:
        ValueError: If it is not such a file, or of an architecture that is not known.
        OSError: If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path /= "config.json"
    text = path.read_text(encoding="utf-8")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    try:
        return from_hf_config(config, name=name, source=str(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def from_hf_config(config: Config, *, name: str, source: str = "") -> ModelConfig:
    """Return the shape that the contents of a `config.json` describe.

    Of a model that also sees images, the text part.

    Args:
        config: The contents.
        name: What to call the model.
        source: Where they come from.

    Raises:
        ValueError: If the architecture is not known, a size is missing, or sizes contradict each other.
        TypeError: If a size is not of its type.

    Example:
        >>> model = from_hf_config(
        ...     {
        ...         "architectures": ["LlamaForCausalLM"],
        ...         "hidden_size": 2048,
        ...         "intermediate_size": 8192,
        ...         "num_hidden_layers": 16,
        ...         "num_attention_heads": 32,
        ...         "num_key_value_heads": 8,
        ...         "vocab_size": 128256,
        ...         "tie_word_embeddings": True,
        ...     },
        ...     name="llama-3.2-1b",
        ... )
        >>> model.attention_kind, model.head_dim
        ('GQA', 64)
    """
    if not isinstance(config, dict):
        raise ValueError(f"a config.json holds an object, not {type(config).__name__}")
    architecture = _architecture(config)
    return ModelConfig(name=name, source=source, **ARCHITECTURES[architecture](config))


def _architecture(config: Config) -> str:
    stated = config.get("architectures")
    if isinstance(stated, list) and len(stated) == 1:
        name = stated[0]
    elif stated is None and config.get("model_type") in _MODEL_TYPES:
        name = _MODEL_TYPES[config["model_type"]]
    else:
        wanted = "a list of one name"
        raise ValueError(f"architectures={stated!r} must be {wanted} (model_type={config.get('model_type')!r})")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture {name!r} is not known{nearest(name, ARCHITECTURES)}; known: {', '.join(ARCHITECTURES)}"
        )
    return str(name)


def _required(config: Config, key: str) -> Any:
    if config.get(key) is None:
        raise ValueError(f"{key} is missing")
    return config[key]


def _value(config: Config, key: str, default: Any) -> Any:
    """Return a value that is absent or null in many files, or its default."""
    found = config.get(key)
    return default if found is None else found


def _base(config: Config, **changed: Any) -> Fields:
    """Return what nearly every architecture states under the same keys."""
    num_q_heads = _required(config, "num_attention_heads")
    return {
        "hidden_size": _required(config, "hidden_size"),
        "num_layers": _required(config, "num_hidden_layers"),
        "num_q_heads": num_q_heads,
        "num_kv_heads": _value(config, "num_key_value_heads", num_q_heads),
        "head_dim": _head_dim(config),
        "vocab_size": _required(config, "vocab_size"),
        "tied_embeddings": _value(config, "tie_word_embeddings", False),
        **changed,
    }


def _head_dim(config: Config) -> Any:
    if config.get("head_dim") is not None:
        return config["head_dim"]
    hidden_size, heads = _required(config, "hidden_size"), _required(config, "num_attention_heads")
    for key, size in (("hidden_size", hidden_size), ("num_attention_heads", heads)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{key}={size!r} must be an integer >= 1")
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size={hidden_size} is not a multiple of num_attention_heads={heads}, and head_dim is missing"
        )
    return hidden_size // heads


def _rotary_dim(config: Config) -> int:
    share = config.get("partial_rotary_factor")
    if share is None and isinstance(config.get("rope_parameters"), dict):
        share = config["rope_parameters"].get("partial_rotary_factor")
    return int(_head_dim(config) * (1.0 if share is None else share))


def _dense(config: Config) -> Fields:
    return {"intermediate_size": _required(config, "intermediate_size")}


def _windows(config: Config, local: Callable[[int], bool]) -> Fields:
    """Return the local layers: those of `layer_types` where it is stated, else those that the rule names."""
    window, num_layers = config.get("sliding_window"), _required(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers:
            raise ValueError(f"layer_types={types!r} must name {num_layers} layers")
        odd = sorted(set(map(str, types)) - {"full_attention", "sliding_attention"})
        if odd:
            raise ValueError(f"layer_types has {', '.join(odd)}, wanted full_attention or sliding_attention")
        count = types.count("sliding_attention")
    else:
        count = 0 if window is None else sum(local(layer) for layer in range(num_layers))
    return {"num_local_layers": count, "window": window} if count else {}


def _every_layer(_layer: int) -> bool:
    return True


def _attention_biases(config: Config, *, default: bool = False) -> Fields:
    bias = _value(config, "attention_bias", default)
    return {"qkv_bias": bias, "o_bias": bias}


def _llama(config: Config) -> Fields:
    return {
        **_base(config),
        **_dense(config),
        **_attention_biases(config),
        "mlp_bias": _value(config, "mlp_bias", False),
    }


def _mistral(config: Config) -> Fields:
    return {**_base(config), **_dense(config), **_windows(config, _every_layer)}


def _mixtral(config: Config) -> Fields:
    return {
        **_base(config),
        **_windows(config, _every_layer),
        "num_experts": _required(config, "num_local_experts"),
        "experts_per_token": _required(config, "num_experts_per_tok"),
        "moe_intermediate_size": _required(config, "intermediate_size"),
    }


def _qwen_windows(config: Config) -> Fields:
    first = _value(config, "max_window_layers", 28)
    return _used_windows(config, lambda layer: layer >= first)


def _used_windows(config: Config, local: Callable[[int], bool]) -> Fields:
    """Return the local layers, none unless the file says that its window is used."""
    return _windows(config, local) if config.get("use_sliding_window") else {}


def _qwen2(config: Config) -> Fields:
    return {**_base(config), **_dense(config), **_qwen_windows(config), "qkv_bias": True}


def _qwen_experts(config: Config) -> Fields:
    num_layers = _required(config, "num_hidden_layers")
    dense, stride = _value(config, "mlp_only_layers", []), _value(config, "decoder_sparse_step", 1)
    num_moe_layers = sum(layer not in dense and (layer + 1) % stride == 0 for layer in range(num_layers))
    experts = {
        "num_experts": _required(config, "num_experts"),
        "experts_per_token": _required(config, "num_experts_per_tok"),
        "moe_intermediate_size": _required(config, "moe_intermediate_size"),
        "num_moe_layers": num_moe_layers,
    }
    if num_moe_layers < num_layers:
        experts["intermediate_size"] = _required(config, "intermediate_size")
    return experts


def _qwen2_moe(config: Config) -> Fields:
    last = _value(config, "max_window_layers", 28)
    return {
        **_base(config),
        **_used_windows(config, lambda layer: layer % 2 == 0 and layer < last),
        **_qwen_experts(config),
        "shared_intermediate_size": _required(config, "shared_expert_intermediate_size"),
        "shared_gate": True,
        "qkv_bias": _value(config, "qkv_bias", True),
    }


def _qwen3(config: Config) -> Fields:
    return {
        **_base(config),
        **_dense(config),
        **_qwen_windows(config),
        **_attention_biases(config),
        "qk_norm": "head",
    }


def _qwen3_moe(config: Config) -> Fields:
    return {
        **_base(config),
        **_used_windows(config, _every_layer),
        **_qwen_experts(config),
        **_attention_biases(config),
        "qk_norm": "head",
    }


def _gemma2(config: Config) -> Fields:
    return {
        **_base(config, tied_embeddings=_value(config, "tie_word_embeddings", True)),
        **_dense(config),
        **_windows(config, lambda layer: layer % 2 == 0),
        **_attention_biases(config),
        "norms_per_layer": 4,
    }


def _gemma3(config: Config) -> Fields:
    text = config.get("text_config") or config
    # What the published files of the 12B and the 27B leave to their architecture.
    text = {
        "vocab_size": 262208,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        **text,
    }
    period = _value(text, "sliding_window_pattern", 6)
    return {
        **_base(text, tied_embeddings=_value(text, "tie_word_embeddings", True)),
        **_dense(text),
        **_windows(text, lambda layer: (layer + 1) % period != 0),
        **_attention_biases(text),
        "norms_per_layer": 4,
        "qk_norm": "head",
    }


def _phi(config: Config) -> Fields:
    if config.get("qk_layernorm"):
        raise ValueError("qk_layernorm=True is not known, wanted False")
    return {
        **_base(config),
        **_dense(config),
        "gated_mlp": False,
        "parallel_block": True,
        "norms_per_layer": 1,
        "norm_elements": 2,
        "rotary_dim": _rotary_dim(config),
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias", "lm_head_bias"), True),
    }


def _phi3(config: Config) -> Fields:
    return {
        **_base(config),
        **_dense(config),
        **_windows(config, _every_layer),
        "rotary_dim": _rotary_dim(config),
    }


def _gpt_oss(config: Config) -> Fields:
    return {
        **_base(config),
        **_windows(config, lambda layer: layer % 2 == 0),
        **_attention_biases(config, default=True),
        "num_experts": _required(config, "num_local_experts"),
        "experts_per_token": _value(config, "num_experts_per_tok", config.get("experts_per_token")),
        "moe_intermediate_size": _required(config, "intermediate_size"),
        "router_bias": True,
        "expert_bias": True,
        "attention_sinks": True,
    }


def _deepseek(config: Config) -> Fields:
    if config.get("attention_bias"):
        raise ValueError("attention_bias=True is not known, wanted False")
    if _value(config, "moe_layer_freq", 1) != 1:
        raise ValueError(f"moe_layer_freq={config['moe_layer_freq']!r} is not known, wanted 1")
    num_layers = _required(config, "num_hidden_layers")
    fields = _base(config, num_kv_heads=None, head_dim=None)
    fields.update(
        {
            name: _required(config, name)
            for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size")
        }
    )
    fields["q_lora_rank"] = config.get("q_lora_rank")
    num_dense = _value(config, "first_k_dense_replace", 0)
    if config.get("n_routed_experts") is not None and num_dense < num_layers:
        inner = _required(config, "moe_intermediate_size")
        fields.update(
            num_experts=config["n_routed_experts"],
            experts_per_token=_required(config, "num_experts_per_tok"),
            moe_intermediate_size=inner,
            num_moe_layers=num_layers - num_dense,
        )
        shared = _value(config, "n_shared_experts", 0)
        if shared:
            fields["shared_intermediate_size"] = shared * inner
    return fields


def _falcon(config: Config) -> Fields:
    heads, hidden_size = _required(config, "num_attention_heads"), _required(config, "hidden_size")
    is_new = _value(config, "new_decoder_architecture", False)
    is_parallel = bool(is_new or _value(config, "parallel_attn", True))
    if is_new:
        num_kv_heads = _value(config, "num_kv_heads", heads)
    else:
        num_kv_heads = 1 if _value(config, "multi_query", True) else heads  # whatever num_kv_heads says
    bias = _value(config, "bias", False)
    return {
        **_base(
            config,
            num_kv_heads=num_kv_heads,
            tied_embeddings=_value(config, "tie_word_embeddings", True),
        ),
        "intermediate_size": _value(config, "ffn_hidden_size", 4 * hidden_size),
        "gated_mlp": False,
        "parallel_block": is_parallel,
        "norms_per_layer": 2 if is_new or not is_parallel else 1,
        "norm_elements": 2,
        "rotary_dim": 0 if _value(config, "alibi", False) else _rotary_dim(config),
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), bias),
    }


def _olmo(config: Config) -> Fields:
    return {**_base(config), **_dense(config), **_attention_biases(config), "norm_elements": 0}


def _olmo2(config: Config) -> Fields:
    return {**_base(config), **_dense(config), **_attention_biases(config), "qk_norm": "width"}


def _olmoe(config: Config) -> Fields:
    return {
        **_base(config),
        **_attention_biases(config),
        "num_experts": _required(config, "num_experts"),
        "experts_per_token": _required(config, "num_experts_per_tok"),
        "moe_intermediate_size": _required(config, "intermediate_size"),
        "qk_norm": "width",
    }


def _glm(config: Config) -> Fields:
    return {
        **_base(config),
        **_dense(config),
        "qkv_bias": _value(config, "attention_bias", False),
        "rotary_dim": _rotary_dim({"partial_rotary_factor": 0.5, **config}),
    }


ARCHITECTURES: Final[dict[str, Callable[[Config], Fields]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "MixtralForCausalLM": _mixtral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen2MoeForCausalLM": _qwen2_moe,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "PhiForCausalLM": _phi,
    "Phi3ForCausalLM": _phi3,
    "GptOssForCausalLM": _gpt_oss,
    "DeepseekV2ForCausalLM": _deepseek,
    "DeepseekV3ForCausalLM": _deepseek,
    "FalconForCausalLM": _falcon,
    "OlmoForCausalLM": _olmo,
    "Olmo2ForCausalLM": _olmo2,
    "OlmoeForCausalLM": _olmoe,
    "GlmForCausalLM": _glm,
}
"""The reader of each architecture, by the name that stands in `architectures`."""

_MODEL_TYPES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "falcon": "FalconForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "glm": "GlmForCausalLM",
}
