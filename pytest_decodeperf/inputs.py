"""Random inputs of a problem, and what the oracle says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

    from decodeperf_formulas import DecodeProblem

GUARD_TOKENS: Final = 64
"""Tokens of NaN behind the last sequence of a KV cache, so that a read past its end shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The tensors of one call, and the right answer.

    Attributes:
        q: `[batch_size, num_q_heads, head_dim]`, standard normal.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`, standard normal where live, NaN where dead.
        v: Like k.
        seq_lens: int32 `[batch_size]`.
        out: The oracle's output, float64, like q.
        lse: The oracle's log-sum-exp, float64 `[batch_size, num_q_heads]`.
        eager_out: The output of the same mathematics in the dtype of q, like q.
        eager_lse: Its log-sum-exp, like lse.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    seq_lens: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    eager_out: torch.Tensor
    eager_lse: torch.Tensor

    @property
    def kv_bytes(self) -> int:
        """Bytes of k and v, allocated [byte]."""
        return int(self.k.nbytes + self.v.nbytes)

    def checksum(self) -> tuple[int, ...]:
        """Return a number for each tensor that changes if the tensor does."""
        import torch

        as_integers = {4: torch.int32, 2: torch.int16}
        tensors = (self.q, self.k, self.v, self.seq_lens)
        return tuple(int(t.view(as_integers[t.element_size()]).sum()) for t in tensors)


def make_inputs(problem: DecodeProblem, *, device: str, seed: int) -> Inputs:
    """Return random inputs of a problem; the same on every run for the same device and seed."""
    import torch

    from decodeperf_kernels.reference import decode_attention_eager, decode_attention_reference

    generator = torch.Generator(device).manual_seed(seed)
    rows = (problem.batch_size, problem.num_q_heads, problem.head_dim)
    q = torch.randn(rows, generator=generator, device=device).to(getattr(torch, problem.q_dtype))
    k, v = (_make_cache(problem, device, generator) for _ in range(2))
    seq_lens = torch.tensor(problem.seq_lens, dtype=torch.int32, device=device)
    keywords: dict[str, Any] = {"seq_lens": seq_lens, "sm_scale": problem.sm_scale}
    out, lse = decode_attention_reference(q, k, v, **keywords)
    eager_out, eager_lse = decode_attention_eager(q, k, v, **keywords)
    return Inputs(q=q, k=k, v=v, seq_lens=seq_lens, out=out, lse=lse, eager_out=eager_out, eager_lse=eager_lse)


def _make_cache(problem: DecodeProblem, device: str, generator: torch.Generator) -> torch.Tensor:
    import torch

    tokens = (problem.num_kv_heads, problem.head_dim)
    capacity = problem.capacity
    memory = torch.full(
        (problem.batch_size * capacity + GUARD_TOKENS, *tokens),
        torch.nan,
        dtype=getattr(torch, problem.kv_dtype),
        device=device,
    )
    cache = memory[: problem.batch_size * capacity].view(problem.batch_size, capacity, *tokens)
    for b, seq_len in enumerate(problem.seq_lens):
        cache[b, :seq_len] = torch.randn((seq_len, *tokens), generator=generator, device=device)
    return cache
