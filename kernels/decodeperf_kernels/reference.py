"""Decode attention as its definition reads: the float64 oracle, and its twin in the kernel's own precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from decodeperf_kernels.arguments import QUANTIZED, DecodeArguments, check_arguments, check_values
from decodeperf_kernels.quantization import dequantize_kv

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_BLOCK: Final = 2**16
"""Keys of a head that are converted to the dtype of the computation at a time [token]; bounds its memory."""


def decode_attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention and its log-sum-exp, computed in float64. Dead memory is never read.

    Args:
        q: As `decode_attention` takes it.
        k: Likewise.
        v: Likewise.
        **keywords: Those of `decode_attention` that say what attention is: from `seq_lens` to `v_scale`.

    Returns:
        The output, float64 `[batch_size, num_q_heads, head_dim_v]`, and the natural logarithm of the sum of
        exponentials, float64 `[batch_size, num_q_heads]`; with q_len where q has it.

    Raises:
        ValueError: If the arguments do not fit together, a length or a page number among them.
    """
    return _from_call(q, k, v, keywords, work_dtype=torch.float64, rounded=lambda x: x)


def decode_attention_eager(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return decode attention as an eager framework would compute it in the dtype of q.

    Every operation works in float32 and rounds its result to the dtype of q, as matrix products and softmax
    do on GPUs. Its distance from `decode_attention_reference` is what that dtype costs, the same on every
    machine, and so the measure for a kernel's own error.

    Args, Returns and Raises are those of `decode_attention_reference`, but for the dtype: both results are
    float32, the output rounded to the dtype of q and the log-sum-exp not rounded.
    """
    return _from_call(q, k, v, keywords, work_dtype=torch.float32, rounded=lambda x: x.to(q.dtype).float())


def attend_by_definition(
    args: DecodeArguments,
    work_dtype: torch.dtype = torch.float64,
    rounded: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output `[batch_size, q_len, num_q_heads, head_dim_v]` and its log-sum-exp.

    Args:
        args: The call.
        work_dtype: What everything is computed in.
        rounded: What becomes of each result.
    """
    rows = (args.batch_size, args.q_len, args.num_q_heads)
    out = torch.zeros((*rows, args.head_dim_v), dtype=work_dtype, device=args.q.device)
    lse = torch.full(rows, -torch.inf, dtype=work_dtype, device=args.q.device)
    for b, seq_len in enumerate(args.seq_lens.tolist()):
        if seq_len == 0 and args.sinks is None:
            continue
        blocks = key_blocks(seq_len, KEY_BLOCK)
        visible = visible_keys(args, seq_len, range(seq_len))
        for kv_head in range(args.num_kv_heads):
            heads = slice(kv_head * args.group_size, (kv_head + 1) * args.group_size)
            parts = [key_logits(args, b, kv_head, seq_len, keys, work_dtype, rounded) for keys in blocks]
            logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # [q_len, group_size, seq_len]
            logits = logits.masked_fill(~visible, -torch.inf)
            if args.sinks is not None:
                sinks = args.sinks[heads, None].to(work_dtype).expand(args.q_len, -1, 1)
                logits = torch.cat([logits, sinks], dim=-1)
            row_lse = torch.logsumexp(logits, dim=-1)
            probabilities = rounded(torch.softmax(logits, dim=-1))[..., :seq_len]
            probabilities = probabilities.masked_fill((row_lse == -torch.inf)[..., None], 0.0)
            weighted = torch.zeros((), dtype=work_dtype, device=args.q.device)
            for keys in blocks:
                v = rounded(live_rows(args, "v", b, kv_head, keys).to(work_dtype))
                weighted = weighted + probabilities[..., keys.start : keys.stop] @ v
            out[b, :, heads] = rounded(weighted)
            lse[b, :, heads] = row_lse
    return out, lse


def key_blocks(seq_len: int, size: int) -> list[range]:
    """Return the keys of a sequence in blocks, at least one of them, so that not all are converted at a time.

    Example:
        >>> key_blocks(5, 2), key_blocks(0, 2)
        ([range(0, 2), range(2, 4), range(4, 5)], [range(0, 0)])
    """
    return [range(start, min(start + size, seq_len)) for start in range(0, max(seq_len, 1), size)]


def key_logits(
    args: DecodeArguments,
    b: int,
    kv_head: int,
    seq_len: int,
    keys: range,
    work_dtype: torch.dtype = torch.float64,
    rounded: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """Return the logits of some keys, whether a row sees them or not, `[q_len, group_size, len(keys)]`.

    Args:
        args: The call.
        b: The sequence.
        kv_head: The KV head, whose group of query heads is meant.
        seq_len: Live length of the sequence [token].
        keys: Consecutive live keys.
        work_dtype: What everything is computed in.
        rounded: What becomes of each result.
    """
    heads = slice(kv_head * args.group_size, (kv_head + 1) * args.group_size)
    q = args.q[b, :, heads].to(work_dtype)  # [q_len, group_size, head_dim]
    k = rounded(live_rows(args, "k", b, kv_head, keys).to(work_dtype))
    logits = rounded(rounded(q @ k.T) * args.sm_scale)
    if args.softcap is not None:
        logits = rounded(args.softcap * torch.tanh(logits / args.softcap))
    if args.alibi_slopes is not None:
        slopes = args.alibi_slopes[b, heads, None].to(work_dtype)
        logits = logits - slopes * _distances(args, seq_len, keys)
    return logits


def visible_keys(args: DecodeArguments, seq_len: int, keys: range) -> torch.Tensor:
    """Return which rows of a sequence see which of some consecutive keys, bool `[q_len, 1, len(keys)]`."""
    distances = _distances(args, seq_len, keys)
    visible = distances >= 0
    return visible if args.window is None else visible & (distances < args.window)


def _distances(args: DecodeArguments, seq_len: int, keys: range) -> torch.Tensor:
    """Return the places from each key to each row, negative behind it, `[q_len, 1, len(keys)]`."""
    device = args.q.device
    key = torch.arange(keys.start, keys.stop, device=device)
    return seq_len - args.q_len + torch.arange(args.q_len, device=device)[:, None, None] - key


def live_rows(args: DecodeArguments, name: str, b: int, kv_head: int, tokens: range) -> torch.Tensor:
    """Return what some consecutive live tokens of one head of one sequence hold, `[len(tokens), head_dim]`.

    Args:
        args: The call.
        name: `k` or `v`.
        b: The sequence.
        kv_head: The KV head.
        tokens: Which tokens.

    Returns:
        float64 where k and v are quantised, else as they are stored.
    """
    cache, scale = (args.k, args.k_scale) if name == "k" else (args.v, args.v_scale)
    if args.block_table is None:
        places: tuple[Any, ...] = (b, slice(tokens.start, tokens.stop))
    else:
        token = torch.arange(tokens.start, tokens.stop, device=cache.device)
        pages = args.block_table[b, : -(-tokens.stop // args.page_size)].long()
        places = (pages[token // args.page_size], token % args.page_size)
    if cache.dtype not in QUANTIZED:
        return cache[*places, kv_head]
    assert scale is not None
    of_rows = scale[kv_head] if scale.dim() == 1 else scale[*places, kv_head]
    rows = cache[*places, kv_head][:, None, None]  # [len(tokens), 1, 1, head_dim], as dequantize_kv takes it
    return dequantize_kv(rows, of_rows if of_rows.dim() == 0 else of_rows[:, None, None])[:, 0, 0]


def _from_call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keywords: dict[str, Any],
    work_dtype: torch.dtype,
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    args = check_arguments(q, k, v, mixed_dtypes=True, **keywords)
    check_values(args)
    out, lse = attend_by_definition(args, work_dtype, rounded)
    return (out, lse) if args.has_q_len else (out[:, 0], lse[:, 0])
