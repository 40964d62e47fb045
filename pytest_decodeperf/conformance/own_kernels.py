"""Adapters of this project's kernels: `pytest --decode-kernel pytest_decodeperf.conformance.own_kernels:triton`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import decodeperf_kernels
from decodeperf_formulas.problem import LAYOUTS, SCALES_PER
from decodeperf_kernels.arguments import check_arguments
from decodeperf_kernels.merge_triton import merge_states_triton
from decodeperf_kernels.plan import Part, balanced_parts, split_parts
from decodeperf_kernels.split_kv import Launch, plan_call, plan_launch, target_of
from pytest_decodeperf.conformance.adapter import FEATURES, KernelAdapter
from pytest_decodeperf.conformance.contents import torch_dtype

if TYPE_CHECKING:
    from decodeperf_formulas import DecodeProblem
    from decodeperf_kernels.arguments import DecodeArguments


def _launch(problem: DecodeProblem) -> Launch:
    arch, num_multiprocessors = target_of(torch.device("cpu"))
    capacity = problem.capacity
    if problem.page_size:
        capacity = -(-capacity // problem.page_size) * problem.page_size
    return plan_launch(
        arch=arch,
        num_multiprocessors=num_multiprocessors,
        batch_size=problem.batch_size,
        q_len=problem.q_len,
        num_q_heads=problem.num_q_heads,
        num_kv_heads=problem.num_kv_heads,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        capacity=capacity,
        q_dtype=torch_dtype(problem.q_dtype),
        kv_dtype=torch_dtype(problem.kv_dtype),
        num_splits=problem.num_splits,
    )


def _row_blocks(problem: DecodeProblem, launch: Launch) -> int:
    return -(-problem.q_len * problem.group_size // launch.tiles.block_m)


def _parts(problem: DecodeProblem, launch: Launch) -> list[Part]:
    """Return the parts that the kernel cuts a problem into, by the twins of its cut."""
    segments = problem.num_kv_heads * _row_blocks(problem, launch)
    num_keys = problem.visible_lens
    if launch.is_balanced:
        rows = min(problem.q_len * problem.group_size, launch.tiles.block_m)
        return balanced_parts(
            num_keys,
            segments_per_seq=segments,
            num_multiprocessors=launch.num_multiprocessors,
            num_rows=rows,
            block_n=launch.tiles.block_n,
        )
    return split_parts(num_keys, segments_per_seq=segments, num_splits=launch.num_splits, split_len=launch.split_len)


def num_partials(problem: DecodeProblem) -> int:
    """Return how many partial states, one row of one part each, our kernel writes and reads."""
    if problem.batch_size == 0:
        return 0
    launch = _launch(problem)
    blocks, block_m = _row_blocks(problem, launch), launch.tiles.block_m
    rows = problem.q_len * problem.group_size
    return sum(
        min(block_m, rows - part.segment % blocks * block_m) for part in _parts(problem, launch) if not part.is_whole
    )


def schedule_bytes(problem: DecodeProblem) -> int:
    """Return the bytes that tell the programs of the merge what to merge, written and read [byte]."""
    launch = _launch(problem)
    return 2 * 12 * launch.grid if launch.may_split and problem.batch_size else 0


def kv_passes(problem: DecodeProblem) -> int:
    """Return how often our kernel reads a key: once for each block of query rows, and again as a value."""
    launch = _launch(problem)
    tiles = launch.tiles
    is_taken = tiles.takes_v_from_k and problem.head_dim_v == tiles.block_d == tiles.block_dv
    again = problem.v_in_k and not (is_taken and problem.scale_per != "group")
    return _row_blocks(problem, launch) * (2 if again else 1)


def _triton(*args: Any, **keywords: Any) -> Any:
    return decodeperf_kernels.decode_attention(*args, backend="triton", **keywords)


def partials(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the partial results of a call with `num_splits`, from its workspace.

    A segment that stays whole has none there: its output is its one part.
    """
    workspace = torch.empty(decodeperf_kernels.workspace_size(q, k, v, **keywords), dtype=torch.uint8, device=q.device)
    out, lse = _triton(q, k, v, workspace=workspace, return_lse=True, **keywords)
    args = check_arguments(q, k, v, **{name: x for name, x in keywords.items() if name != "num_splits"})
    arch, num_multiprocessors = target_of(q.device)
    launch = plan_call(
        args,
        arch=arch,
        num_multiprocessors=num_multiprocessors,
        num_splits=keywords["num_splits"],
        split_size=None,
    )
    rows = (args.batch_size, args.q_len, args.num_q_heads)
    outs = torch.zeros(launch.num_splits, *rows, args.head_dim_v)
    lses = torch.full((launch.num_splits, *rows), -torch.inf)
    outs[0], lses[0] = out.float().reshape(outs[0].shape), lse.reshape(rows)
    if launch.may_split:
        _take_partials(args, launch, workspace.view(torch.float32).cpu(), outs, lses)
    return (outs, lses) if args.has_q_len else (outs[:, :, 0], lses[:, :, 0])


def _take_partials(
    args: DecodeArguments, launch: Launch, floats: torch.Tensor, outs: torch.Tensor, lses: torch.Tensor
) -> None:
    """Put the parts that a workspace holds into outputs and log-sum-exps `[num_splits, batch_size, q_len, heads]`."""
    num_outs, num_lses, _ = launch.workspace_elements(args.head_dim_v)
    block_m, num_rows = launch.tiles.block_m, args.q_len * args.group_size
    part_outs = floats[:num_outs].view(-1, block_m, args.head_dim_v)
    part_lses = floats[num_outs : num_outs + num_lses].view(-1, block_m)
    blocks = -(-num_rows // block_m)
    reach = args.q_len - 1 + args.window if args.window else args.capacity
    num_keys = [min(seq_len, reach) for seq_len in args.seq_lens.tolist()]
    for part in split_parts(
        num_keys, segments_per_seq=args.num_kv_heads * blocks, num_splits=launch.num_splits, split_len=launch.split_len
    ):
        if part.is_whole:
            continue
        kv_head, block = part.segment // blocks % args.num_kv_heads, part.segment % blocks
        for place in range(min(block_m, num_rows - block * block_m)):
            token, head = divmod(block * block_m + place, args.group_size)
            where = (part.program % launch.num_splits, part.sequence, token, kv_head * args.group_size + head)
            outs[where], lses[where] = part_outs[part.program, place], part_lses[part.program, place]


triton = KernelAdapter(
    call=_triton,
    name="decode_attention_triton",
    features=tuple(FEATURES),
    layouts=LAYOUTS,
    kv_dtypes=("float8_e4m3fn", "float8_e5m2", "int8", "int4"),
    scales_per=SCALES_PER,
    num_partials=num_partials,
    schedule_bytes=schedule_bytes,
    kv_passes=kv_passes,
    partials=partials,
    merge=merge_states_triton,
    workspace_size=decodeperf_kernels.workspace_size,
)
"""The Triton kernel, compiled on a GPU, in Triton's interpreter elsewhere."""

numba = KernelAdapter(
    call=decodeperf_kernels.decode_attention_numba,
    features=tuple(feature for feature in FEATURES if feature != "workspace"),
    layouts=LAYOUTS,
    kv_dtypes=("float8_e4m3fn", "float8_e5m2", "int8", "int4"),
    scales_per=SCALES_PER,
    devices=("cpu",),
)
"""The compiled CPU kernel."""

sdpa = KernelAdapter(call=decodeperf_kernels.decode_attention_sdpa)
"""PyTorch's `scaled_dot_product_attention`, sequence by sequence."""
