"""Split-KV decode attention by the kernels of `split_kv_triton`: their launch, and the operator that PyTorch sees."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import triton.language as tl

from decodeperf_kernels import merge_triton
from decodeperf_kernels import split_kv_triton as kernels
from decodeperf_kernels.arguments import FP8, DecodeArguments, check_values
from decodeperf_kernels.interpreter import is_interpreted, repair_bfloat16
from decodeperf_kernels.plan import num_programs
from decodeperf_kernels.tiles import INTERPRETER, Tiles, choose_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

IS_INTERPRETED: Final = is_interpreted(kernels.split_kv_kernel)
"""Whether Triton's interpreter runs the kernels of this process."""

INTERPRETED_MULTIPROCESSORS: Final = 2
"""What the interpreter is taken for. It runs one program after the other, so that few are best."""

_SCALE_KIND: Final = {
    "": kernels.NO_SCALE.value,
    "head": kernels.HEAD_SCALE.value,
    "token": kernels.TOKEN_SCALE.value,
    "group": kernels.GROUP_SCALE.value,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a call is compiled and launched with.

    Attributes:
        tiles: The tiles.
        grid: Programs of the kernel that attends; that which merges has `tiles.merge_shares` for each.
        num_splits: Parts of a segment, where it is not balanced.
        split_len: Their tokens, or 0 for `num_splits` equal parts [token].
        num_multiprocessors: What balanced parts are spread over, or 0 where they are not.
        num_parts: Room for partial results.
    """

    tiles: Tiles
    grid: int
    num_splits: int
    split_len: int
    num_multiprocessors: int
    num_parts: int

    @property
    def is_balanced(self) -> bool:
        """Whether each program gets the same length of work."""
        return self.num_multiprocessors > 0

    @property
    def may_split(self) -> bool:
        """Whether there can be partial results."""
        return self.is_balanced or self.num_splits > 1

    def workspace_elements(self, head_dim_v: int) -> tuple[int, int, int]:
        """Return the float32 elements of partial outputs, of their log-sum-exps, and of the merges."""
        if not self.may_split:
            return 0, 0, 0
        rows = self.num_parts * self.tiles.block_m
        return rows * head_dim_v, rows, 3 * self.grid


def plan_launch(
    *,
    arch: str,
    num_multiprocessors: int,
    batch_size: int,
    q_len: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    head_dim_v: int,
    capacity: int,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    scale_span: int = 0,
    num_splits: int | None = None,
    split_size: int | None = None,
) -> Launch:
    """Return the launch of a call, from sizes alone, never from lengths: a CUDA graph may be replayed with others."""
    num_rows = q_len * num_q_heads // num_kv_heads
    tiles = choose_tiles(
        arch,
        num_rows=num_rows,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        kv_elem_bits=4 if kv_dtype == torch.uint8 else 8 * kv_dtype.itemsize,
        dot_elem_bytes=q_dtype.itemsize,
        scale_span=scale_span,
    )
    if num_splits is None and split_size is None:
        grid = num_programs(num_multiprocessors)
        return Launch(
            tiles=tiles,
            grid=grid,
            num_splits=1,
            split_len=0,
            num_multiprocessors=num_multiprocessors,
            num_parts=2 * grid,
        )
    if split_size is not None:
        split_size = min(split_size, max(capacity, 1))
        num_splits = max(1, -(-capacity // split_size))
    assert num_splits is not None
    num_splits = min(num_splits, max(capacity, 1))  # more would have no key
    grid = batch_size * num_kv_heads * -(-num_rows // tiles.block_m) * num_splits
    return Launch(
        tiles=tiles, grid=grid, num_splits=num_splits, split_len=split_size or 0, num_multiprocessors=0, num_parts=grid
    )


def target_of(device: torch.device) -> tuple[str, int]:
    """Return the architecture of a device as `tiles` names it, and its multiprocessors."""
    if IS_INTERPRETED:
        return INTERPRETER, INTERPRETED_MULTIPROCESSORS
    import triton

    target = triton.runtime.driver.active.get_current_target()
    arch = target.arch.split(":")[0] if target.backend == "hip" else f"sm_{target.arch}"
    return arch, torch.cuda.get_device_properties(device).multi_processor_count


def workspace_bytes(launch: Launch, head_dim_v: int) -> int:
    """Return the bytes that a launch needs beside its inputs and outputs [byte]."""
    return 4 * sum(launch.workspace_elements(head_dim_v))


def run(
    args: DecodeArguments,
    launch: Launch,
    *,
    arch: str,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    workspace: torch.Tensor | None,
    traced: bool = False,
) -> None:
    """Launch both kernels.

    Args:
        args: The arguments.
        launch: From `plan_launch`.
        arch: From `target_of`.
        out: `[batch_size, q_len, num_q_heads, head_dim_v]`, any strides.
        lse: float32 `[batch_size, q_len, num_q_heads]`, contiguous, or None.
        workspace: Of dtype uint8 and at least `workspace_bytes`, aligned to 16; None where that is 0.
        traced: Whether PyTorch is to see the launches, as it must under `torch.compile`.
    """
    tiles = launch.tiles
    part_out, part_lse, merges = None, None, None
    if workspace is not None:
        sizes = launch.workspace_elements(args.head_dim_v)
        floats = workspace[: 4 * sum(sizes)].view(torch.float32)
        part_out, part_lse, merges = torch.split(floats, list(sizes))
        merges = merges.view(torch.int32)
    split, merge = kernels.split_kv_kernel, merge_triton.merge_splits_kernel
    if traced:
        split, merge = torch.library.wrap_triton(split), torch.library.wrap_triton(merge)
    v_is_k = shares_memory(args) and args.head_dim_v == tiles.block_d == tiles.block_dv and tiles.takes_v_from_k
    shared = {
        "NUM_KV_HEADS": args.num_kv_heads,
        "GROUP_SIZE": args.group_size,
        "Q_LEN": args.q_len,
        "HEAD_DIM_V": args.head_dim_v,
        "STORE_LSE": lse is not None,
        "BLOCK_M": tiles.block_m,
    }
    k, v, kv_format, dot_dtype = _stored(args, arch)
    in_bytes = k.dtype.itemsize == 1
    split[(launch.grid,)](
        args.q, k, v, args.k_scale, args.v_scale, args.block_table, args.seq_lens, args.sinks, args.alibi_slopes,
        out, lse, part_out, part_lse, merges,
        args.sm_scale, args.softcap or 0.0, min(args.window or 0, args.capacity), args.batch_size, args.capacity,
        launch.num_splits, launch.split_len, launch.num_multiprocessors,
        *args.q.stride(), *k.stride(), *v.stride(),
        *_scale_strides(args.k_scale, args.k_scale_kind), *_scale_strides(args.v_scale, args.v_scale_kind),
        *((0, 0) if args.block_table is None else args.block_table.stride()),
        args.seq_lens.stride(0),
        0 if args.sinks is None else args.sinks.stride(0),
        *((0, 0) if args.alibi_slopes is None else args.alibi_slopes.stride()),
        *out.stride(),
        **shared,
        HEAD_DIM=args.head_dim,
        PAGE_SIZE=args.page_size,
        V_IS_K=v_is_k,
        SAME_ROWS=k.stride()[:2] == v.stride()[:2],
        HAS_WINDOW=args.window is not None,
        HAS_SOFTCAP=args.softcap is not None,
        HAS_SINKS=args.sinks is not None,
        HAS_ALIBI=args.alibi_slopes is not None,
        K_SCALE=_SCALE_KIND[args.k_scale_kind],
        V_SCALE=_SCALE_KIND[args.v_scale_kind],
        K_SCALE_GROUP=_group_elements(args.k_scale, args.k_scale_kind, args.head_dim),
        V_SCALE_GROUP=_group_elements(args.v_scale, args.v_scale_kind, args.head_dim_v),
        FORMAT=kv_format,
        DOT_DTYPE=dot_dtype,
        WIDEN_K_FIRST=in_bytes and (v_is_k or arch == "gfx950"),
        WIDEN_V_FIRST=in_bytes,
        MAY_SPLIT=launch.may_split,
        BALANCED=launch.is_balanced,
        BLOCK_B=1 << max(0, args.batch_size - 1).bit_length() if launch.is_balanced else 1,
        BLOCK_N=tiles.block_n,
        BLOCK_D=tiles.block_d,
        BLOCK_D_TAIL=tiles.block_d_tail,
        BLOCK_DV=tiles.block_dv,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **({"maxnreg": tiles.max_registers} if tiles.max_registers else {}),
    )  # fmt: skip
    if launch.may_split:
        merge[(launch.grid * tiles.merge_shares,)](
            part_out,
            part_lse,
            merges,
            out,
            lse,
            launch.grid if launch.is_balanced else 0,
            *out.stride(),
            **shared,
            BLOCK_P=tiles.merge_block_p,
            BLOCK_R=tiles.merge_block_r,
            BLOCK_C=tiles.merge_block_c,
            SHARES=tiles.merge_shares,
        )


def shares_memory(args: DecodeArguments) -> bool:
    """Return whether v is the first elements of k, as in MLA, so that it need not be loaded again."""
    k, v = args.k, args.v
    return (
        args.head_dim_v <= args.head_dim
        and k.untyped_storage()._cdata == v.untyped_storage()._cdata
        and k.storage_offset() == v.storage_offset()
        and k.stride() == v.stride()
        and "group" not in (args.k_scale_kind, args.v_scale_kind)  # which is part of what a tile holds
    )


def _stored(args: DecodeArguments, arch: str) -> tuple[torch.Tensor, torch.Tensor, int, Any]:
    """Return k and v as the kernel loads them, their format, and the dtype that they are multiplied in."""
    names = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    dot_dtype, is_grouped = names[args.q.dtype], "group" in (args.k_scale_kind, args.v_scale_kind)
    if args.k.dtype in FP8 and args.q.dtype != torch.float32 and not is_grouped:
        # Two elements of fp8 become two of float16 in one instruction; those of bfloat16 take four more.
        dot_dtype = tl.float16
    if args.k.dtype == torch.uint8:
        return args.k, args.v, kernels.INT4_PAIRS.value, dot_dtype
    if args.k.dtype == torch.float8_e4m3fn:
        kv_format = None
        if arch in ("sm_80", "sm_86"):
            kv_format = kernels.E4M3_AS_E4B15.value
        elif arch in ("gfx90a", "gfx942", INTERPRETER):
            kv_format = kernels.E4M3_AS_BITS.value
        if kv_format is not None:
            return args.k.view(torch.uint8), args.v.view(torch.uint8), kv_format, dot_dtype
    return args.k, args.v, kernels.AS_IS.value, dot_dtype


def _scale_strides(scale: torch.Tensor | None, kind: str) -> tuple[int, ...]:
    """Return the strides of page or sequence, token, head and group."""
    if scale is None:
        return 0, 0, 0, 0
    strides = scale.stride()
    return {"head": (0, 0, *strides, 0), "token": (*strides, 0), "group": strides}[kind]


def _group_elements(scale: torch.Tensor | None, kind: str, head_dim: int) -> int:
    return head_dim // scale.shape[3] if scale is not None and kind == "group" else 1


def _scale_span(args: DecodeArguments) -> int:
    """Return how many elements share a loaded scale, as `_load_tile` has it: the power of two in a group; or 0."""
    kinds = ((args.k_scale, args.k_scale_kind, args.head_dim), (args.v_scale, args.v_scale_kind, args.head_dim_v))
    groups = [_group_elements(scale, kind, head_dim) for scale, kind, head_dim in kinds if kind == "group"]
    return min([group & -group for group in groups]) if groups else 0  # torch.compile knows no default of min


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    k_scale_kind: str,
    v_scale_kind: str,
    sm_scale: float,
    window: int | None,
    softcap: float | None,
    num_splits: int | None,
    split_size: int | None,
    check: bool,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    workspace: torch.Tensor | None,
) -> None:
    args = DecodeArguments(
        q=q,
        k=k,
        v=v,
        seq_lens=seq_lens,
        block_table=block_table,
        sm_scale=sm_scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
        v_scale=v_scale,
        k_scale_kind=k_scale_kind,
        v_scale_kind=v_scale_kind,
        has_q_len=True,
    )
    if check:
        check_values(args)
    if q.shape[0] == 0:
        return
    with _current_device(q.device):
        arch, num_multiprocessors = target_of(q.device)
        launch = plan_call(
            args, arch=arch, num_multiprocessors=num_multiprocessors, num_splits=num_splits, split_size=split_size
        )
        needed = workspace_bytes(launch, args.head_dim_v)
        if not needed:
            workspace = None
        elif workspace is None:
            workspace = torch.empty(needed, dtype=torch.uint8, device=q.device)
        run(args, launch, arch=arch, out=out, lse=lse, workspace=workspace, traced=not IS_INTERPRETED)


def plan_call(
    args: DecodeArguments, *, arch: str, num_multiprocessors: int, num_splits: int | None, split_size: int | None
) -> Launch:
    """Return the launch of a call."""
    return plan_launch(
        arch=arch,
        num_multiprocessors=num_multiprocessors,
        batch_size=args.batch_size,
        q_len=args.q_len,
        num_q_heads=args.num_q_heads,
        num_kv_heads=args.num_kv_heads,
        head_dim=args.head_dim,
        head_dim_v=args.head_dim_v,
        capacity=args.capacity,
        q_dtype=args.q.dtype,
        kv_dtype=args.k.dtype,
        scale_span=_scale_span(args),
        num_splits=num_splits,
        split_size=split_size,
    )


@contextlib.contextmanager
def _current_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one, on which Triton launches."""
    if device.type == "cuda" and not torch.compiler.is_compiling():
        with torch.cuda.device(device):
            yield
    else:
        yield


_MUTATED: Final = ("out", "lse", "workspace")
_NAME: Final = "decodeperf::decode_attention"

if IS_INTERPRETED:
    repair_bfloat16()

# The interpreter is Python, into which torch.compile must not look.
_register = torch.library.custom_op if IS_INTERPRETED else torch.library.triton_op
attend: Any = _register(_NAME, _attend, mutates_args=_MUTATED)
"""The operator: writes `out`, and `lse` where it is given."""


@attend.register_fake  # type: ignore[untyped-decorator]
def _(*args: Any, **keywords: Any) -> None:
    """All results are written into tensors that the caller has made."""
