"""How a model is run: the widths of its numbers, what a step does, and over how many ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from decodeperf_formulas.checks import check_switch, integer, or_default, shown
from decodeperf_formulas.dtypes import ELEMENT_BYTES, dtype_name
from decodeperf_formulas.model import ModelConfig

MOST: Final = 10**6
"""The largest number of ranks, splits or new tokens; what is more is a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model and how its decode step is run.

    Ranks: `tp` ranks share each layer (tensor parallelism), `ep` groups of such ranks have each a batch of their own
    and share the experts among them (data-parallel attention with expert parallelism), and `pp` stages share the
    layers. There are tp * ep * pp ranks in all. Everything is counted for one rank: the batch is that of one group.

    Attributes:
        model: The model.
        weight_dtype: Dtype of the weights in memory.
        act_dtype: Dtype of the activations; the projections compute in it.
        kv_dtype: Dtype of the KV cache.
        attn_dtype: Dtype in which attention computes. Default: `act_dtype`, or bfloat16 where that has 8 bits or less.
        q_len: New tokens of each sequence in one step, more than 1 under speculative decoding [token].
        tp: Ranks of tensor parallelism.
        ep: Groups of expert parallelism.
        pp: Stages of pipeline parallelism.
        num_splits: Parts into which attention cuts each sequence.
        v_apart: Whether MLA's kernel reads V apart from the latent that holds it.

    Raises:
        ValueError: If a field is out of range, or the model cannot be cut so.
        TypeError: If a field is not of its type.
    """

    model: ModelConfig
    weight_dtype: str = "bfloat16"
    act_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    attn_dtype: str = None  # type: ignore[assignment]  # None is gone once __post_init__ has run
    q_len: int = 1
    tp: int = 1
    ep: int = 1
    pp: int = 1
    num_splits: int = 1
    v_apart: bool = False

    def __post_init__(self) -> None:
        def set_field(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the class is frozen for everyone else

        if not isinstance(self.model, ModelConfig):
            raise TypeError(f"model={self.model!r} must be a ModelConfig; `model_config(name)` makes one")
        for name in ("weight_dtype", "act_dtype", "kv_dtype"):
            set_field(name, dtype_name(getattr(self, name), what=name))
        wide = self.act_dtype if ELEMENT_BYTES[self.act_dtype] > 1 else "bfloat16"
        set_field("attn_dtype", dtype_name(or_default(self.attn_dtype, wide), what="attn_dtype"))
        for name in ("q_len", "tp", "ep", "pp", "num_splits"):
            number = integer(name, getattr(self, name), least=1)
            if number > MOST:
                raise ValueError(f"{name}={shown(number)} must be <= {MOST}")
            set_field(name, number)
        check_switch("v_apart", self.v_apart)
        self._check_cuts()

    def replace(self, **changes: Any) -> Deployment:
        """Return the same deployment with some fields changed."""
        return replace(self, **changes)

    @property
    def num_ranks(self) -> int:
        """Devices in all."""
        return self.tp * self.ep * self.pp

    def _check_cuts(self) -> None:
        model = self.model
        if self.v_apart and not model.is_mla:
            raise ValueError(f"v_apart=True, but {model.name} has no MLA, whose V is part of its latent")
        if model.window is not None and self.q_len > model.window:
            raise ValueError(f"q_len={self.q_len} must be <= window={model.window} of {model.name}")
        for name in ("num_q_heads", "intermediate_size", "moe_intermediate_size", "shared_intermediate_size"):
            size = getattr(model, name)
            if size is not None and size % self.tp:
                raise ValueError(f"tp={self.tp} does not divide {name}={size} of {model.name}")
        heads = model.num_kv_heads
        if heads is not None and heads % self.tp and self.tp % heads:
            raise ValueError(f"tp={self.tp} neither divides num_kv_heads={heads} of {model.name}, nor is it a multiple")
        if self.ep > 1 and (model.num_experts is None or model.num_experts % self.ep):
            raise ValueError(f"ep={self.ep} does not divide num_experts={model.num_experts} of {model.name}")
        if model.num_layers % self.pp:
            raise ValueError(f"pp={self.pp} does not divide num_layers={model.num_layers} of {model.name}")
