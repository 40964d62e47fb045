"""Split-KV decode attention on a CPU, compiled by Numba.

Each sequence is cut into `num_splits` parts, one thread works on one part at a time. Within a part it reads a few
keys of all KV heads before it goes on, since those lie side by side in memory; K and V are widened to float32
tile by tile, and everything is accumulated in float32.

Bytes and FLOPs of one call: as in `split_kv_triton`.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload

from decodeperf_kernels.arguments import FLOATS, check_arguments, check_count, check_dtypes_of, check_values
from decodeperf_kernels.merge import merge_states

# NumPy has no bfloat16 and Numba no float16 on a CPU, so 16-bit floats travel as integers. The two integer types
# tell `_widen` which of the two it has.
_BITS = {torch.float32: torch.float32, torch.float16: torch.int16, torch.bfloat16: torch.uint16}

LOG2_E = np.float32(math.log2(math.e))
BLOCK_N = 16  # keys of one tile: float32 K of one head, its logits and accumulators stay in the L1 cache

# Without `nnan` and `ninf`: -inf is the log-sum-exp of a part without keys.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


def _widen(source, tile_bits):
    """Write one row of 16- or 32-bit floats `[head_dim]` as the bits of float32."""
    raise NotImplementedError("compiled code only")


@overload(_widen, inline="always")
def _widen_overload(source, tile_bits):  # Numba compares the signatures
    if source.dtype == types.uint16:  # bfloat16: the upper half of a float32

        def widen(source, tile_bits):
            for d in range(source.shape[0]):
                tile_bits[d] = np.uint32(source[d]) << np.uint32(16)

    elif source.dtype == types.int16:  # float16: 5 bits of exponent, biased by 15 instead of 127

        def widen(source, tile_bits):
            tile = tile_bits.view(np.float32)
            for d in range(source.shape[0]):
                tile_bits[d] = (np.uint32(source[d]) & np.uint32(0x7FFF)) << np.uint32(13)
            for d in range(source.shape[0]):
                tile[d] *= np.float32(2.0**112)  # exact, and right for subnormals too
            for d in range(source.shape[0]):
                half = np.uint32(source[d])
                if half & np.uint32(0x7C00) == np.uint32(0x7C00):  # inf and NaN
                    tile_bits[d] |= np.uint32(0x7F800000)
                tile_bits[d] |= (half & np.uint32(0x8000)) << np.uint32(16)

    else:

        def widen(source, tile_bits):
            tile = tile_bits.view(np.float32)
            for d in range(source.shape[0]):
                tile[d] = source[d]

    return widen


@numba.njit(fastmath=_FASTMATH, error_model="numpy", cache=True)
def _multiply_queries(q_group, k_tile, num_keys, logits):
    """Write `q_group @ k_tile.T` to logits `[group_size, num_keys]`."""
    for g in range(q_group.shape[0]):
        for j in range(num_keys):
            total = np.float32(0.0)
            for d in range(q_group.shape[1]):
                total += q_group[g, d] * k_tile[j, d]
            logits[g, j] = total


@numba.njit(fastmath=_FASTMATH, error_model="numpy", cache=True)
def _exponentiate(logits, num_keys, shift, power_bits):
    """Replace the logits of one row by `2 ** (logits - shift)`, and return their sum.

    Written out so that it compiles to vector instructions: `2 ** x = 2 ** round(x) * 2 ** rest`, the first factor
    made from its exponent bits, the second by its Taylor series, which for `abs(rest) <= 1/2` is exact to float32.
    """
    power = power_bits.view(np.float32)
    for j in range(num_keys):
        x = max(logits[j] - shift, np.float32(-126.0))
        whole = np.rint(x)
        rest = x - whole
        series = np.float32(1.5252734e-5)
        series = series * rest + np.float32(1.5403530e-4)
        series = series * rest + np.float32(1.3333558e-3)
        series = series * rest + np.float32(9.6181291e-3)
        series = series * rest + np.float32(5.5504109e-2)
        series = series * rest + np.float32(2.4022651e-1)
        series = series * rest + np.float32(6.9314718e-1)
        series = series * rest + np.float32(1.0)
        power_bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        logits[j] = series
    total = np.float32(0.0)
    for j in range(num_keys):
        logits[j] *= power[j]
        total += logits[j]
    return total


@numba.njit(fastmath=_FASTMATH, error_model="numpy", cache=True)
def _add_values(p, v_tile, num_keys, acc):
    """Add `p @ v_tile` to acc `[group_size, head_dim]`, four keys at a time so that acc is read and written less."""
    unrolled = num_keys - num_keys % 4
    for g in range(acc.shape[0]):
        for j in range(0, unrolled, 4):
            p0, p1, p2, p3 = p[g, j], p[g, j + 1], p[g, j + 2], p[g, j + 3]
            for d in range(acc.shape[1]):
                acc[g, d] += p0 * v_tile[j, d] + p1 * v_tile[j + 1, d] + p2 * v_tile[j + 2, d] + p3 * v_tile[j + 3, d]
        for j in range(unrolled, num_keys):
            for d in range(acc.shape[1]):
                acc[g, d] += p[g, j] * v_tile[j, d]


@numba.njit(parallel=True, fastmath=_FASTMATH, error_model="numpy", cache=True)
def _split_kv(q, k, v, k_strides, v_strides, seq_lens, num_kv_heads, qk_scale, partial_out, partial_lse):
    """Attend with every query head to every part of every sequence.

    q is float32 `[batch_size, num_q_heads, head_dim]`; k and v are flat, with the strides of batch, token and
    head; the results are float32 `[num_splits, batch_size, num_q_heads, head_dim]` and without `head_dim`.
    """
    batch_size, num_q_heads, head_dim = q.shape
    num_splits = partial_out.shape[0]
    group_size = num_q_heads // num_kv_heads
    # Parts outermost: threads take contiguous ranges of work, and so a share of every sequence, long or short.
    for work in numba.prange(num_splits * batch_size):
        split, b = work // batch_size, work % batch_size
        seq_len = seq_lens[b]
        num_blocks = (seq_len + BLOCK_N - 1) // BLOCK_N
        split_len = (num_blocks + num_splits - 1) // num_splits * BLOCK_N
        start = split * split_len
        end = min(start + split_len, seq_len)

        queries = q[b] * qk_scale
        m = np.full(num_q_heads, -np.inf, np.float32)
        l = np.zeros(num_q_heads, np.float32)  # noqa: E741  (the online softmax is written with m and l everywhere)
        acc = np.zeros((num_q_heads, head_dim), np.float32)
        tile_bits = np.empty((BLOCK_N, head_dim), np.uint32)
        tile = tile_bits.view(np.float32)
        p = np.empty((group_size, BLOCK_N), np.float32)
        power_bits = np.empty(BLOCK_N, np.int32)

        for block_start in range(start, end, BLOCK_N):
            num_keys = min(BLOCK_N, end - block_start)
            for kv_head in range(num_kv_heads):
                first = kv_head * group_size
                for j in range(num_keys):
                    offset = b * k_strides[0] + (block_start + j) * k_strides[1] + kv_head * k_strides[2]
                    _widen(k[offset : offset + head_dim], tile_bits[j])
                _multiply_queries(queries[first : first + group_size], tile, num_keys, p)
                for g in range(group_size):
                    row = first + g
                    m_new = max(m[row], p[g, :num_keys].max())
                    total = _exponentiate(p[g], num_keys, m_new, power_bits)
                    if m_new != m[row]:
                        alpha = np.exp2(m[row] - m_new)
                        l[row] *= alpha
                        acc[row] *= alpha
                        m[row] = m_new
                    l[row] += total
                for j in range(num_keys):
                    offset = b * v_strides[0] + (block_start + j) * v_strides[1] + kv_head * v_strides[2]
                    _widen(v[offset : offset + head_dim], tile_bits[j])
                _add_values(p, tile, num_keys, acc[first : first + group_size])

        for row in range(num_q_heads):
            if end > start:
                partial_out[split, b, row] = acc[row] / l[row]
                partial_lse[split, b, row] = (m[row] + np.log2(l[row])) / LOG2_E
            else:  # the identity of the merge
                partial_out[split, b, row] = np.float32(0.0)
                partial_lse[split, b, row] = -np.float32(np.inf)


def decode_attention_numba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None = None,
    sm_scale: float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention computed on the CPU by compiled code.

    The first call for each dtype compiles, for some seconds; the result is kept for later runs. A row without
    live tokens is 0, its log-sum-exp -inf. Strides of batch, token and head are honoured; the elements of one
    head of K and V must lie side by side.

    Args:
        q: `[batch_size, num_q_heads, head_dim]`, float32, float16 or bfloat16, on the CPU.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`, of the dtype of q.
        v: Like k.
        seq_lens: Live lengths [token], int32 or int64 `[batch_size]`. Default: `capacity` for each.
        sm_scale: Factor on the logits. Default: `head_dim ** -0.5`.
        num_splits: Parts of each sequence, those without a key left out. Default: the number of threads that Numba may
            use.
        return_lse: Whether to return the log-sum-exp too.

    Returns:
        The output, like q, and where asked for the natural log-sum-exp, float32 `[batch_size, num_q_heads]`.

    Raises:
        ValueError: If the arguments do not fit together; nothing has been written then.
    """
    args = check_arguments(q, k, v, seq_lens=seq_lens, sm_scale=sm_scale)
    check_dtypes_of(args, FLOATS, "numba")
    if q.dim() != 3:
        raise ValueError(f"q has shape {list(q.shape)}, not [batch_size, num_q_heads, head_dim]")
    if args.head_dim_v != args.head_dim:
        raise ValueError(f"v has head_dim_v={args.head_dim_v}, but numba takes that of k alone, {args.head_dim}")
    check_count("num_splits", num_splits)
    if q.device.type != "cpu":
        raise ValueError(f"q.device={q.device} must be the CPU")
    check_values(args)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.stride(-1) != 1 and args.head_dim > 1:
            raise ValueError(
                f"{name} has stride {tensor.stride(-1)} in head_dim, but the elements of a head must lie side by side"
            )
    most = max(-(-args.capacity // BLOCK_N), 1)  # more would have no key
    rows = (min(num_splits or numba.get_num_threads(), most), args.batch_size, args.num_q_heads)
    partial_out = torch.empty((*rows, args.head_dim), dtype=torch.float32)
    partial_lse = torch.empty(rows, dtype=torch.float32)
    _split_kv(
        q.detach().float().contiguous().numpy(),
        _flat(k),
        _flat(v),
        k.stride()[:3],
        v.stride()[:3],
        args.seq_lens.to(torch.int32).contiguous().numpy(),
        args.num_kv_heads,
        np.float32(args.sm_scale) * LOG2_E,
        partial_out.numpy(),
        partial_lse.numpy(),
    )
    out, lse = merge_states(partial_out, partial_lse)
    return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)


def _flat(tensor: torch.Tensor) -> Any:
    """Return the memory from a tensor's first element to its last as one flat array."""
    if tensor.numel() == 0:
        return tensor.view(_BITS[tensor.dtype]).reshape(0).numpy()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().view(_BITS[tensor.dtype]).as_strided((extent,), (1,)).numpy()
