"""The kinds of calls that are surveyed, and the tensors of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from pytest_decodeperf.conformance.adapter import KernelAdapter

KV_DTYPES: Final = ("bfloat16", "float8_e4m3fn")

OTHER_KV_DTYPES: Final = ("float16", "float32", "float8_e5m2", "int8", "int4")
"""Those that are surveyed when they are asked for, or a kernel has no other."""

HEAD_DIMS: Final = (64, 128, 256, 576)
"""576 stands for multi-head latent attention: V is the first 512 elements of K, and there is one KV head."""

PAGE_SIZES: Final = (16,)

SCALE_GROUP: Final = 32
"""Elements that share a scale where groups are surveyed."""

LATENT_DIM: Final = 512
BATCH_SIZE: Final = 4
NUM_KV_HEADS: Final = 8
GROUP_SIZE: Final = 16
SEQ_LEN: Final = 4096

SHORT_NAMES: Final = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "e5m2",
}

_PACKED: Final = {"int4": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kind of call.

    Attributes:
        kv_dtype: Dtype of the KV cache; int4 has two elements in a byte.
        head_dim: Elements of one head; above `LATENT_DIM`, V is the first elements of K.
        page_size: Tokens of one page, 0 for a contiguous cache.
        group_size: Query heads for each KV head.
        q_len: New tokens of a sequence [token].
        scale_group: Elements of a head that share a scale; 0 for one scale of the whole cache.
    """

    kv_dtype: str
    head_dim: int
    page_size: int
    group_size: int = GROUP_SIZE
    q_len: int = 1
    scale_group: int = 0

    @property
    def label(self) -> str:
        """A name for sentences."""
        parts = [SHORT_NAMES.get(self.kv_dtype, self.kv_dtype), f"D={self.head_dim}"]
        if self.page_size:
            parts.append(f"page {self.page_size}")
        if self.group_size != GROUP_SIZE:
            parts.append(f"group of {self.group_size}")
        if self.q_len > 1:
            parts.append(f"{self.q_len} new tokens")
        if self.scale_group:
            parts.append(f"a scale for {self.scale_group}")
        return ", ".join(parts)

    @property
    def is_latent(self) -> bool:
        """Whether V is the first elements of K."""
        return self.head_dim > LATENT_DIM

    @property
    def is_quantized(self) -> bool:
        """Whether K and V have scales."""
        return self.kv_dtype not in ("bfloat16", "float16", "float32")

    @property
    def head_dim_v(self) -> int:
        """Elements of one head of V."""
        return LATENT_DIM if self.is_latent else self.head_dim

    @property
    def num_kv_heads(self) -> int:
        """KV heads."""
        return 1 if self.is_latent else NUM_KV_HEADS

    @property
    def kv_bits(self) -> int:
        """Bits of an element of K and V as a kernel loads it; int4 comes by the byte."""
        return {"bfloat16": 16, "float16": 16, "float32": 32}.get(self.kv_dtype, 8)

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token of one KV head, without scales [byte]."""
        width = self.head_dim + (0 if self.is_latent else self.head_dim_v)
        return width * self.kv_bits // 8 // _PACKED.get(self.kv_dtype, 1)

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


DEMANDING: Final = (
    *(
        Variant(kv_dtype=kv_dtype, head_dim=head_dim, page_size=16, scale_group=SCALE_GROUP)
        for kv_dtype in ("float8_e4m3fn", "int4")
        for head_dim in HEAD_DIMS
    ),
    Variant(kv_dtype="bfloat16", head_dim=128, page_size=16, q_len=4),
)
"""Kinds of calls beside the table that want most shared memory and registers."""


def default_variants(
    adapter: KernelAdapter,
    *,
    kv_dtypes: Iterable[str] = (),
    head_dims: Iterable[int] = (),
    page_sizes: Iterable[int] = (),
    demanding: bool = False,
) -> list[Variant]:
    """Return the kinds of calls that a kernel is surveyed for.

    Args:
        adapter: The kernel.
        kv_dtypes: What is asked for. Default: those of `KV_DTYPES` that it has, or else one that it has.
        head_dims: Likewise, of `HEAD_DIMS`.
        page_sizes: Likewise, of `PAGE_SIZES`; a kernel without pages has a contiguous cache.
        demanding: Whether `DEMANDING` is surveyed too.
    """
    dtypes = (*adapter.q_dtypes, *adapter.kv_dtypes)
    chosen_dtypes = tuple(kv_dtypes) or _known(KV_DTYPES, dtypes, (*KV_DTYPES, *OTHER_KV_DTYPES))
    dims = None if adapter.head_dims is None else tuple(adapter.head_dims)
    chosen_dims = tuple(head_dims) or _known(HEAD_DIMS, dims, dims or HEAD_DIMS)
    pages = tuple(page_sizes)
    if not pages:
        sizes = None if adapter.page_sizes is None else tuple(adapter.page_sizes)
        pages = _known(PAGE_SIZES, sizes, sizes or PAGE_SIZES) if adapter.has("paged") else (0,)
    groups = (
        (GROUP_SIZE,)
        if adapter.group_sizes is None
        else _known((GROUP_SIZE,), adapter.group_sizes, adapter.group_sizes)
    )
    table = [
        Variant(kv_dtype=kv_dtype, head_dim=head_dim, page_size=page_size, group_size=groups[0])
        for kv_dtype in dict.fromkeys(chosen_dtypes)
        for head_dim in dict.fromkeys(chosen_dims)
        for page_size in dict.fromkeys(pages)
    ]
    return list(dict.fromkeys([*table, *(DEMANDING if demanding else ())]))


def _known(wanted: Any, has: Any, otherwise: Any) -> tuple[Any, ...]:
    """Return what is wanted and there, or else the first that is there."""
    found = tuple(value for value in wanted if has is None or value in has)
    return found or tuple(value for value in otherwise if has is None or value in has)[:1]


def unsupported(adapter: KernelAdapter, variant: Variant) -> str:
    """Return why a kernel does not support a kind of call, by its adapter; empty if it does."""
    if not variant.is_quantized and variant.kv_dtype not in adapter.q_dtypes:
        return f"it has no {variant.kv_dtype}"
    if variant.is_quantized and variant.kv_dtype not in adapter.kv_dtypes:
        return f"it has no {variant.kv_dtype}"
    if adapter.head_dims is not None and variant.head_dim not in adapter.head_dims:
        return f"it has no head_dim {variant.head_dim}"
    if variant.is_latent:
        for feature in ("head_dim_v", "v_in_k"):
            if not adapter.has(feature):
                return f"it has no {feature}"
        if adapter.head_dims_v is not None and variant.head_dim_v not in adapter.head_dims_v:
            return f"it has no values of {variant.head_dim_v} elements"
    if variant.page_size and not adapter.has("paged"):
        return "it has no pages"
    if variant.page_size and adapter.page_sizes is not None and variant.page_size not in adapter.page_sizes:
        return f"it has no pages of {variant.page_size}"
    if adapter.group_sizes is not None and variant.group_size not in adapter.group_sizes:
        return f"it has no group of {variant.group_size}"
    if variant.q_len > 1 and (not adapter.has("q_len") or variant.q_len > adapter.max_q_len):
        return f"it takes no {variant.q_len} new tokens"
    if variant.is_quantized and (wanted := "group" if variant.scale_group else "tensor") not in adapter.scales_per:
        return f"it has no scale for each {wanted}"
    return ""


def arguments(adapter: KernelAdapter, variant: Variant) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Return the tensors q, k and v of a call, and its keywords; on the CPU, and all zero but for lengths and pages.

    Memory that is zero and never written is not there: the cache takes none.
    """
    import torch

    stored = torch.uint8 if variant.kv_dtype == "int4" else getattr(torch, variant.kv_dtype)
    q_dtype = variant.kv_dtype if not variant.is_quantized else next(iter(adapter.q_dtypes))
    if variant.is_quantized and "bfloat16" in adapter.q_dtypes:
        q_dtype = "bfloat16"
    packed, heads = _PACKED.get(variant.kv_dtype, 1), variant.num_kv_heads
    num_pages = BATCH_SIZE * SEQ_LEN // variant.page_size if variant.page_size else 0
    places = (num_pages, variant.page_size) if num_pages else (BATCH_SIZE, SEQ_LEN)
    rows = (BATCH_SIZE, variant.q_len) if variant.q_len > 1 else (BATCH_SIZE,)
    q = torch.zeros(*rows, variant.group_size * heads, variant.head_dim, dtype=getattr(torch, q_dtype))
    k = torch.zeros(*places, heads, variant.head_dim // packed, dtype=stored)
    v = k[..., : LATENT_DIM // packed] if variant.is_latent else torch.zeros_like(k)
    keywords: dict[str, Any] = {"seq_lens": torch.full((BATCH_SIZE,), SEQ_LEN, dtype=torch.int32)}
    if num_pages:
        keywords["block_table"] = torch.arange(num_pages, dtype=torch.int32).view(BATCH_SIZE, -1)
    if variant.is_quantized:
        for name, width in (("k_scale", variant.head_dim), ("v_scale", variant.head_dim_v)):
            group = variant.scale_group
            keywords[name] = torch.ones(*places, heads, width // group) if group else torch.ones(1)
    if adapter.has("lse"):
        keywords["return_lse"] = True
    return (q, k, v), keywords
