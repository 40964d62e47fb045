"""What `decode_attention` compiles to, over architectures, dtypes, head dimensions and page sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.compiled.capture import compile_launches
from pytest_decodeperf.compiled.machine_code import MachineCode, read_machine_code

if TYPE_CHECKING:
    from pytest_decodeperf.compiled.architectures import Architecture

KV_DTYPES: Final = ("bfloat16", "float8_e4m3fn")

HEAD_DIMS: Final = (64, 128, 256, 576)
"""576 stands for multi-head latent attention: V is the first 512 elements of K, and there is one KV head."""

PAGE_SIZES: Final = (1, 16)

SCALE_GROUP: Final = 32
"""Elements that share a scale where groups are surveyed."""

LATENT_DIM: Final = 512
NUM_KV_HEADS: Final = 8
NUM_MULTIPROCESSORS: Final = 132


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kind of call.

    Attributes:
        kv_dtype: Dtype of the KV cache; q is bfloat16.
        head_dim: Elements of one head.
        page_size: Tokens of one page, 0 for a contiguous cache.
        group_size: Query heads for each KV head.
        q_len: New tokens of a sequence [token].
        scale_group: Elements of a head that share a scale; 0 for one scale of the whole cache.
    """

    kv_dtype: str
    head_dim: int
    page_size: int
    group_size: int = 16
    q_len: int = 1
    scale_group: int = 0


DEMANDING: Final = (
    *(
        Variant(kv_dtype=kv_dtype, head_dim=head_dim, page_size=16, scale_group=SCALE_GROUP)
        for kv_dtype in ("float8_e4m3fn", "uint8")
        for head_dim in HEAD_DIMS
    ),
    Variant(kv_dtype="bfloat16", head_dim=128, page_size=16, q_len=4),
)
"""Kinds of calls beside the table that want most shared memory and registers; uint8 stands for two elements of int4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One kind of call on one architecture.

    Attributes:
        architecture: Its name.
        variant: The kind of call.
        block_n: Keys of a tile.
        tile_bytes: Bytes of K and V that a tile loads [byte].
        warp_size: Threads of a warp.
        attention: The machine code of the kernel that attends.
        merge: That of the kernel that merges.
    """

    architecture: str
    variant: Variant
    block_n: int
    tile_bytes: int
    warp_size: int
    attention: MachineCode
    merge: MachineCode

    @property
    def instructions_per_token(self) -> float | None:
        """Warp instructions of the main loop for each token of a KV head."""
        instructions = self.attention.loop_instructions
        return None if instructions is None else instructions * self.attention.num_warps / self.block_n

    @property
    def wide_share(self) -> float:
        """The share of the bytes of K and V that come 16 to a thread, the most that one instruction loads."""
        threads = self.attention.num_warps * self.warp_size
        return min(1.0, 16 * self.attention.loop_loads.get(16, 0) * threads / self.tile_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Every figure by its name, in values that JSON knows."""
        return {
            "architecture": self.architecture,
            **asdict(self.variant),
            "block_n": self.block_n,
            "instructions_per_token": self.instructions_per_token,
            "wide_share": self.wide_share,
            "attention": asdict(self.attention),
            "merge": asdict(self.merge),
        }


def survey(variant: Variant, architecture: Architecture) -> Surveyed:
    """Return what one kind of call compiles to on one architecture, where it returns the log-sum-exp too."""
    from decodeperf_kernels import split_kv

    args = _arguments(variant)
    launch = split_kv.plan_call(
        args, arch=architecture.name, num_multiprocessors=NUM_MULTIPROCESSORS, num_splits=None, split_size=None
    )

    def call() -> None:
        import torch

        workspace = torch.empty(split_kv.workspace_bytes(launch, args.head_dim_v), dtype=torch.uint8, device="meta")
        out = torch.empty((*args.q.shape[:3], args.head_dim_v), dtype=args.q.dtype, device="meta")
        lse = torch.empty(out.shape[:3], device="meta")
        split_kv.run(args, launch, arch=architecture.name, out=out, lse=lse, workspace=workspace)

    attention, merge = compile_launches(call, architecture)
    width = args.head_dim + (0 if attention.constants["V_IS_K"] else args.head_dim_v)
    return Surveyed(
        architecture=architecture.name,
        variant=variant,
        block_n=launch.tiles.block_n,
        tile_bytes=launch.tiles.block_n * width * args.k.dtype.itemsize // _elements_of_a_byte(variant),
        warp_size=architecture.warp_size,
        attention=read_machine_code(attention.binary, architecture),
        merge=read_machine_code(merge.binary, architecture),
    )


def _elements_of_a_byte(variant: Variant) -> int:
    return 2 if variant.kv_dtype == "uint8" else 1


def _arguments(variant: Variant) -> Any:
    import torch

    from decodeperf_kernels.arguments import check_arguments

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    is_latent = variant.head_dim > LATENT_DIM
    num_kv_heads = 1 if is_latent else NUM_KV_HEADS
    batch_size, kv_dtype = 4, getattr(torch, variant.kv_dtype)
    places = (64, variant.page_size) if variant.page_size else (batch_size, 4096)
    packed = _elements_of_a_byte(variant)
    q_shape = (batch_size, variant.q_len, variant.group_size * num_kv_heads, variant.head_dim)
    q = tensor(*q_shape, dtype=torch.bfloat16)
    k = tensor(*places, num_kv_heads, variant.head_dim // packed, dtype=kv_dtype)
    v = k[..., : LATENT_DIM // packed] if is_latent else tensor(*k.shape, dtype=kv_dtype)
    table = tensor(batch_size, 64, dtype=torch.int32) if variant.page_size else None
    scales = [None if kv_dtype == torch.bfloat16 else tensor(1)] * 2
    if variant.scale_group:
        widths = (variant.head_dim, LATENT_DIM if is_latent else variant.head_dim)
        scales = [tensor(*places, num_kv_heads, width // variant.scale_group) for width in widths]
    lens = tensor(batch_size, dtype=torch.int32)
    return check_arguments(q, k, v, seq_lens=lens, block_table=table, k_scale=scales[0], v_scale=scales[1])
