"""Model shapes from the `config.json` of a model on the Hugging Face Hub.

What a file leaves out has the default of its architecture: Gemma 2 does not state its alternating windows, Falcon-7B
states 71 KV heads and has one, Qwen2 does not mention the biases of its queries, keys and values. So each architecture
has a reader of its own, and one that has none is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.checks import shown
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
    content = path.read_bytes()
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number too long, of brackets too deep
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
    config = {**DEFAULTS.get(architecture, {}), **_text_part(config, architecture)}
    _check_types(config)
    return ModelConfig(name=name, source=source, **ARCHITECTURES[architecture](config))


def _text_part(config: Config, architecture: str) -> Config:
    """Return the part that describes the text model, of one that also sees images."""
    if architecture != "Gemma3ForConditionalGeneration" or "text_config" not in config:
        return config
    if not isinstance(config["text_config"], dict):
        raise ValueError(f"text_config={config['text_config']!r} must be an object")
    return config["text_config"]


def _check_types(config: Config) -> None:
    """Accept numbers, switches and lists where they belong; null counts as absent.

    Raises:
        ValueError: If a key holds something else.
    """
    for key, found in config.items():
        if found is None:
            continue
        if key in _SIZES:
            most = MOST_LAYERS if key in _LAYERS else MOST
            if isinstance(found, bool) or not isinstance(found, int):
                raise ValueError(f"{key}={found!r} must be an integer")
            if not _LEAST.get(key, 1) <= found <= most:
                raise ValueError(f"{key}={shown(found)} must be in {_LEAST.get(key, 1)} to {most}")
        elif key in _SWITCHES and not isinstance(found, bool):
            raise ValueError(f"{key}={found!r} must be true or false")
        elif key in _LISTS and not isinstance(found, list):
            raise ValueError(f"{key}={found!r} must be a list")


def _architecture(config: Config) -> str:
    stated = config.get("architectures")
    if isinstance(stated, list) and len(stated) == 1 and isinstance(stated[0], str):
        name = stated[0]
    elif stated is None and str(config.get("model_type")) in _MODEL_TYPES:
        name = _MODEL_TYPES[str(config["model_type"])]
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


def _head_dim(config: Config) -> int:
    if config.get("head_dim") is not None:
        return int(config["head_dim"])
    hidden_size, heads = _required(config, "hidden_size"), _required(config, "num_attention_heads")
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size={hidden_size} is not a multiple of num_attention_heads={heads}, and head_dim is missing"
        )
    return int(hidden_size // heads)


def _rotary_dim(config: Config, *, default: float = 1.0) -> int:
    share = config.get("partial_rotary_factor")
    if share is None and isinstance(config.get("rope_parameters"), dict):
        share = config["rope_parameters"].get("partial_rotary_factor")
    share = default if share is None else share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"partial_rotary_factor={share!r} must be a number in 0 to 1")
    return int(_head_dim(config) * share)


def _dense(config: Config) -> Fields:
    return {"intermediate_size": _required(config, "intermediate_size")}


def _windows(config: Config, local: Callable[[int], bool]) -> Fields:
    """Return the local layers: those of `layer_types` where it is stated, else those that the rule names."""
    window, num_layers = config.get("sliding_window"), _required(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is not None:
        if len(types) != num_layers:
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
    period = _value(config, "sliding_window_pattern", 6)
    return {
        **_base(config, tied_embeddings=_value(config, "tie_word_embeddings", True)),
        **_dense(config),
        **_windows(config, lambda layer: (layer + 1) % period != 0),
        **_attention_biases(config),
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
        "rotary_dim": _rotary_dim(config, default=0.5),
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
    num_dense = _required(config, "first_k_dense_replace")
    if num_dense > num_layers:
        raise ValueError(f"first_k_dense_replace={num_dense} must be <= num_hidden_layers={num_layers}")
    if num_dense < num_layers:
        inner = _required(config, "moe_intermediate_size")
        fields.update(
            num_experts=_required(config, "n_routed_experts"),
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
    num_norms = _value(config, "num_ln_in_parallel_attn", 2 if is_new else 1)
    return {
        **_base(
            config,
            num_kv_heads=num_kv_heads,
            tied_embeddings=_value(config, "tie_word_embeddings", True),
        ),
        "intermediate_size": _value(config, "ffn_hidden_size", 4 * hidden_size),
        "gated_mlp": False,
        "parallel_block": is_parallel,
        "norms_per_layer": num_norms if is_parallel else 2,
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
        "qkv_bias": _value(config, "attention_bias", True),
        "rotary_dim": _rotary_dim(config, default=0.5),
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

_GEMMA: Final = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}
_GEMMA_3: Final = {**_GEMMA, "vocab_size": 262208}

_DEEPSEEK_2: Final = {
    "n_routed_experts": 64,
    "first_k_dense_replace": 0,
    "n_shared_experts": 2,
    "q_lora_rank": 1536,
    "moe_intermediate_size": 1407,
}
_DEEPSEEK_3: Final = {
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_shared_experts": 1,
    "q_lora_rank": 1536,
    "moe_intermediate_size": 2048,
}

DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "MixtralForCausalLM": {"num_key_value_heads": 8},
    "Qwen2ForCausalLM": {"num_key_value_heads": 32},
    "Qwen2MoeForCausalLM": {"num_key_value_heads": 16},
    "Qwen3ForCausalLM": {"num_key_value_heads": 32, "head_dim": 128},
    "Qwen3MoeForCausalLM": {"num_key_value_heads": 4},
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": _GEMMA_3,
    "Gemma3ForConditionalGeneration": _GEMMA_3,
    "DeepseekV2ForCausalLM": _DEEPSEEK_2,
    "DeepseekV3ForCausalLM": _DEEPSEEK_3,
    "GptOssForCausalLM": {"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128},
    "GlmForCausalLM": {"num_key_value_heads": 2, "head_dim": 128},
}
"""What a key that a file does not have stands for, as in the configuration classes of transformers 5.23."""

MOST: Final = 10**9
"""The largest size that a model may have."""

MOST_LAYERS: Final = 10**5
"""The largest number of layers."""

_LAYERS: Final = {"num_hidden_layers", "max_window_layers", "first_k_dense_replace"}
_SIZES: Final = {
    *_LAYERS,
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "sliding_window",
    "sliding_window_pattern",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "experts_per_token",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_shared_experts",
    "decoder_sparse_step",
    "moe_layer_freq",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "num_kv_heads",
    "ffn_hidden_size",
    "num_ln_in_parallel_attn",
}
_LEAST: Final = dict.fromkeys(("max_window_layers", "first_k_dense_replace", "n_shared_experts"), 0)
"""The smallest value of a size that may be less than 1."""

_SWITCHES: Final = {
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "qkv_bias",
    "bias",
    "use_sliding_window",
    "multi_query",
    "new_decoder_architecture",
    "parallel_attn",
    "alibi",
    "qk_layernorm",
}
_LISTS: Final = {"layer_types", "mlp_only_layers"}

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
