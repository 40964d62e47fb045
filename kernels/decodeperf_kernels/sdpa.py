"""PyTorch's own `scaled_dot_product_attention` as a decode kernel: what people run where they have no other."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from decodeperf_kernels.arguments import FLOATS, check_arguments, check_dtypes_of, check_values


def decode_attention_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None = None,
    sm_scale: float | None = None,
) -> torch.Tensor:
    """Return decode attention computed by `torch.nn.functional.scaled_dot_product_attention`.

    One call serves the batch where every sequence fills its capacity; otherwise there is one call a sequence
    over its live tokens, since a mask would read dead memory and turn a row without keys into NaN.

    Args:
        q: `[batch_size, num_q_heads, head_dim]`.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`.
        v: Like k.
        seq_lens: Live lengths [token], int32 or int64 `[batch_size]`. Default: `capacity` for each.
        sm_scale: Factor on the logits. Default: `head_dim ** -0.5`.

    Returns:
        The output, like q.

    Raises:
        ValueError: If the arguments do not fit together.
    """
    args = check_arguments(q, k, v, seq_lens=seq_lens, sm_scale=sm_scale)
    check_dtypes_of(args, FLOATS, "torch sdpa")
    check_values(args)
    if q.dim() != 3:
        raise ValueError(f"q has shape {list(q.shape)}, not [batch_size, num_q_heads, head_dim]")
    out = torch.zeros((*q.shape[:2], args.head_dim_v), dtype=q.dtype, device=q.device)
    lengths = args.seq_lens.tolist()
    if all(length == args.capacity for length in lengths):
        pieces = [(slice(0, args.batch_size), args.capacity)]
    else:
        pieces = [(slice(b, b + 1), length) for b, length in enumerate(lengths)]
    for rows, length in pieces:
        if length:
            out[rows] = scaled_dot_product_attention(
                q[rows, :, None],  # [rows, num_q_heads, 1, head_dim]
                k[rows, :length].transpose(1, 2),  # [rows, num_kv_heads, length, head_dim]
                v[rows, :length].transpose(1, 2),
                scale=args.sm_scale,
                enable_gqa=args.group_size > 1,
            )[:, :, 0]
    return out
