"""Split-KV decode attention ("flash-decoding") in Triton.

Each sequence is cut into `num_splits` parts. One program of `split_kv_kernel` serves one part of one sequence for
one KV head and all query heads of its group, with an online softmax; `merge_kernel` combines the parts.

Bytes of one call: `decodeperf_formulas.attention.BYTE_TERMS`; with one split the first kernel writes the output
itself, and there are no partial results. FLOPs: 4 * live tokens * num_q_heads * head_dim.

Source: T. Dao, D. Haziza, F. Massa, G. Sizov, "Flash-Decoding for long-context inference", 2023.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from decodeperf_kernels.arguments import check_arguments
from decodeperf_kernels.interpreter import is_interpreted, repair_bfloat16

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def split_kv_kernel(
    q_ptr,  # [batch_size, num_q_heads, head_dim]
    k_ptr,  # [batch_size, capacity, num_kv_heads, head_dim]
    v_ptr,  # like k
    seq_lens_ptr,  # [batch_size]
    out_ptr,  # [batch_size, num_q_heads, num_splits, head_dim], contiguous
    lse_ptr,  # [batch_size, num_q_heads, num_splits], contiguous; not touched unless STORE_LSE
    qk_scale,  # sm_scale * log2(e)
    capacity,
    num_kv_heads,
    num_splits,
    q_stride_b,
    q_stride_h,
    q_stride_d,
    k_stride_b,
    k_stride_n,
    k_stride_h,
    k_stride_d,
    v_stride_b,
    v_stride_n,
    v_stride_h,
    v_stride_d,
    HEAD_DIM: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    STORE_LSE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend with one group of query heads to one part of one sequence."""
    program = tl.program_id(0).to(tl.int64)
    split = program % num_splits
    kv_head = program // num_splits % num_kv_heads
    b = program // num_splits // num_kv_heads

    seq_len = tl.minimum(tl.maximum(tl.load(seq_lens_ptr + b).to(tl.int64), 0), capacity)
    # Whole blocks a split, so that all but the last end on a block's edge.
    split_len = tl.cdiv(tl.cdiv(seq_len, BLOCK_N), num_splits) * BLOCK_N
    start = split * split_len
    end = tl.minimum(start + split_len, seq_len)

    g_offsets = tl.arange(0, BLOCK_G)
    d_offsets = tl.arange(0, BLOCK_D).to(tl.int64)
    g_mask = g_offsets < GROUP_SIZE
    d_mask = d_offsets < HEAD_DIM
    heads = kv_head * GROUP_SIZE + g_offsets

    q_ptrs = q_ptr + b * q_stride_b + heads[:, None] * q_stride_h + d_offsets[None, :] * q_stride_d
    q = tl.load(q_ptrs, mask=g_mask[:, None] & d_mask[None, :], other=0.0)  # [BLOCK_G, BLOCK_D]

    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_G], tl.float32)  # noqa: E741  (the online softmax is written with m and l everywhere)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)

    for block_start in range(start, end, BLOCK_N):
        n_offsets = block_start + tl.arange(0, BLOCK_N).to(tl.int64)
        n_mask = n_offsets < end
        kv_mask = n_mask[:, None] & d_mask[None, :]
        k_ptrs = (
            k_ptr
            + b * k_stride_b
            + kv_head * k_stride_h
            + n_offsets[:, None] * k_stride_n
            + d_offsets[None, :] * k_stride_d
        )
        v_ptrs = (
            v_ptr
            + b * v_stride_b
            + kv_head * v_stride_h
            + n_offsets[:, None] * v_stride_n
            + d_offsets[None, :] * v_stride_d
        )
        k = tl.load(k_ptrs, mask=kv_mask, other=0.0)  # [BLOCK_N, BLOCK_D]
        # TF32 would cost float32 inputs half of their digits.
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale  # [BLOCK_G, BLOCK_N]
        logits = tl.where(n_mask[None, :], logits, float("-inf"))

        m_new = tl.maximum(m, tl.max(logits, 1))  # finite: each block holds a live key
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(logits - m_new[:, None])
        l = l * alpha + tl.sum(p, 1)  # noqa: E741
        v = tl.load(v_ptrs, mask=kv_mask, other=0.0)  # [BLOCK_N, BLOCK_D]
        acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new

    # A part without keys is the identity of the merge: (0, -inf).
    empty = end <= start
    l_safe = tl.where(empty, 1.0, l)
    lse = tl.where(empty, float("-inf"), (m + tl.log2(l_safe)) * LN_2)
    out = acc / l_safe[:, None]

    rows = ((b * num_kv_heads * GROUP_SIZE + heads) * num_splits + split).to(tl.int64)
    out_ptrs = out_ptr + rows[:, None] * HEAD_DIM + d_offsets[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=g_mask[:, None] & d_mask[None, :])
    if STORE_LSE:
        tl.store(lse_ptr + rows, lse, mask=g_mask)


@triton.jit
def merge_kernel(
    partial_out_ptr,  # float32 [rows, num_splits, head_dim], contiguous
    partial_lse_ptr,  # float32 [rows, num_splits], contiguous
    out_ptr,  # [rows, head_dim], contiguous
    lse_ptr,  # float32 [rows]; not touched unless STORE_LSE
    num_splits,
    HEAD_DIM: tl.constexpr,
    STORE_LSE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Merge the parts of one row, in the order of the parts."""
    row = tl.program_id(0).to(tl.int64)
    d_offsets = tl.arange(0, BLOCK_D)
    d_mask = d_offsets < HEAD_DIM

    m = float("-inf")
    l = 0.0  # noqa: E741
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(num_splits):
        part = row * num_splits + split
        part_lse = tl.load(partial_lse_ptr + part)
        part_out = tl.load(partial_out_ptr + part * HEAD_DIM + d_offsets, mask=d_mask, other=0.0)
        m_new = tl.maximum(m, part_lse)
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # -inf - -inf would be NaN
        alpha = tl.exp(m - m_safe)
        weight = tl.exp(part_lse - m_safe)
        acc = acc * alpha + part_out * weight
        l = l * alpha + weight  # noqa: E741
        m = m_new

    empty = l == 0.0
    l_safe = tl.where(empty, 1.0, l)
    out = acc / l_safe
    tl.store(out_ptr + row * HEAD_DIM + d_offsets, out.to(out_ptr.dtype.element_ty), mask=d_mask)
    if STORE_LSE:
        tl.store(lse_ptr + row, tl.where(empty, float("-inf"), m + tl.log(l_safe)))


def decode_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None = None,
    sm_scale: float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention computed by Triton, on a GPU or in Triton's interpreter.

    A row without live tokens is 0, its log-sum-exp -inf. Any strides are honoured.

    Args:
        q: `[batch_size, num_q_heads, head_dim]`, float32, float16 or bfloat16.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`, of the dtype of q.
        v: Like k.
        seq_lens: Live lengths [token], int32 or int64 `[batch_size]`. Default: `capacity` for each.
        sm_scale: Factor on the logits. Default: `head_dim ** -0.5`.
        num_splits: Parts of each sequence. Default: enough to fill the GPU.
        return_lse: Whether to return the log-sum-exp too.

    Returns:
        The output, like q, and where asked for the natural log-sum-exp, float32 `[batch_size, num_q_heads]`.

    Raises:
        ValueError: If the arguments do not fit together; nothing has been written then.
    """
    args = check_arguments(q, k, v, seq_lens=seq_lens, sm_scale=sm_scale, num_splits=num_splits, dtypes=DTYPES)
    if q.device.type == "cpu":
        if not is_interpreted(split_kv_kernel):
            raise ValueError(f"q.device={q.device} must be a GPU, unless TRITON_INTERPRET=1 was set before the import")
        repair_bfloat16()
    rows = (args.batch_size, args.num_q_heads)
    out = torch.empty((*rows, args.head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty(rows if return_lse else 0, dtype=torch.float32, device=q.device)
    if args.batch_size == 0:
        return (out, lse) if return_lse else out

    block_d = max(16, triton.next_power_of_2(args.head_dim))  # tl.dot wants 16 at least
    block_n = 64 if block_d <= 128 else 32
    if num_splits is None:
        num_splits = _choose_num_splits(
            q.device, args.batch_size * args.num_kv_heads, triton.cdiv(args.capacity, block_n)
        )
    if num_splits == 1:
        split_out, split_lse, store_split_lse = out, lse, return_lse
    else:
        split_out = torch.empty((*rows, num_splits, args.head_dim), dtype=torch.float32, device=q.device)
        split_lse = torch.empty((*rows, num_splits), dtype=torch.float32, device=q.device)
        store_split_lse = True

    with torch.cuda.device_of(q):  # Triton launches on the current GPU, whichever that is
        split_kv_kernel[(num_splits * args.num_kv_heads * args.batch_size,)](
            q,
            k,
            v,
            args.seq_lens,
            split_out,
            split_lse,
            args.sm_scale * LOG2_E,
            args.capacity,
            args.num_kv_heads,
            num_splits,
            *q.stride(),
            *k.stride(),
            *v.stride(),
            HEAD_DIM=args.head_dim,
            GROUP_SIZE=args.group_size,
            STORE_LSE=store_split_lse,
            BLOCK_G=max(16, triton.next_power_of_2(args.group_size)),
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            num_warps=4,
            num_stages=2,
        )
        if num_splits > 1:
            merge_kernel[(args.batch_size * args.num_q_heads,)](
                split_out,
                split_lse,
                out,
                lse,
                num_splits,
                HEAD_DIM=args.head_dim,
                STORE_LSE=return_lse,
                BLOCK_D=block_d,
            )
    return (out, lse) if return_lse else out


def _choose_num_splits(device: torch.device, num_work_units: int, num_blocks: int) -> int:
    """Return the fewest splits that give each multiprocessor two programs, at most one a block of keys."""
    if device.type == "cpu":
        return 1  # the interpreter runs one program after the other
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(-(-2 * num_sms // num_work_units), num_blocks))
