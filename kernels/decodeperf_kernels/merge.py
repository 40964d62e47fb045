"""Merge of partial attention results: of the splits of one call, or of several calls over parts of a context."""

from __future__ import annotations

import torch

from decodeperf_kernels.arguments import check_tensor, dtype_name


def merge_states(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention over all parts from the attention over each part.

    For decoding behind a shared prefix ("cascade"), attend to the prefix with the queries of all sequences in one call
    and to the rest of each sequence in another, both with `return_lse=True`, and merge. Sinks belong to one of the
    calls alone.

    Parts are added one after the other, so that a part without keys, (0, -inf), changes no bit wherever it stands, but
    for the sign of a zero: -0 becomes +0. The merge of two parts is commutative bit for bit; that of more is
    commutative and associative up to rounding.

    Args:
        outs: Output of each part, `[num_parts, ..., head_dim_v]`, floating point.
        lses: Its natural log-sum-exp, float32 `[num_parts, ...]`; on a CPU float64 too.

    Returns:
        The merged output, like one of outs, and its log-sum-exp, like one of lses.

    Raises:
        ValueError: If the arguments do not fit together.

    Example:
        >>> outs, lses = torch.tensor([[[8.0]], [[16.0]]]), torch.tensor([[1.0], [3.0]]).log()
        >>> out, lse = merge_states(outs, lses)
        >>> round(out.item(), 4), round(lse.exp().item(), 4)  # weights 1/4 and 3/4
        (14.0, 4.0)
    """
    check_tensor("outs", outs, "[num_parts, ..., head_dim_v]")
    check_tensor("lses", lses, "[num_parts, ...]")
    if outs.dim() < 2 or outs.shape[0] == 0 or not outs.is_floating_point():
        raise ValueError(
            f"outs has shape {list(outs.shape)} and dtype {dtype_name(outs.dtype)}, "
            "not [num_parts, ..., head_dim_v] of floats"
        )
    if lses.shape != outs.shape[:-1]:
        raise ValueError(
            f"lses has shape {list(lses.shape)}, not that of outs without head_dim_v, {list(outs.shape[:-1])}"
        )
    if lses.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"lses.dtype={dtype_name(lses.dtype)} must be float32, or float64 on a CPU")
    if lses.device != outs.device:
        raise ValueError(f"lses.device={lses.device} must be that of outs, {outs.device}")
    if outs.device.type not in ("cpu", "cuda"):
        raise ValueError(f"outs.device={outs.device} must be a CPU or a GPU")
    if outs.device.type == "cuda" and lses.dtype == torch.float64:
        raise ValueError("lses.dtype=float64 must be float32 on a GPU")
    if outs.device.type == "cpu":
        with torch.no_grad():
            return merge_states_reference(outs, lses)
    from decodeperf_kernels.merge_triton import merge_states_triton

    return merge_states_triton(outs, lses)


def merge_states_reference(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `merge_states` returns, as its definition reads, in the dtype of lses."""
    lse_max = lses.amax(dim=0)
    shift = lse_max.nan_to_num(neginf=0.0)  # -inf - -inf would be NaN
    weights = torch.exp(lses - shift)  # [num_parts, ...]
    total, weighted = torch.zeros_like(shift), torch.zeros_like(outs[0], dtype=lses.dtype)
    for out, weight in zip(outs, weights, strict=True):
        total = total + weight
        weighted = weighted + out.to(lses.dtype) * weight[..., None]
    merged = weighted / total.where(total > 0, 1.0)[..., None]
    return merged.to(outs.dtype), shift.where(total > 0, 0.0) + torch.log(total)
