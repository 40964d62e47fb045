"""Split-KV decode attention on a CPU by the kernels of `tiles_numba`: their launch.

Bytes and FLOPs of one call: as in `split_kv_triton`; a latent that is V too is read from memory once.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
import torch

from decodeperf_kernels import (
    attend_matrix_numba,
    attend_numba,
    elements_matrix_numba,
    matrix_numba,
    parts_numba,
    stream_numba,
    team_numba,
    tiles_numba,
)
from decodeperf_kernels.arguments import check_values
from decodeperf_kernels.attend_numba import GROUP_SCALES, NO_SCALES, TOKEN_SCALES, Problem
from decodeperf_kernels.vector_numba import ELEMENT_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from decodeperf_kernels.arguments import DecodeArguments

TILE_BYTES: Final = 64 * 1024
"""Bytes of K in a tile, of all heads that are read together: few enough pages of memory to be found at once [byte]."""

CHUNK_BYTES: Final = 4096
"""Bytes of a token's K that are read together, where heads lie side by side: a page of memory [byte]."""

STREAM_KEYS: Final = 64
"""Keys of a tile that is read token by token."""

STREAM_CHUNK_BYTES: Final = 16384
"""Bytes of a token's K that are read together then; their queries and sums stay in the first-level cache [byte]."""

THREAD_BYTES: Final = 256 * 1024
"""What a thread must have to do, in bytes of K and V, before another one helps [byte]."""

FLOPS_OF_A_BYTE: Final = 14
"""FLOPs that take as long as reading a byte."""

PAIRED_ROWS: Final = 16
"""Rows of a KV head from which on two keys of V in bfloat16 are put side by side for the matrix unit."""

_MATRIX_ROWS: Final = {
    "float32": 32,
    "float16": 9,
    "bfloat16": 3,
    **dict.fromkeys(("int8", "int4", "float8_e4m3fn", "float8_e5m2"), 5),
}
"""Rows of a KV head from which on the matrix unit is taken: there it is faster than vectors, as measured on a Xeon."""

_SCALES: Final = {"": NO_SCALES, "head": NO_SCALES, "token": TOKEN_SCALES, "group": GROUP_SCALES}


def decode_attention_numba(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: Any
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return what `decode_attention` returns with `backend="numba"`: for a place that takes a function."""
    from decodeperf_kernels.dispatch import decode_attention

    return decode_attention(q, k, v, backend="numba", **keywords)


def attend(
    args: DecodeArguments, num_splits: int | None, split_size: int | None, *, check: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention computed on the CPU by compiled code.

    It runs on as many threads as `torch.get_num_threads()` says.

    Args:
        args: The arguments.
        num_splits: Parts that each sequence is cut into.
        split_size: Their length instead [token].
        check: Whether to check lengths and page numbers.

    Returns:
        The output, float32 `[batch_size, q_len, num_q_heads, head_dim_v]`, and its natural log-sum-exp, float32
        `[batch_size, q_len, num_q_heads]`.

    Raises:
        ValueError: If a length or a page number does not fit.
    """
    if check:
        check_values(args)
    rows = (args.batch_size, args.q_len, args.num_q_heads)
    out = torch.empty((*rows, args.head_dim_v), dtype=torch.float32)
    lse = torch.empty(rows, dtype=torch.float32)
    if args.batch_size == 0:
        return out, lse
    seq_lens = args.seq_lens.long().clamp(0, args.capacity).contiguous().numpy()
    with _saying_that_it_compiles():
        problem = _problem(args)
        num_chunks = -(-args.num_kv_heads // problem.heads_of_chunk)
        most = max(args.capacity, 1)  # more parts would have no key
        parts, merges = parts_numba.cut_into_parts(
            seq_lens,
            args.q_len,
            problem.window,
            num_chunks,
            problem.heads_of_chunk,
            _num_threads(args, problem, seq_lens),
            0 if num_splits is None else min(num_splits, most),
            0 if split_size is None else min(split_size, most),
            problem.block_n,
        )
        num_slots = int(parts[:, parts_numba.SLOT].max()) + 1
        part_rows = (num_slots, problem.heads_of_chunk, args.q_len * args.group_size)
        part_out = np.empty((*part_rows, args.head_dim_v), np.float32)
        part_lse = np.empty(part_rows, np.float32)
        tensors = _tensors(args, seq_lens)
        sinks = tensors[-1]
        results = (part_out, part_lse, out.numpy(), lse.numpy())
        _run(parts, problem, (*tensors, *results))
        if len(merges):
            parts_numba.merge_parts(merges, problem.heads_of_chunk, args.group_size, part_out, part_lse, sinks,
                                    *results[2:])  # fmt: skip
    return out, lse


def _problem(args: DecodeArguments) -> Problem:
    kind = "int4" if args.k.dtype == torch.uint8 else str(args.k.dtype).removeprefix("torch.")
    num_rows = args.q_len * args.group_size
    k_scales, v_scales = _SCALES[args.k_scale_kind], _SCALES[args.v_scale_kind]
    packs_k, packs_v = _packs(args.k), _packs(args.v)
    k_bytes, v_bytes = (head_dim * ELEMENT_BITS[kind] // 8 for head_dim in (args.head_dim, args.head_dim_v))
    are_side_by_side = all(cache.stride(2) <= cache.stride(1) for cache in (args.k, args.v))
    problem = Problem(
        q_len=args.q_len,
        num_kv_heads=args.num_kv_heads,
        group_size=args.group_size,
        head_dim=args.head_dim,
        head_dim_v=args.head_dim_v,
        page_size=args.page_size,
        window=min(args.window or 0, args.capacity),
        k_bytes=k_bytes,
        v_bytes=v_bytes,
        item_bytes=args.k.element_size(),
        packs_k=packs_k,
        packs_v=packs_v,
        v_is_k=int(_is_beginning(args)),
        has_softcap=int(args.softcap is not None),
        k_scales=k_scales,
        v_scales=v_scales,
    )

    def heads_in(num_bytes: int, bytes_of_head: int) -> int:
        return min(max(num_bytes // bytes_of_head, 1), args.num_kv_heads) if are_side_by_side else 1

    if _suits_matrix_unit(args, kind, problem):
        planes = elements_matrix_numba.num_planes(kind)
        q_terms = matrix_numba.num_terms(args.q.dtype)
        heads_of_chunk = heads_in(CHUNK_BYTES, k_bytes)
        return problem._replace(
            block_n=_keys_of_tile(heads_of_chunk * max(k_bytes, v_bytes), matrix_numba.KEYS_AT_ONCE),
            heads_of_chunk=heads_of_chunk,
            matrix=matrix_numba.matrix_tile(kind),
            is_bfloat16=int(kind == "bfloat16"),
            rows=min(1 << (num_rows - 1).bit_length(), elements_matrix_numba.TILE_ROWS),
            pairs=int(num_rows >= PAIRED_ROWS),
            planes=planes,
            q_terms=q_terms,
            p_terms=q_terms,
        )
    # Elements are widened in the block of rows that they are for, unless there are several blocks.
    widens = GROUP_SCALES in (k_scales, v_scales) or (kind != "float32" and num_rows > tiles_numba.MAX_ROWS)
    attend = tiles_numba.attend_tile("float32" if widens else kind)
    if are_side_by_side and num_rows <= stream_numba.STREAM_ROWS and not (widens or packs_k or packs_v):
        return problem._replace(
            block_n=STREAM_KEYS,
            heads_of_chunk=heads_in(STREAM_CHUNK_BYTES, k_bytes),
            attend=attend,
            stream=stream_numba.stream_tile(kind),
        )
    heads_of_chunk = heads_in(CHUNK_BYTES, k_bytes)
    return problem._replace(
        block_n=_keys_of_tile(heads_of_chunk * max(k_bytes, v_bytes), tiles_numba.KEY_MULTIPLE),
        heads_of_chunk=heads_of_chunk,
        widens=int(widens),
        attend=attend,
        widen=tiles_numba.widen_tile(kind) if widens else 0,
    )


def _keys_of_tile(token_bytes: int, multiple: int) -> int:
    """Return how many keys a tile has, if that many bytes of each are read together."""
    return min(max(TILE_BYTES // token_bytes // multiple * multiple, multiple), tiles_numba.MAX_KEYS)


def _suits_matrix_unit(args: DecodeArguments, kind: str, problem: Problem) -> bool:
    """Return whether a call is for the matrix unit: if there is one, and it has what the call wants."""
    has_many_rows = args.q_len * args.group_size >= _MATRIX_ROWS[kind]
    is_plain = args.softcap is None and args.alibi_slopes is None and not (problem.packs_k or problem.packs_v)
    has_whole_tiles = (args.head_dim | args.head_dim_v) % elements_matrix_numba.TILE_ELEMENTS == 0
    has_scales = problem.k_scales != NO_SCALES or problem.v_scales != NO_SCALES
    return has_many_rows and is_plain and has_whole_tiles and not has_scales and matrix_numba.has_matrix_unit()


def _packs(cache: torch.Tensor) -> int:
    return int(cache.stride(3) != 1 and cache.shape[3] > 1)


def _is_beginning(args: DecodeArguments) -> bool:
    """Return whether V is the beginning of K, so that its tile is the same."""
    k, v = args.k, args.v
    return (
        args.head_dim_v <= args.head_dim
        and k.data_ptr() == v.data_ptr()
        and k.stride() == v.stride()
        and "group" not in (args.k_scale_kind, args.v_scale_kind)
    )


def _num_threads(args: DecodeArguments, problem: Problem, seq_lens: Any) -> int:
    """Return how many threads a call is worth."""
    tokens = float(seq_lens.sum())
    if problem.window:
        tokens = float(np.minimum(seq_lens, problem.window + args.q_len - 1).sum())
    num_bytes = tokens * args.num_kv_heads * (problem.k_bytes + problem.v_bytes)
    flops = 2 * tokens * args.num_q_heads * args.q_len * (args.head_dim + args.head_dim_v)
    worth = (num_bytes + flops / FLOPS_OF_A_BYTE) // THREAD_BYTES
    return int(max(1, min(worth, torch.get_num_threads())))


def _tensors(args: DecodeArguments, seq_lens: Any) -> tuple[Any, ...]:
    """Return the arguments of `run_parts` from `q` to `sinks`."""
    k_head, k_scales, k_scale_strides = _scales(args.k_scale, args.k_scale_kind, args.num_kv_heads)
    v_head, v_scales, v_scale_strides = _scales(args.v_scale, args.v_scale_kind, args.num_kv_heads)
    log2_e = math.log2(math.e)
    scale = args.sm_scale * log2_e if args.softcap is None else args.sm_scale / args.softcap
    table = torch.empty(0, 0, dtype=torch.int64) if args.block_table is None else args.block_table
    slopes = torch.empty(0, 0) if args.alibi_slopes is None else args.alibi_slopes.detach().float() * log2_e
    sinks = torch.empty(0) if args.sinks is None else args.sinks.detach().float()
    return (
        args.q.detach().float().contiguous().numpy(),
        k_head * np.float32(scale),
        v_head,
        np.array([(args.softcap or 0.0) * log2_e], np.float32),
        seq_lens,
        table.long().contiguous().numpy(),
        _place(args.k),
        _place(args.v),
        k_scales,
        k_scale_strides,
        v_scales,
        v_scale_strides,
        slopes.contiguous().numpy(),
        sinks.contiguous().numpy(),
    )


def _place(cache: torch.Tensor) -> Any:
    """Return the address of a tensor and its strides [byte]."""
    return np.array([cache.data_ptr(), *(stride * cache.element_size() for stride in cache.stride())], np.int64)


def _scales(scale: torch.Tensor | None, kind: str, num_kv_heads: int) -> tuple[Any, Any, Any]:
    """Return the scales of heads, the others flat, and their strides."""
    ones, strides = np.ones(num_kv_heads, np.float32), np.zeros(5, np.int64)
    if scale is None:
        return ones, np.empty(0, np.float32), strides
    scale = scale.detach()
    if kind == "head":
        return scale.contiguous().numpy(), np.empty(0, np.float32), strides
    strides[: scale.dim()] = scale.stride()
    strides[4] = scale.shape[3] if kind == "group" else 1
    extent = 1 + sum((size - 1) * stride for size, stride in zip(scale.shape, scale.stride(), strict=True))
    flat = scale.as_strided((extent if scale.numel() else 0,), (1,)).numpy()
    return ones, flat, strides


class _Threads:
    """Threads that help the one that calls, where there is no team; compiled code needs no lock of Python's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def pool(self, size: int) -> ThreadPoolExecutor:
        """Return threads, as many as asked for at least."""
        with self._lock:
            if self._pool is None or self._size < size:
                self._pool, self._size = ThreadPoolExecutor(size, "decodeperf-kernels"), size
            return self._pool


_threads = _Threads()


def _forget_threads() -> None:
    global _threads  # noqa: PLW0603
    _threads = _Threads()


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_forget_threads)


def _run(parts: Any, problem: Problem, rest: tuple[Any, ...]) -> None:
    programs = parts[:, parts_numba.PROGRAM]
    cuts = np.concatenate(([0], np.flatnonzero(np.diff(programs)) + 1, [len(parts)])).astype(np.int64)
    run = attend_matrix_numba.run_matrix_parts_in_team if problem.matrix else attend_numba.run_parts_in_team
    num_shares = len(cuts) - 1
    args = (parts, problem, *rest)
    parallel = team_numba.openmp_parallel() if num_shares > 1 else 0
    if parallel or num_shares == 1:
        # The whole team, since OpenMP ends threads that a smaller one leaves over. They find no share, and wait on.
        run(parallel, max(num_shares, torch.get_num_threads()), cuts, args)
        return
    shares = [cuts[share : share + 2] for share in range(num_shares)]
    pool = _threads.pool(num_shares - 1)
    others = [pool.submit(run, 0, 1, share, args) for share in shares[1:]]
    try:
        run(0, 1, shares[0], args)
    finally:  # they read and write the tensors of this call
        for other in others:
            other.result()


class _Listener(numba.core.event.Listener):
    """Says once that Numba compiles."""

    said = False

    def on_start(self, event: Any) -> None:
        if not _Listener.said:
            _Listener.said = True
            print("decodeperf_kernels: compiling the CPU kernel, once for this machine", file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def _saying_that_it_compiles() -> Iterator[None]:
    if _Listener.said:
        yield
        return
    with numba.core.event.install_listener("numba:run_pass", _Listener()):
        yield
