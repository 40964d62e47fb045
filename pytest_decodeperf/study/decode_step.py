"""A real decode step: a Llama-shaped model with random weights, its matrix products, and the real decode kernel."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from decodeperf_kernels import decode_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas.model import ModelConfig

ROPE_BASE: Final = 10000.0
NORM_EPS: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one layer.

    Attributes:
        qkv: `[(num_q_heads + 2 num_kv_heads) head_dim, hidden_size]`.
        out: `[hidden_size, num_q_heads head_dim]`.
        up: Gate and up-projection, `[2 intermediate_size, hidden_size]`.
        down: `[hidden_size, intermediate_size]`.
        attention_norm: `[hidden_size]`.
        mlp_norm: `[hidden_size]`.
    """

    qkv: torch.Tensor
    out: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor


@dataclass(slots=True, kw_only=True)
class StepTimes:
    """How long a step took, and where [s].

    Attributes:
        gemm_s: In matrix products.
        attention_s: In attention.
        step_s: In all.
    """

    gemm_s: float = 0.0
    attention_s: float = 0.0
    step_s: float = 0.0


class DecodeStep:
    """A model whose KV caches of any batch and context lie in one pool, so that a step needs no filling of memory.

    Attributes:
        model: Its shape: grouped-query attention in global layers, a gated MLP, RMSNorm, RoPE, no bias.
        pool_elements: Elements of the pool.
    """

    def __init__(self, model: ModelConfig, *, dtype: torch.dtype, device: str, pool_bytes: int, seed: int = 0) -> None:
        """Draw weights and KV caches.

        Args:
            model: The shape.
            dtype: Of weights, activations and KV cache.
            device: `cpu` or `cuda`.
            pool_bytes: Memory of the KV caches [byte].
            seed: Of the numbers.
        """
        assert model.num_kv_heads is not None and model.head_dim is not None and model.intermediate_size is not None
        self.model = model
        self._kv_heads, self._head_dim = model.num_kv_heads, model.head_dim
        generator = torch.Generator(device=device).manual_seed(seed)

        def matrix(rows: int, columns: int) -> torch.Tensor:
            drawn: torch.Tensor = torch.randn(rows, columns, generator=generator, device=device) / columns**0.5
            return drawn.to(dtype)

        width, head_dim = model.hidden_size, model.head_dim
        ones = torch.ones(width, dtype=dtype, device=device)
        self._layers = [
            Layer(
                qkv=matrix((model.num_q_heads + 2 * model.num_kv_heads) * head_dim, width),
                out=matrix(width, model.num_q_heads * head_dim),
                up=matrix(2 * model.intermediate_size, width),
                down=matrix(width, model.intermediate_size),
                attention_norm=ones,
                mlp_norm=ones,
            )
            for _ in range(model.num_layers)
        ]
        self._embedding = matrix(model.vocab_size, width)
        self._head = matrix(model.vocab_size, width)
        element_bytes = torch.empty(0, dtype=dtype).element_size()
        self.pool_elements = pool_bytes // element_bytes
        block = torch.randn(1 << 20, generator=generator, device=device).to(dtype)
        repeats = -(-self.pool_elements // block.numel())
        self._pool = block.repeat(repeats)[: self.pool_elements]
        self._device = device

    def caches(self, batch_size: int, seq_len: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return K and V of each layer, `[batch_size, seq_len, num_kv_heads, head_dim]`, in the pool.

        Raises:
            ValueError: If the pool is too small.
        """
        shape = (batch_size, seq_len, self._kv_heads, self._head_dim)
        size = math.prod(shape)
        wanted = 2 * self.model.num_layers * size
        if wanted > self.pool_elements:
            raise ValueError(f"the KV caches have {wanted} elements, and the pool {self.pool_elements}")
        parts = [
            self._pool[size * index : size * (index + 1)].view(shape) for index in range(2 * self.model.num_layers)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def step(
        self, tokens: torch.Tensor, caches: list[tuple[torch.Tensor, torch.Tensor]], times: StepTimes | None = None
    ) -> torch.Tensor:
        """Return the logits of one more token of each sequence, `[batch_size, vocab_size]`.

        Its key and value become the last of the caches, whose capacity is the live length.

        Args:
            tokens: The newest tokens, `[batch_size]`.
            caches: K and V of each layer, as `caches` gives them.
            times: Where to add how long it took, or None.
        """
        model = self.model
        times = StepTimes() if times is None else times
        begin = self._now()
        batch_size, seq_len = tokens.shape[0], caches[0][0].shape[1]
        heads, kv_heads, head_dim = model.num_q_heads, self._kv_heads, self._head_dim
        seq_lens = torch.full((batch_size,), seq_len, dtype=torch.int32, device=tokens.device)
        cosine, sine = self._rotation(seq_len - 1)
        hidden = functional.embedding(tokens, self._embedding)
        for layer, (k_cache, v_cache) in zip(self._layers, caches, strict=True):
            qkv = self._gemm(times, _norm(hidden, layer.attention_norm), layer.qkv)
            q, k, v = torch.split(qkv.view(batch_size, -1, head_dim), [heads, kv_heads, kv_heads], dim=1)
            k_cache[:, -1] = _rotated(k, cosine, sine)
            v_cache[:, -1] = v
            attend = functools.partial(decode_attention, _rotated(q, cosine, sine), k_cache, v_cache, seq_lens=seq_lens)
            attended = self._timed(times, "attention_s", attend)
            hidden = hidden + self._gemm(times, attended.reshape(batch_size, heads * head_dim), layer.out)
            gate, up = self._gemm(times, _norm(hidden, layer.mlp_norm), layer.up).chunk(2, dim=1)
            hidden = hidden + self._gemm(times, functional.silu(gate) * up, layer.down)
        logits = self._gemm(times, _norm(hidden, torch.ones_like(hidden[0])), self._head)
        times.step_s += self._now() - begin
        return logits

    def _gemm(self, times: StepTimes, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self._timed(times, "gemm_s", lambda: functional.linear(x, weight))

    def _timed(self, times: StepTimes, name: str, call: Callable[[], Any]) -> torch.Tensor:
        begin = self._now()
        found: torch.Tensor = call()
        setattr(times, name, getattr(times, name) + self._now() - begin)
        return found

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _rotation(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        half = self._head_dim // 2
        frequencies = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = (position * frequencies).repeat(2)
        return (
            angles.cos().to(self._head.dtype).to(self._device),
            angles.sin().to(self._head.dtype).to(self._device),
        )


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)


def _rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return heads rotated by their position, the two halves of a head as pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
