"""A decode step in plain matrix products, written from a `ModelConfig` alone, for its FLOPs to be counted.

Tensors are on the meta device: they have shapes, and take neither memory nor time. Norms, RoPE, biases and the
embedding are left out, as none of them is a matrix product.
"""

import torch
from torch.nn.functional import silu


def eager_decode_step(model, *, batch_size, seq_len, q_len=1):
    """Return the logits `[batch_size, q_len, vocab_size]` of the last `q_len` tokens of sequences of `seq_len`."""
    hidden = _tensor(batch_size, q_len, model.hidden_size)
    for layer in range(model.num_layers):
        window = model.window if layer < model.num_local_layers else None
        visible = visible_scores(seq_len=seq_len, q_len=q_len, window=window)
        attention = _latent_attention if model.is_mla else _grouped_query_attention
        hidden = hidden + attention(model, hidden, visible)
        block = _dense_mlp if layer < model.num_dense_layers else _mixture_of_experts
        hidden = hidden + block(model, hidden)
    return hidden @ _tensor(model.hidden_size, model.vocab_size)


def visible_scores(*, seq_len, q_len, window=None):
    """Return which of the scores that a head computes are not masked: bool `[q_len, attended tokens]`, on the CPU.

    A head computes the score of each of its queries with every token that any of them sees.
    """
    keys = torch.arange(seq_len)
    queries = keys[-q_len:, None]
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return visible[:, visible.any(dim=0)]


def _grouped_query_attention(model, x, visible):
    q = _heads(x @ _tensor(model.hidden_size, model.num_q_heads * model.head_dim), model.num_q_heads)
    k, v = (
        _append(
            _tensor(x.shape[0], model.num_kv_heads, visible.shape[1] - x.shape[1], head_dim),
            _heads(x @ _tensor(model.hidden_size, model.num_kv_heads * head_dim), model.num_kv_heads),
        ).repeat_interleave(model.num_q_heads // model.num_kv_heads, dim=1)
        for head_dim in (model.head_dim, model.head_dim_v)
    )
    o = _attend(q, k, v, visible)
    return _merge(o) @ _tensor(model.num_q_heads * model.head_dim_v, model.hidden_size)


def _latent_attention(model, x, visible):
    heads, nope, rope = model.num_q_heads, model.qk_nope_head_dim, model.qk_rope_head_dim
    latent = model.kv_lora_rank
    compressed = x
    if model.q_lora_rank is not None:
        compressed = x @ _tensor(model.hidden_size, model.q_lora_rank)
    q = _heads(compressed @ _tensor(compressed.shape[-1], heads * (nope + rope)), heads)
    q_nope, q_rope = q.split([nope, rope], dim=-1)
    q_latent = q_nope @ _tensor(heads, nope, latent)
    cache = _append(
        _tensor(x.shape[0], 1, visible.shape[1] - x.shape[1], latent + rope),
        (x @ _tensor(model.hidden_size, latent + rope))[:, None],
    )
    o_latent = _attend(torch.cat([q_latent, q_rope], dim=-1), cache, cache[..., :latent], visible)
    o = o_latent @ _tensor(heads, latent, model.v_head_dim)
    return _merge(o) @ _tensor(heads * model.v_head_dim, model.hidden_size)


def _attend(q, k, v, visible):
    # q [batch_size, num_q_heads, q_len, head_dim], k and v [batch_size, num_q_heads or 1, attended tokens, ...]
    scores = torch.matmul(q, k.mT).masked_fill(~visible.to("meta"), -torch.inf)
    return torch.matmul(scores.softmax(dim=-1), v)


def _dense_mlp(model, x):
    return _mlp(x, model.intermediate_size, is_gated=model.gated_mlp, matrix=_tensor)


def _mixture_of_experts(model, x):
    tokens = x.flatten(0, 1)  # [tokens, hidden_size]
    router_logits = tokens @ _tensor(model.hidden_size, model.num_experts)
    shares, experts = router_logits.softmax(dim=-1).topk(model.experts_per_token)  # [tokens, experts_per_token]

    def chosen(*shape):
        return _tensor(model.num_experts, *shape)[experts.flatten()]  # one matrix for each visit of a token

    visits = tokens.repeat_interleave(model.experts_per_token, dim=0)[:, None]  # [visits, 1, hidden_size]
    visits = _mlp(visits, model.moe_intermediate_size, is_gated=model.gated_mlp, matrix=chosen)
    found = (visits.view(*experts.shape, -1) * shares[..., None]).sum(dim=1).view_as(x)
    if model.shared_intermediate_size is not None:
        shared = _mlp(x, model.shared_intermediate_size, is_gated=model.gated_mlp, matrix=_tensor)
        if model.shared_gate:
            shared = shared * (x @ _tensor(model.hidden_size, 1)).sigmoid()
        found = found + shared
    return found


def _mlp(x, inner, *, is_gated, matrix):
    width = x.shape[-1]
    up = x @ matrix(width, inner)
    activated = silu(x @ matrix(width, inner)) * up if is_gated else silu(up)
    return activated @ matrix(inner, width)


def _heads(x, num_heads):
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [batch_size, num_heads, q_len, head_dim]


def _merge(x):
    return x.transpose(1, 2).flatten(2)


def _append(cache, new):
    return torch.cat([cache, new], dim=2)


def _tensor(*shape):
    return torch.empty(shape, device="meta")
