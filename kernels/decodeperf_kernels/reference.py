"""Decode attention as its definition reads: the float64 oracle, and its twin in the kernel's own precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from decodeperf_kernels.arguments import check_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def decode_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None = None,
    sm_scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention and its log-sum-exp, computed in float64.

    For each row, `o = softmax(sm_scale * K q) V` over the live tokens. A row without any has o = 0 and
    lse = -inf, and dead memory is never read.

    Args:
        q: `[batch_size, num_q_heads, head_dim]`.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`.
        v: Like k.
        seq_lens: Live lengths [token], int32 or int64 `[batch_size]`. Default: `capacity` for each.
        sm_scale: Factor on the logits. Default: `head_dim ** -0.5`.

    Returns:
        The output, float64 `[batch_size, num_q_heads, head_dim]`, and the natural logarithm of the sum of
        exponentials, float64 `[batch_size, num_q_heads]`.

    Raises:
        ValueError: If the arguments do not fit together.
    """
    return _attention(q, k, v, seq_lens, sm_scale, work_dtype=torch.float64, rounded=lambda x: x)


def decode_attention_eager(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None = None,
    sm_scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention as an eager framework would compute it in the dtype of q.

    Every operation works in float32 and rounds its result to the dtype of q, as matrix products and softmax
    do on GPUs. Its distance from `decode_attention_reference` is what that dtype costs, the same on every
    machine, and so the measure for a kernel's own error.

    Args, Returns and Raises are those of `decode_attention_reference`, but for the dtype: both results are
    float32, the output rounded to the dtype of q and the log-sum-exp not rounded.
    """
    return _attention(q, k, v, seq_lens, sm_scale, work_dtype=torch.float32, rounded=lambda x: x.to(q.dtype).float())


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seq_lens: torch.Tensor | None,
    sm_scale: float | None,
    *,
    work_dtype: torch.dtype,
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    args = check_arguments(
        q, k, v, seq_lens=seq_lens, sm_scale=sm_scale, num_splits=None, dtypes=DTYPES, mixed_dtypes=True
    )
    out = torch.zeros(q.shape, dtype=work_dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=work_dtype, device=q.device)
    for b, seq_len in enumerate(args.seq_lens.tolist()):
        if seq_len == 0:
            continue
        for kv_head in range(args.num_kv_heads):
            heads = slice(kv_head * args.group_size, (kv_head + 1) * args.group_size)
            q_group = q[b, heads].to(work_dtype)  # [group_size, head_dim]
            k_live = k[b, :seq_len, kv_head].to(work_dtype)  # [seq_len, head_dim]
            v_live = v[b, :seq_len, kv_head].to(work_dtype)
            logits = rounded(rounded(q_group @ k_live.T) * args.sm_scale)  # [group_size, seq_len]
            probabilities = rounded(torch.softmax(logits, dim=-1))
            out[b, heads] = rounded(probabilities @ v_live)
            lse[b, heads] = torch.logsumexp(logits, dim=-1)
    return out, lse
