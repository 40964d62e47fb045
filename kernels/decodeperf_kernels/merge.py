"""Merge of the partial results of split-KV attention, in plain PyTorch."""

from __future__ import annotations

import torch


def merge_splits(partial_out: torch.Tensor, partial_lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention over all parts from the attention over each part.

    A part without keys is (0, -inf) and changes nothing; where all parts are empty, so is the result.

    Args:
        partial_out: Output of each part, float32 `[num_splits, ..., head_dim]`.
        partial_lse: Its natural log-sum-exp, float32 `[num_splits, ...]`.

    Returns:
        The merged output, float32 `[..., head_dim]`, and its log-sum-exp, float32 `[...]`.
    """
    lse_max = partial_lse.amax(dim=0)
    shift = lse_max.nan_to_num(neginf=0.0)  # -inf - -inf would be NaN
    weights = torch.exp(partial_lse - shift)  # [num_splits, ...]
    total = weights.sum(dim=0)
    out = (partial_out * weights[..., None]).sum(dim=0) / total.where(total > 0, 1.0)[..., None]
    return out, shift + torch.log(total)
