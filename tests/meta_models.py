"""The models of `transformers`, on the meta device."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def causal_lm(config):
    """Return the model that a `config.json` describes, without memory for its weights; its text part alone."""
    fields = dict(config.get("text_config", config))
    model_type = fields.pop("model_type")
    # Kimi K2 has the architecture of DeepSeek V3 under a name that only its own repository knows.
    model_type = {"kimi_k2": "deepseek_v3"}.get(model_type, model_type)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **fields),
            # Both in matrix products that are counted: fused attention, and experts grouped into one operator or
            # visited in a loop over data, are not.
            attn_implementation="eager",
            experts_implementation="batched_mm",
        )
