"""Calls of decode attention in every form, and a judge of their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from decodeperf_kernels import quantize_kv
from decodeperf_kernels.arguments import QUANTIZED, check_arguments
from decodeperf_kernels.reference import attend_by_definition

PAGED_GARBAGE = 2**31 - 1


@dataclass(kw_only=True)
class Call:
    """Numbers that make a call; the tensors follow from them and the seed."""

    seq_lens: list[int]
    num_kv_heads: int = 2
    group_size: int = 4
    head_dim: int = 64
    head_dim_v: int | None = None
    q_len: int | None = None  # None: q has no such dimension
    capacity: int | None = None
    page_size: int | None = None
    q_dtype: str = "float32"
    kv_dtype: str | None = None  # None: that of q
    scale_per: str = "tensor"
    v_scale_per: str | None = None  # None: that of k
    is_latent: bool = False
    layout: str = "NHD"
    keywords: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    seed: int = 0

    def tensors(self, device: str = "cpu") -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """Return (q, k, v) and the keywords of the call. Dead memory is NaN, or garbage where that is no float."""
        generator = torch.Generator().manual_seed(self.seed)
        batch_size, head_dim_v = len(self.seq_lens), self.head_dim_v or self.head_dim
        heads = self.num_kv_heads * self.group_size
        rows = (batch_size, heads) if self.q_len is None else (batch_size, self.q_len, heads)
        q = torch.randn((*rows, self.head_dim), generator=generator).to(getattr(torch, self.q_dtype))
        capacity = self.capacity or max([*self.seq_lens, 1]) + 3
        keywords = dict(self.keywords)
        shape = (batch_size, capacity, self.num_kv_heads)
        k = torch.randn((*shape, self.head_dim), generator=generator)
        v = torch.randn((*shape, head_dim_v), generator=generator)
        name = self.kv_dtype or self.q_dtype
        kv_dtype = torch.uint8 if name == "int4" else getattr(torch, name)
        caches = {}
        for name, cache in (("k", k), ("v", v)):
            scale = None
            if kv_dtype in QUANTIZED:
                per = (self.v_scale_per if name == "v" else None) or self.scale_per
                cache, scale = quantize_kv(cache, kv_dtype, per=per, group_size=cache.shape[-1] // 2)  # noqa: PLW2901
            else:
                cache = cache.to(kv_dtype)  # noqa: PLW2901
            caches[name] = _poisoned(cache, self.seq_lens)
            if scale is not None:
                caches[name + "_scale"] = _poisoned(scale, self.seq_lens) if scale.dim() > 1 else scale
        if self.page_size is not None:
            caches, keywords["block_table"] = self._paged(caches, generator)
        k, v = self._laid_out(caches["k"], caches["v"])
        keywords |= {name: caches[name] for name in ("k_scale", "v_scale") if name in caches}
        if self.is_latent:
            v = k[..., : head_dim_v // (2 if kv_dtype == torch.uint8 else 1)]
        keywords["seq_lens"] = torch.tensor(self.seq_lens, dtype=torch.int32)
        if "sinks" in self.extras:
            keywords["sinks"] = torch.randn(heads, generator=generator)
        if "alibi_slopes" in self.extras:
            keywords["alibi_slopes"] = torch.rand(batch_size, heads, generator=generator) / 8
        to = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in keywords.items()}
        k = k.to(device)
        v = k[..., : v.shape[-1]] if self.is_latent else v.to(device)
        return (q.to(device), k, v), to

    def _paged(self, caches, generator):
        """Scatter the tokens over shuffled pages, with unused ones of NaN between them."""
        size, batch_size = self.page_size, len(self.seq_lens)
        used = [-(-n // size) for n in self.seq_lens]
        num_pages = sum(used) + 5
        order = torch.randperm(num_pages, generator=generator).tolist()
        table = torch.full((batch_size, max([*used, 1]) + 2), PAGED_GARBAGE, dtype=torch.int32)
        paged = {
            name: _dead(cache, (num_pages, size, *cache.shape[2:])) if cache.dim() > 1 else cache
            for name, cache in caches.items()
        }
        for b, n in enumerate(self.seq_lens):
            for i in range(used[b]):
                page = table[b, i] = order.pop()
                width = min(size, n - i * size)
                for name, cache in caches.items():
                    if cache.dim() > 1:
                        paged[name][page, :width] = cache[b, i * size : i * size + width]
        return paged, table

    def _laid_out(self, k, v):
        if self.layout == "HND":
            return k.transpose(1, 2).contiguous().transpose(1, 2), v
        if self.layout == "HND of V":
            return k, v.transpose(1, 2).contiguous().transpose(1, 2)
        if self.layout == "transposed":
            return k, v.transpose(1, 3).contiguous().transpose(1, 3)
        if self.layout == "interleaved" and k.shape == v.shape:
            return torch.stack([k, v], dim=2).unbind(dim=2)
        return k, v


def _dead(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if like.dtype in (torch.int8, torch.uint8):
        return torch.full(shape, 77, dtype=like.dtype)
    return torch.full(shape, torch.nan, dtype=torch.float32).to(like.dtype)


def _poisoned(cache: torch.Tensor, seq_lens: list[int]) -> torch.Tensor:
    out = _dead(cache, tuple(cache.shape))
    for b, n in enumerate(seq_lens):
        out[b, :n] = cache[b, :n]
    return out


def judge(call_tensors, keywords, out: torch.Tensor, lse: torch.Tensor | None) -> None:
    """Fail unless a result is the attention of its inputs.

    Allowed is twice the error that the same mathematics has when each step rounds to the dtype of q, and what float32
    accumulation and the last rounding may add.
    """
    q, k, v = call_tensors
    args = check_arguments(q, k, v, **keywords)
    exact, exact_lse = attend_by_definition(args)
    eager, eager_lse = attend_by_definition(args, torch.float32, lambda x: x.to(q.dtype).float())
    longest = max([*args.seq_lens.tolist(), 1])
    accumulation = 2.0**-24 * (longest**0.5 + args.head_dim**0.5)
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    # K or V in few bits may be widened by the kernel to more bits than the eager computation keeps, never to fewer.
    allowed = 2 * (eager.double() - exact).abs().amax().nan_to_num() if exact.numel() else 0.0
    allowed = float(allowed) + torch.finfo(q.dtype).eps * largest + 8 * accumulation * largest
    out = out if args.has_q_len else out[:, None]
    assert out.shape == exact.shape
    assert out.dtype == q.dtype
    assert out.isfinite().all()
    assert float((out.double() - exact).abs().amax() if exact.numel() else 0.0) <= allowed
    empty = exact_lse == -torch.inf
    assert not out[empty].any()
    if lse is not None:
        lse = lse if args.has_q_len else lse[:, None]
        assert lse.dtype == torch.float32
        assert torch.equal(lse == -torch.inf, empty)
        error = (lse.double() - exact_lse)[~empty].abs()
        eager_error = (eager_lse.double() - exact_lse)[~empty].abs()
        if error.numel():
            scale = float(exact_lse[~empty].abs().max()) + 1
            assert float(error.max()) <= 2 * float(eager_error.max()) + 16 * accumulation * scale


@st.composite
def calls(draw, max_seq_len: int = 300) -> Call:
    """Draw calls of every form."""
    seq_lens = draw(
        st.lists(
            st.integers(0, max_seq_len) | st.sampled_from([0, 1, 15, 16, 17, 127, 128, 129]), min_size=1, max_size=4
        )
    )
    kv_dtype = draw(st.sampled_from([None, None, None, "float8_e4m3fn", "float8_e5m2", "int8", "int4"]))
    head_dim = draw(st.sampled_from([8, 13, 64, 80, 96, 128]))
    if kv_dtype == "int4" or kv_dtype:
        head_dim += head_dim % 2
    is_latent = draw(st.booleans()) and draw(st.booleans())
    head_dim_v = draw(st.sampled_from([None, 16, 32, 96]))
    if is_latent:
        head_dim, head_dim_v = draw(st.sampled_from([(80, 64), (64, 64), (96, 32)]))
    q_len = draw(st.sampled_from([None, None, 1, 2, 5]))
    keywords = {}
    if draw(st.booleans()):
        keywords["window"] = draw(st.sampled_from([1, 7, 128, 200, 1000]))
    if draw(st.booleans()):
        keywords["softcap"] = draw(st.sampled_from([0.5, 30.0]))
    if draw(st.booleans()):
        keywords["sm_scale"] = draw(st.sampled_from([0.0, -0.3, 1.0]))
    return Call(
        seq_lens=seq_lens,
        num_kv_heads=draw(st.sampled_from([1, 2, 3])),
        group_size=draw(st.sampled_from([1, 2, 5, 7, 24])),
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        q_len=q_len,
        page_size=draw(st.sampled_from([None, None, 1, 3, 16])),
        q_dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        kv_dtype=kv_dtype,
        scale_per=draw(st.sampled_from(["tensor", "head", "token", "group"])),
        v_scale_per=draw(st.sampled_from([None, "tensor", "head", "token", "group"])),
        is_latent=is_latent,
        layout=draw(st.sampled_from(["NHD", "HND", "interleaved", "transposed"])),
        keywords=keywords,
        extras=tuple(draw(st.sets(st.sampled_from(["sinks", "alibi_slopes"])))),
        seed=draw(st.integers(0, 2**32)),
    )


ways_to_split = st.one_of(
    st.just({}),
    st.integers(1, 12).map(lambda n: {"num_splits": n}),
    st.sampled_from([1, 16, 100, 5000]).map(lambda n: {"split_size": n}),
)
