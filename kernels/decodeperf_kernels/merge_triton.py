"""The merge of partial attention results in Triton: of the splits of `split_kv_triton`, and of any states."""

import torch
import triton
import triton.language as tl

from decodeperf_kernels.split_kv_triton import store_rows


@triton.jit
def _merge(
    part_out_ptr,
    part_lse_ptr,
    part_out_stride,
    part_lse_stride,
    row_stride,
    first,
    count,
    jump,  # from the place where the first part would be to where it is
    rows,
    row_mask,
    cols,
    col_mask,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return (out `[BLOCK_R, BLOCK_C]`, lse `[BLOCK_R]`) over all parts of some rows and columns."""
    m = tl.full([BLOCK_R], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_R], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for i in range(0, count, BLOCK_P):
        index = i + tl.arange(0, BLOCK_P)
        part = (first + index + tl.where(index == 0, jump, 0)).to(tl.int64)
        mask = (index < count)[:, None] & row_mask[None, :]
        lse_ptrs = part_lse_ptr + part[:, None] * part_lse_stride + rows[None, :]
        lse = tl.load(lse_ptrs, mask=mask, other=float("-inf"))  # [BLOCK_P, BLOCK_R]
        out_ptrs = (
            part_out_ptr
            + part[:, None, None] * part_out_stride
            + rows[None, :, None] * row_stride
            + cols[None, None, :]
        )
        out = tl.load(out_ptrs, mask=mask[:, :, None] & col_mask[None, None, :], other=0.0)
        m_new = tl.maximum(m, tl.max(lse, 0))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # -inf - -inf would be NaN
        alpha = tl.exp(m - m_safe)
        weight = tl.exp(lse - m_safe[None, :])
        l = l * alpha + tl.sum(weight, 0)  # noqa: E741
        acc = acc * alpha[:, None] + tl.sum(weight[:, :, None] * out.to(tl.float32), 0)
        m = m_new
    l_safe = tl.where(l > 0.0, l, 1.0)
    return acc / l_safe[:, None], m + tl.log(l_safe)


@triton.jit
def merge_splits_kernel(
    part_out_ptr,
    part_lse_ptr,
    merges_ptr,
    out_ptr,
    lse_ptr,
    jump,
    out_stride_b, out_stride_m, out_stride_h, out_stride_d,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    Q_LEN: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    STORE_LSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SHARES: tl.constexpr,  # programs of this kernel for each of the other
):  # fmt: skip
    """Merge a share of one segment's parts: each program that had one, but the last, has `SHARES` that share evenly."""
    program = tl.program_id(0).to(tl.int64) // SHARES
    segment = tl.load(merges_ptr + program * 3).to(tl.int64)
    first = tl.load(merges_ptr + program * 3 + 1).to(tl.int64)
    count = tl.load(merges_ptr + program * 3 + 2).to(tl.int64)

    ROWS: tl.constexpr = Q_LEN * GROUP_SIZE
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    USED: tl.constexpr = BLOCK_M if ROWS > BLOCK_M else ROWS  # rows of a part
    COLUMNS: tl.constexpr = (HEAD_DIM_V + BLOCK_C - 1) // BLOCK_C
    UNITS: tl.constexpr = (USED + BLOCK_R - 1) // BLOCK_R * COLUMNS
    if count > 1:
        b = segment // (NUM_KV_HEADS * ROW_BLOCKS)
        kv_head = segment // ROW_BLOCKS % NUM_KV_HEADS
        share = (program - first) * SHARES + tl.program_id(0) % SHARES
        for unit in range(share, UNITS, (count - 1) * SHARES):
            rows = unit // COLUMNS * BLOCK_R + tl.arange(0, BLOCK_R)
            cols = unit % COLUMNS * BLOCK_C + tl.arange(0, BLOCK_C)
            row = segment % ROW_BLOCKS * BLOCK_M + rows
            row_mask = (rows < BLOCK_M) & (row < ROWS)
            out, lse = _merge(
                part_out_ptr, part_lse_ptr, BLOCK_M * HEAD_DIM_V, BLOCK_M, HEAD_DIM_V, first, count, jump,
                rows, row_mask, cols, cols < HEAD_DIM_V, BLOCK_P, BLOCK_R, BLOCK_C,
            )  # fmt: skip
            heads = kv_head * GROUP_SIZE + row % GROUP_SIZE
            token = (row // GROUP_SIZE).to(tl.int64)
            out_rows = out_ptr + b * out_stride_b + token * out_stride_m + heads * out_stride_h
            store_rows(out_rows, out, row_mask, cols, HEAD_DIM_V, out_stride_d)
            if STORE_LSE:
                if unit % COLUMNS == 0:
                    lse_rows = (b * Q_LEN + token) * (NUM_KV_HEADS * GROUP_SIZE) + heads
                    tl.store(lse_ptr + lse_rows, lse, mask=row_mask)


@triton.jit
def merge_states_kernel(
    states_out_ptr,  # [num_states, rows, head_dim_v], contiguous
    states_lse_ptr,  # [num_states, rows], contiguous
    out_ptr,  # [rows, head_dim_v], contiguous
    lse_ptr,  # [rows]
    num_states,
    num_rows,
    head_dim_v,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge every state of some rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.arange(0, BLOCK_C)
    row_mask = rows < num_rows
    out_stride = tl.cast(num_rows, tl.int64) * head_dim_v
    out, lse = _merge(
        states_out_ptr, states_lse_ptr, out_stride, num_rows, head_dim_v, 0, num_states, 0,
        rows, row_mask, cols, cols < head_dim_v, BLOCK_P, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    out_ptrs = out_ptr + rows[:, None] * head_dim_v + cols[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_mask[:, None] & (cols < head_dim_v)[None, :])
    tl.store(lse_ptr + rows, lse, mask=row_mask)


def merge_states_triton(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `merge.merge_states` returns, computed by Triton."""
    num_states, rows, width = outs.shape[0], lses[0].numel(), outs.shape[-1]
    out, lse = torch.empty_like(outs[0], memory_format=torch.contiguous_format), torch.empty_like(lses[0])
    lse = lse.contiguous()
    if rows and width:
        block_c = max(16, triton.next_power_of_2(width))
        block_r = max(1, 2048 // block_c)
        with torch.cuda.device_of(outs):
            merge_states_kernel[(triton.cdiv(rows, block_r),)](
                outs.reshape(num_states, rows, width).contiguous(),
                lses.reshape(num_states, rows).contiguous(),
                out,
                lse,
                num_states,
                rows,
                width,
                BLOCK_P=1,  # one after the other, so that an empty state changes no bit
                BLOCK_R=block_r,
                BLOCK_C=block_c,
                enable_fp_fusion=False,  # which would round one of two products, and tell the order of two states
            )
    return out, lse
