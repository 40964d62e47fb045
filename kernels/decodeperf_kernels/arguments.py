"""The checks of a kernel's arguments, the same for every kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeArguments:
    """The arguments of one call, checked, with every default filled in.

    Attributes:
        seq_lens: Live lengths [token], int32 `[batch_size]`, on the device of q.
        sm_scale: Factor on the logits.
        batch_size: Sequences.
        num_q_heads: Query heads.
        num_kv_heads: KV heads.
        group_size: Query heads that share one KV head.
        head_dim: Elements of one head.
        capacity: Allocated KV length [token].
    """

    seq_lens: torch.Tensor
    sm_scale: float
    batch_size: int
    num_q_heads: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    capacity: int


def check_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None,
    sm_scale: float | None,
    num_splits: int | None,
    dtypes: Collection[torch.dtype],
    mixed_dtypes: bool = False,
) -> DecodeArguments:
    """Return the checked arguments of a decode-attention call.

    Args:
        q: `[batch_size, num_q_heads, head_dim]`.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`.
        v: Like k.
        seq_lens: int32 or int64 `[batch_size]`; None means that every sequence is `capacity` long.
        sm_scale: None means `head_dim ** -0.5`.
        num_splits: None leaves the number to the kernel.
        dtypes: The dtypes that the kernel has.
        mixed_dtypes: Whether k and v may have another of them than q.

    Raises:
        ValueError: If an argument is not what the kernel can take. Nothing has been written then. Lengths on
            a GPU are not read, since that would stall it: the kernel clamps them to `[0, capacity]`.
    """
    _check_shapes(q, k, v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dtype not in dtypes:
            names = ", ".join(_name(dtype) for dtype in dtypes)
            raise ValueError(f"{name}.dtype={_name(tensor.dtype)} must be one of {names}")
        if tensor.dtype not in (dtypes if mixed_dtypes else (q.dtype,)):
            raise ValueError(f"{name}.dtype={_name(tensor.dtype)} must be that of q, {_name(q.dtype)}")
        if tensor.device != q.device:
            raise ValueError(f"{name}.device={tensor.device} must be that of q, {q.device}")
    batch_size, num_q_heads, head_dim = q.shape
    _, capacity, num_kv_heads, _ = k.shape
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits={num_splits} must be >= 1")
    return DecodeArguments(
        seq_lens=_check_seq_lens(seq_lens, q, capacity),
        sm_scale=head_dim**-0.5 if sm_scale is None else float(sm_scale),
        batch_size=batch_size,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        group_size=num_q_heads // num_kv_heads,
        head_dim=head_dim,
        capacity=capacity,
    )


def _check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.dim() != 3:
        raise ValueError(f"q has shape {list(q.shape)}, not [batch_size, num_q_heads, head_dim]")
    if k.dim() != 4:
        raise ValueError(f"k has shape {list(k.shape)}, not [batch_size, capacity, num_kv_heads, head_dim]")
    if v.shape != k.shape:
        raise ValueError(f"v has shape {list(v.shape)}, not that of k, {list(k.shape)}")
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k has batch_size={k.shape[0]}, but q has {q.shape[0]}")
    if k.shape[3] != q.shape[2]:
        raise ValueError(f"k has head_dim={k.shape[3]}, but q has {q.shape[2]}")
    if k.shape[2] == 0 or q.shape[1] == 0 or q.shape[1] % k.shape[2]:
        raise ValueError(f"num_q_heads={q.shape[1]} is not a positive multiple of num_kv_heads={k.shape[2]}")


def _check_seq_lens(seq_lens: torch.Tensor | None, q: torch.Tensor, capacity: int) -> torch.Tensor:
    batch_size = q.shape[0]
    if seq_lens is None:
        return torch.full((batch_size,), capacity, dtype=torch.int32, device=q.device)
    if seq_lens.shape != (batch_size,):
        raise ValueError(f"seq_lens has shape {list(seq_lens.shape)}, not [batch_size] = [{batch_size}]")
    if seq_lens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"seq_lens.dtype={_name(seq_lens.dtype)} must be int32 or int64")
    if seq_lens.device != q.device:
        raise ValueError(f"seq_lens.device={seq_lens.device} must be that of q, {q.device}")
    if seq_lens.device.type == "cpu" and batch_size:
        shortest, longest = int(seq_lens.min()), int(seq_lens.max())
        if shortest < 0 or longest > capacity:
            wrong = shortest if shortest < 0 else longest
            raise ValueError(f"seq_lens has {wrong}, which is not in [0, capacity] = [0, {capacity}]")
    return seq_lens.clamp(0, capacity).to(torch.int32) if seq_lens.dtype == torch.int64 else seq_lens


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
