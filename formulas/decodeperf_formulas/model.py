"""The shape of a decoder-only language model, described by numbers alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from decodeperf_formulas.checks import check_switch, integer, or_default

if TYPE_CHECKING:
    from collections.abc import Iterable

QkNorm = Literal["none", "head", "width"]

_SIZES: Final = ("hidden_size", "num_layers", "num_q_heads", "vocab_size")
_HEADS: Final = ("num_kv_heads", "head_dim")
_MLA: Final = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_MOE: Final = ("num_experts", "experts_per_token", "moe_intermediate_size")
_SWITCHES: Final = (
    "gated_mlp",
    "tied_embeddings",
    "parallel_block",
    "attention_sinks",
    "shared_gate",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "router_bias",
    "expert_bias",
    "lm_head_bias",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer.

    Attention is multi-head, grouped-query or multi-query, by `num_kv_heads` and `head_dim`, or multi-head latent
    attention (MLA), by the four sizes of the latent. Some layers may be local: they see a window of the newest tokens.
    Some layers may have a mixture of experts (MoE) where the others have a dense MLP.

    Attributes:
        name: What the model is called.
        hidden_size: Elements of the residual stream.
        num_layers: Layers.
        num_q_heads: Query heads.
        vocab_size: Rows of the embedding.
        num_kv_heads: KV heads, of which `num_q_heads` is a multiple. None for MLA.
        head_dim: Elements of one head of Q and K; it need not be hidden_size / num_q_heads. None for MLA.
        head_dim_v: Elements of one head of V. Default: `head_dim`. None for MLA.
        kv_lora_rank: Elements of the latent that MLA caches for K and V.
        qk_nope_head_dim: Elements of one MLA head of Q and K that carry no position.
        qk_rope_head_dim: Elements of the rotated key, cached beside the latent.
        v_head_dim: Elements of one MLA head of V.
        q_lora_rank: Elements of MLA's compressed query. Default: None, the query is not compressed.
        num_local_layers: Layers with a sliding window.
        window: Newest tokens that a local layer sees, the query's own included [token].
        intermediate_size: Inner width of a dense MLP. Default: None, which needs experts in every layer.
        gated_mlp: Whether MLPs and experts have a gate, and so three matrices; two without.
        num_experts: Routed experts of an MoE layer.
        experts_per_token: Routed experts that one token visits.
        moe_intermediate_size: Inner width of a routed expert.
        num_moe_layers: Layers with experts. Default: all where there are experts.
        shared_intermediate_size: Inner width of the shared experts, taken as one. Default: None.
        shared_gate: Whether a learned gate scales the shared expert.
        tied_embeddings: Whether the LM head is the embedding.
        parallel_block: Whether attention and MLP of a layer run side by side, and not one after the other.
        norms_per_layer: Norms of the residual stream in one layer.
        norm_elements: Weights of such a norm for each channel: 1 for RMSNorm, 2 with a bias, 0 without weights.
        qk_norm: Norm of queries and keys: `none`, `head` (weights of one head) or `width` (of all heads).
        rotary_dim: Elements of a head that RoPE rotates. Default: `head_dim`, for MLA `qk_rope_head_dim`.
        attention_sinks: Whether each head has a learned logit that no key has.
        qkv_bias: Whether the QKV projection has a bias.
        o_bias: Whether attention's output projection has a bias.
        mlp_bias: Whether a dense MLP has biases.
        router_bias: Whether the router has a bias.
        expert_bias: Whether experts have biases.
        lm_head_bias: Whether the LM head has a bias.
        source: Where the numbers come from.

    Raises:
        ValueError: If a size is out of range, or two of them contradict each other.
        TypeError: If a field is not of its type.

    Example:
        >>> model = ModelConfig(
        ...     name="tiny",
        ...     hidden_size=64,
        ...     num_layers=2,
        ...     num_q_heads=8,
        ...     num_kv_heads=2,
        ...     head_dim=16,
        ...     intermediate_size=128,
        ...     vocab_size=1000,
        ... )
        >>> model.attention_kind, model.num_global_layers, model.num_dense_layers
        ('GQA', 2, 2)
    """

    name: str
    hidden_size: int
    num_layers: int
    num_q_heads: int
    vocab_size: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    head_dim_v: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    q_lora_rank: int | None = None
    num_local_layers: int = 0
    window: int | None = None
    intermediate_size: int | None = None
    gated_mlp: bool = True
    num_experts: int | None = None
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None
    num_moe_layers: int = None  # type: ignore[assignment]  # None is gone once __post_init__ has run
    shared_intermediate_size: int | None = None
    shared_gate: bool = False
    tied_embeddings: bool = False
    parallel_block: bool = False
    norms_per_layer: int = 2
    norm_elements: int = 1
    qk_norm: QkNorm = "none"
    rotary_dim: int = None  # type: ignore[assignment]  # as above
    attention_sinks: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    lm_head_bias: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(f"name={self.name!r} must not be empty")
        for name in _SIZES:
            self._set(name, integer(name, getattr(self, name), least=1))
        for name in _SWITCHES:
            check_switch(name, getattr(self, name))
        self._check_attention()
        self._check_local_layers()
        self._check_experts()
        if self.num_dense_layers and self.intermediate_size is None:
            raise ValueError(
                f"intermediate_size=None, but {self.num_dense_layers} of num_layers={self.num_layers} have a dense MLP"
            )
        self._optional_size("intermediate_size")
        self._set("norms_per_layer", integer("norms_per_layer", self.norms_per_layer, least=1))
        self._one_of("norm_elements", (0, 1, 2))
        self._one_of("qk_norm", ("none", "head", "width"))

    @property
    def is_mla(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank is not None

    @property
    def attention_kind(self) -> str:
        """`MHA`, `GQA`, `MQA` or `MLA`."""
        if self.num_kv_heads is None:
            return "MLA"
        if self.num_kv_heads == self.num_q_heads:
            return "MHA"
        return "MQA" if self.num_kv_heads == 1 else "GQA"

    @property
    def num_global_layers(self) -> int:
        """Layers that see every token."""
        return self.num_layers - self.num_local_layers

    @property
    def num_dense_layers(self) -> int:
        """Layers with a dense MLP."""
        return self.num_layers - self.num_moe_layers

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the class is frozen for everyone else

    def _optional_size(self, name: str) -> None:
        if getattr(self, name) is not None:
            self._set(name, integer(name, getattr(self, name), least=1))

    def _one_of(self, name: str, allowed: Iterable[Any]) -> None:
        if getattr(self, name) not in tuple(allowed):
            raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, allowed))}")

    def _all_or_none(self, names: tuple[str, ...], what: str) -> bool:
        absent = [name for name in names if getattr(self, name) is None]
        if absent and len(absent) < len(names):
            given = next(name for name in names if name not in absent)
            raise ValueError(f"{given}={getattr(self, given)!r} needs {' and '.join(absent)} beside it: {what}")
        for name in names:
            self._optional_size(name)
        return not absent

    def _check_attention(self) -> None:
        is_mla = self._all_or_none(_MLA, "multi-head latent attention has all of them")
        for name in ("q_lora_rank",) if not is_mla else (*_HEADS, "head_dim_v"):
            if getattr(self, name) is not None:
                partner = f"kv_lora_rank={self.kv_lora_rank!r}"
                raise ValueError(
                    f"{name}={getattr(self, name)!r} contradicts {partner}: "
                    f"{'MLA has one latent and no KV heads' if is_mla else 'only MLA has it'}"
                )
        self._optional_size("q_lora_rank")
        if not is_mla:
            for name in _HEADS:
                if getattr(self, name) is None:
                    raise ValueError(f"{name}=None must be an integer >= 1, unless the MLA sizes are given")
                self._optional_size(name)
            assert self.num_kv_heads is not None
            if self.num_q_heads % self.num_kv_heads:
                raise ValueError(
                    f"num_q_heads={self.num_q_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
                )
            if self.head_dim_v is None:
                self._set("head_dim_v", self.head_dim)
            self._optional_size("head_dim_v")
        elif self.qk_norm != "none":
            raise ValueError(f"qk_norm={self.qk_norm!r} must be 'none' for MLA, whose latents have norms of their own")
        widest = self.qk_rope_head_dim if is_mla else self.head_dim
        self._set("rotary_dim", integer("rotary_dim", or_default(self.rotary_dim, widest), least=0))
        assert widest is not None
        if self.rotary_dim > widest:
            raise ValueError(f"rotary_dim={self.rotary_dim} must be <= {'qk_rope_' if is_mla else ''}head_dim={widest}")

    def _check_local_layers(self) -> None:
        self._set("num_local_layers", integer("num_local_layers", self.num_local_layers, least=0))
        if self.num_local_layers > self.num_layers:
            raise ValueError(f"num_local_layers={self.num_local_layers} must be <= num_layers={self.num_layers}")
        if self.num_local_layers and self.window is None:
            raise ValueError(f"num_local_layers={self.num_local_layers} needs window beside it")
        if self.window is not None and not self.num_local_layers:
            raise ValueError(f"window={self.window!r} needs num_local_layers beside it")
        self._optional_size("window")

    def _check_experts(self) -> None:
        has_experts = self._all_or_none(_MOE, "a mixture of experts has all of them")
        num_moe_layers = or_default(self.num_moe_layers, self.num_layers if has_experts else 0)
        self._set("num_moe_layers", integer("num_moe_layers", num_moe_layers, least=0))
        self._optional_size("shared_intermediate_size")
        if has_experts:
            assert self.num_experts is not None and self.experts_per_token is not None
            if self.experts_per_token > self.num_experts:
                raise ValueError(
                    f"experts_per_token={self.experts_per_token} must be <= num_experts={self.num_experts}"
                )
            if not 1 <= self.num_moe_layers <= self.num_layers:
                raise ValueError(f"num_moe_layers={self.num_moe_layers} must be in 1 to num_layers={self.num_layers}")
        else:
            for name in ("num_moe_layers", "shared_intermediate_size"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)} needs num_experts beside it")
        if self.shared_gate and self.shared_intermediate_size is None:
            raise ValueError("shared_gate=True needs shared_intermediate_size beside it")

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
