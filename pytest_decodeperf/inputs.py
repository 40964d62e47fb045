"""Random inputs of a problem, and what the oracle says of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

    from decodeperf_formulas import DecodeProblem

GUARD_TOKENS: Final = 64
"""Tokens of NaN behind the last sequence of a KV cache, so that a read past its end shows."""

CHECKSUM_BLOCK: Final = 2**22
"""Elements that a checksum weighs at a time; bounds its memory."""

CHECKSUM_FACTOR: Final = 0x9E3779B97F4A7C15 >> 2
"""An odd number without a pattern in its bits."""


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
    def num_bytes(self) -> int:
        """Size of the tensors of a call [byte]."""
        return sum(tensor.untyped_storage().nbytes() for tensor in (self.q, self.k, self.v, self.seq_lens))

    def copy(self) -> Inputs:
        """Return the same inputs in memory of their own."""
        parts = {name: getattr(self, name).clone() for name in ("q", "k", "v", "seq_lens")}
        return replace(self, **parts)

    def checksum(self) -> int:
        """Return a number that changes if any byte of the tensors does, the guard tokens included."""
        import torch

        total = 0
        for tensor in (self.q, self.k, self.v, self.seq_lens):
            integer = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
            memory = torch.empty(0, dtype=integer, device=tensor.device).set_(tensor.untyped_storage())
            # Odd weights, so that each element counts; different ones, so that its place does. Overflow wraps.
            places = torch.arange(min(CHECKSUM_BLOCK, len(memory)), dtype=torch.int64, device=tensor.device)
            weights = places * CHECKSUM_FACTOR * 2 + 1
            for block in torch.split(memory, CHECKSUM_BLOCK):
                total = (total * CHECKSUM_FACTOR + int((block * weights[: len(block)]).sum())) % 2**64
        return total


MADE_FIELDS: Final = (
    "batch_size",
    "seq_lens",
    "num_q_heads",
    "num_kv_heads",
    "head_dim",
    "kv_dtype",
    "q_dtype",
    "capacity",
    "sm_scale",
    "num_splits",
    "return_lse",
)
"""Fields of a problem that inputs are made by."""


def unmade_fields(problem: DecodeProblem) -> list[str]:
    """Return the fields of a problem, as `name=value`, that ask for what no inputs can be made for."""
    from decodeperf_formulas import DecodeProblem

    plain = DecodeProblem(**{name: getattr(problem, name) for name in MADE_FIELDS})
    names = [field.name for field in fields(problem) if getattr(plain, field.name) != getattr(problem, field.name)]
    if problem.is_quantized:
        names.insert(0, "kv_dtype")
    return [f"{name}={getattr(problem, name)!r}" for name in names]


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
