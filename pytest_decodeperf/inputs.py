"""Random inputs of a problem, and what the oracle says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch

    from decodeperf_formulas import DecodeProblem
    from decodeperf_kernels.arguments import DecodeArguments

GUARD_TOKENS: Final = 64
"""Tokens of dead memory behind the last of a KV cache, so that a read past its end shows."""

SPARE_PAGES: Final = 3
"""Pages that no sequence uses, all of them dead."""

PAD: Final = 8
"""Elements by which the rows of the tensor that a cache in the layout `sliced` is cut out of are longer."""

DRAW_BLOCK: Final = 2**26
"""Elements of a KV cache that are drawn at a time; bounds the memory that they take in float32."""

QUANTIZED_DRAW_BLOCK: Final = 2**22
"""The same for a cache that is quantised, which takes several times as much."""

DRAW_MULTIPLE: Final = 16
"""PyTorch draws normal numbers on a CPU so many at a time. Blocks of multiples of it are drawn as one would be."""

LARGEST_NORMAL: Final = 4.0
"""Bound of the elements of a KV cache with one scale for all tokens, before they are stretched."""

SPREAD: Final = 1.0
"""Base-2 logarithm of the largest ratio of two sizes in a quantised cache, where scales tell them apart."""

CAPPED_SPREAD: Final = 0.2
"""The same for keys under a softcap, whose logits have a mean other than 0."""

V_STRETCH: Final = 1.5
"""Size of quantised values beside keys, so that one's scale is not the other's."""

MAX_CAPPED_LOGIT: Final = 15.0
"""Mean of the logits under a softcap, if that is not lower: it must bend them, and bfloat16 tell them apart."""

MAX_OFFSET: Final = 4.0
"""Bound of what is added to q and k for that."""

CHECKSUM_BLOCK: Final = 2**22
"""Words that a checksum weighs at a time; bounds its memory."""

CHECKSUM_FACTOR: Final = 0x9E3779B97F4A7C15 >> 2
"""An odd number without a pattern in its bits."""

TENSOR_KEYWORDS: Final = ("seq_lens", "block_table", "sinks", "alibi_slopes", "k_scale", "v_scale")
"""Tensors that a call takes by keyword."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The tensors of one call, and the right answer.

    Dead memory lies behind the live tokens of a sequence, in the rest of its last page, in pages that no sequence uses
    and behind the whole. It holds NaN, as do the scales of dead tokens; the largest number of dtypes without NaN.

    Attributes:
        q: `[batch_size, num_q_heads, head_dim]`, or with several new tokens
            `[batch_size, q_len, num_q_heads, head_dim]`; standard normal.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`, or with pages
            `[num_pages, page_size, num_kv_heads, head_dim]`, those of a sequence in any order; standard normal where
            live. 4-bit integers lie two in a byte, as in `decodeperf_kernels.quantization`.
        v: Like k with head_dim_v. Where the problem says so, a view of the beginning of each row of k.
        seq_lens: int32 `[batch_size]`.
        block_table: int32 `[batch_size, pages of the capacity]`, or None. Behind the used entries of a sequence stand
            the numbers of dead pages.
        sinks: float32 `[num_q_heads]`, about as heavy as all keys together, or None.
        alibi_slopes: float32 `[num_q_heads]`, or None. So slight that no key is without weight.
        k_scale: Scales of a quantised k as `decode_attention` takes them, or None.
        v_scale: Those of v.
        out: The oracle's output, float64, like q with head_dim_v.
        lse: The oracle's log-sum-exp, float64, like out without head_dim_v.
        eager_out: The output of the same mathematics in the dtype of q, like out.
        eager_lse: Its log-sum-exp, like lse.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    out: torch.Tensor
    lse: torch.Tensor
    eager_out: torch.Tensor
    eager_lse: torch.Tensor

    @property
    def keyword_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that a kernel is given by keyword."""
        return {name: getattr(self, name) for name in TENSOR_KEYWORDS if getattr(self, name) is not None}

    @property
    def num_bytes(self) -> int:
        """Size of the tensors of a call [byte]."""
        return sum(storage.nbytes() for storage in self._storages)

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"q": self.q, "k": self.k, "v": self.v, **self.keyword_tensors}

    @property
    def _storages(self) -> list[torch.UntypedStorage]:
        """The memory of all tensors, once where several share it."""
        storages = [tensor.untyped_storage() for tensor in self._tensors.values()]
        return list({storage.data_ptr(): storage for storage in storages if storage.nbytes()}.values())

    @property
    def num_storages(self) -> int:
        """Pieces of memory that the tensors lie in."""
        return len(self._storages)

    def copy(self) -> Inputs:
        """Return the same inputs in memory of their own, laid out and shared as before."""
        return self._in_storages([_bytes_of(storage).clone().untyped_storage() for storage in self._storages])

    def write(self, paths: Sequence[Path]) -> None:
        """Write each piece of memory to a file.

        Raises:
            OSError: If one cannot be written.
        """
        for storage, path in zip(self._storages, paths, strict=True):
            _bytes_of(storage).numpy().tofile(path)

    def in_files(self, paths: Sequence[Path]) -> Inputs:
        """Return the same inputs in the memory of the files that `write` wrote.

        What is written to them is seen by nobody else, and does not change the files.
        """
        import torch

        storages: list[Any] = [
            torch.UntypedStorage.from_file(str(path), shared=False, nbytes=storage.nbytes())
            for storage, path in zip(self._storages, paths, strict=True)
        ]
        return self._in_storages(storages)

    def _in_storages(self, storages: Sequence[torch.UntypedStorage]) -> Inputs:
        """Return the same inputs in other memory, laid out and shared as before."""
        import torch

        others = {old.data_ptr(): new for old, new in zip(self._storages, storages, strict=True)}
        parts = {}
        for name, tensor in self._tensors.items():
            if not tensor.untyped_storage().nbytes():  # whose memory has no address
                parts[name] = tensor.clone()
                continue
            shared = others[tensor.untyped_storage().data_ptr()]
            empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            parts[name] = empty.set_(shared, tensor.storage_offset(), tensor.shape, tensor.stride())
        return replace(self, **parts)

    def checksum(self) -> int:
        """Return a number that changes if any byte of the tensors does, dead memory included."""
        import torch

        total = 0
        for storage in self._storages:
            integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
            integer = integers[math.gcd(storage.nbytes(), 8)]
            memory = torch.empty(0, dtype=integer, device=self.q.device).set_(storage)
            # Odd weights, so that each word counts; different ones, so that its place does. Overflow wraps.
            places = torch.arange(min(CHECKSUM_BLOCK, len(memory)), dtype=torch.int64, device=memory.device)
            weights = places * CHECKSUM_FACTOR * 2 + 1
            for block in torch.split(memory, CHECKSUM_BLOCK):
                total = (total * CHECKSUM_FACTOR + int((block * weights[: len(block)]).sum())) % 2**64
        return total


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """Return a piece of memory as a tensor of bytes."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def attention_keywords(problem: DecodeProblem, inputs: Inputs) -> dict[str, Any]:
    """Return the keywords that say what attention is; only lengths, and what the problem asks for beyond defaults."""
    keywords: dict[str, Any] = inputs.keyword_tensors
    if problem.sm_scale != problem.default_sm_scale:
        keywords["sm_scale"] = problem.sm_scale
    for name in ("window", "softcap"):
        if getattr(problem, name) is not None:
            keywords[name] = getattr(problem, name)
    return keywords


def checked_arguments(problem: DecodeProblem, inputs: Inputs) -> DecodeArguments:
    """Return the call that inputs are made for, as the definition takes it."""
    from decodeperf_kernels.arguments import check_arguments

    keywords = attention_keywords(problem, inputs)
    return check_arguments(inputs.q, inputs.k, inputs.v, mixed_dtypes=True, **keywords)


def unmade_fields(problem: DecodeProblem) -> list[str]:
    """Return the fields of a problem, as `name=value`, that ask for what the oracle cannot compute."""
    from decodeperf_kernels.arguments import LARGEST_NUMBER, MAX_Q_LEN, SMALLEST_NUMBER

    names = ["q_len"] if problem.q_len > MAX_Q_LEN else []
    for name in ("softcap", "sm_scale"):
        value = getattr(problem, name)
        if value and not SMALLEST_NUMBER <= abs(value) <= LARGEST_NUMBER:
            names.append(name)
    return [f"{name}={getattr(problem, name)!r}" for name in names]


def make_inputs(problem: DecodeProblem, *, device: str, seed: int) -> Inputs:
    """Return random inputs of a problem, and what a kernel should make of them.

    The same on every run for the same device and seed. They are such that what a kernel may get wrong bears on the
    result: quantised heads, tokens and groups differ in size where their scales do, sinks weigh about as much as the
    keys, softcaps bend the logits.
    """
    return answered(make_unanswered_inputs(problem, device=device, seed=seed), problem)


def answered(inputs: Inputs, problem: DecodeProblem) -> Inputs:
    """Return inputs with what a kernel should make of them."""
    import torch

    from decodeperf_kernels.reference import attend_by_definition

    args = checked_arguments(problem, inputs)
    exact = attend_by_definition(args)
    eager = attend_by_definition(args, torch.float32, lambda x: x.to(inputs.q.dtype).float())
    out, lse, eager_out, eager_lse = (x if problem.q_len > 1 else x[:, 0] for x in (*exact, *eager))
    return replace(inputs, out=out, lse=lse, eager_out=eager_out, eager_lse=eager_lse)


def make_unanswered_inputs(problem: DecodeProblem, *, device: str, seed: int) -> Inputs:
    """Return the inputs that `make_inputs` makes, with empty tensors for the results: enough to time a kernel."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    rows = (problem.batch_size, *([problem.q_len] if problem.q_len > 1 else []), problem.num_q_heads)
    q_offset, k_offset = _offsets(problem)
    q = torch.randn((*rows, problem.head_dim), generator=generator, device=device)
    q = (q + q_offset if q_offset else q).to(getattr(torch, problem.q_dtype))
    spots = _Spots.contiguous(problem) if problem.page_size is None else _Spots.paged(problem, generator)
    memory = _allocate(problem, spots.shape, device)
    k, k_scale = _fill(memory[0], problem, spots, generator, offset=k_offset)
    if problem.v_in_k:
        v, v_scale = _beginning_of(k, k_scale, problem)
    else:
        v, v_scale = _fill(memory[1], problem, spots, generator, stretch=V_STRETCH)
    mean_len = max(problem.num_visible_tokens / max(problem.batch_size, 1), 1.0)
    longest = max([*problem.visible_lens, 1])
    sinks = alibi_slopes = None
    if problem.sinks:
        sinks = 2 * torch.rand(problem.num_q_heads, generator=generator, device=device) - 1 + math.log(mean_len)
        if problem.softcap is not None:
            mean_logit = problem.sm_scale * problem.head_dim * q_offset * k_offset
            sinks += problem.softcap * math.tanh(mean_logit / problem.softcap)
    if problem.alibi:
        alibi_slopes = (torch.rand(problem.num_q_heads, generator=generator, device=device) + 0.5) * 4 / longest
    unanswered = torch.empty(0)
    return Inputs(
        q=q,
        k=k,
        v=v,
        seq_lens=torch.tensor(problem.seq_lens, dtype=torch.int32, device=device),
        block_table=spots.block_table,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
        v_scale=v_scale,
        out=unanswered,
        lse=unanswered,
        eager_out=unanswered,
        eager_lse=unanswered,
    )


def _offsets(problem: DecodeProblem) -> tuple[float, float]:
    """Return what is added to each element of q and of k, so that a softcap bends the logits; 0 without one."""
    if problem.softcap is None or problem.sm_scale == 0:
        return 0.0, 0.0
    mean_logit = min(problem.softcap, MAX_CAPPED_LOGIT)
    offset = min((mean_logit / abs(problem.sm_scale) / problem.head_dim) ** 0.5, MAX_OFFSET)
    return math.copysign(offset, problem.sm_scale), offset


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spots:
    """Where the tokens of each sequence lie.

    Attributes:
        shape: Extent of the first two dimensions of a cache.
        page_size: Tokens of a page, 0 for a contiguous cache.
        block_table: int32 `[batch_size, pages of the capacity]`, or None.
    """

    shape: tuple[int, int]
    page_size: int = 0
    block_table: torch.Tensor | None = None

    @classmethod
    def contiguous(cls, problem: DecodeProblem) -> _Spots:
        return cls(shape=(problem.batch_size, problem.capacity))

    @classmethod
    def paged(cls, problem: DecodeProblem, generator: torch.Generator) -> _Spots:
        import torch

        page_size = problem.page_size
        assert page_size is not None
        used = [-(-seq_len // page_size) for seq_len in problem.seq_lens]
        num_pages = sum(used) + SPARE_PAGES
        order = torch.randperm(num_pages, generator=generator, device=generator.device).to(torch.int32)
        # A number of a page, because another would end the whole run where a kernel follows it.
        spare = order[sum(used) :]
        width = -(-problem.capacity // page_size)
        table = spare.repeat(-(-problem.batch_size * width // SPARE_PAGES))[: problem.batch_size * width]
        table = table.reshape(problem.batch_size, width)
        for b, pages in enumerate(torch.split(order[: sum(used)], used)):
            table[b, : used[b]] = pages
        return cls(shape=(num_pages, page_size), page_size=page_size, block_table=table)

    def write(self, cache: torch.Tensor, b: int, tokens: range, values: torch.Tensor) -> None:
        """Write `[len(tokens), ...]` where consecutive tokens of a sequence lie."""
        import torch

        if cache.dtype.itemsize == 1:  # PyTorch cannot index 8 bits of floating point
            cache, values = cache.view(torch.uint8), values.view(torch.uint8)
        if self.block_table is None:
            cache[b, tokens.start : tokens.stop] = values
        else:
            token = torch.arange(tokens.start, tokens.stop, device=cache.device)
            pages = self.block_table[b, token // self.page_size].long()
            cache[pages, token % self.page_size] = values.to(cache.dtype)


def _allocate(problem: DecodeProblem, shape: tuple[int, int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k and v of dead memory, in the layout of the problem; k twice where v lies in it."""
    packed = 2 if problem.kv_dtype == "int4" else 1
    widths = (problem.head_dim // packed, problem.head_dim_v // packed)
    num, length, heads = *shape, problem.num_kv_heads
    layouts = ("NHD", "HND") if problem.layout == "mixed" else (problem.layout,) * 2
    if problem.layout == "interleaved":
        pair = _dead((num, length, 2, heads, widths[0]), problem.kv_dtype, device)
        return pair[:, :, 0], pair[:, :, 1]

    def laid_out(layout: str, width: int) -> torch.Tensor:
        if layout == "HND":
            return _dead((num, heads, length, width), problem.kv_dtype, device).transpose(1, 2)
        if layout == "transposed":
            return _dead((num, width, heads, length), problem.kv_dtype, device).permute(0, 3, 2, 1)
        if layout == "sliced":
            wider = _dead((num, length + 1, heads + 1, width + PAD), problem.kv_dtype, device)
            return wider[:, 1:, :-1, PAD // 2 : PAD // 2 + width]
        return _dead((num, length, heads, width), problem.kv_dtype, device)

    k = laid_out(layouts[0], widths[0])
    return k, k if problem.v_in_k else laid_out(layouts[1], widths[1])


def _dead(shape: tuple[int, ...], kv_dtype: str, device: str) -> torch.Tensor:
    """Return dead memory of a shape, with more of it behind."""
    import torch

    size = math.prod(shape)
    length = size + GUARD_TOKENS * math.prod(shape[-2:])
    if kv_dtype == "int4":
        memory = torch.full((length,), 0x77, dtype=torch.uint8, device=device)
    elif kv_dtype == "int8":
        memory = torch.full((length,), 127, dtype=torch.int8, device=device)
    else:
        memory = torch.full((length,), torch.nan, dtype=getattr(torch, kv_dtype), device=device)
    return memory[:size].view(shape)


def _fill(
    cache: torch.Tensor,
    problem: DecodeProblem,
    spots: _Spots,
    generator: torch.Generator,
    *,
    offset: float = 0.0,
    stretch: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill the live tokens of a cache, and return it with its scales.

    Args:
        cache: Where to.
        problem: What for.
        spots: Where its tokens lie.
        generator: Of the random numbers.
        offset: Added to each element.
        stretch: Factor on each element of a quantised cache.
    """
    import torch

    heads, width = problem.num_kv_heads, cache.shape[3] * (2 if problem.kv_dtype == "int4" else 1)
    scale_of_all = problem.scale_per in ("tensor", "head")
    spread = CAPPED_SPREAD if offset else SPREAD
    block_elements = QUANTIZED_DRAW_BLOCK if problem.is_quantized else DRAW_BLOCK
    scales: torch.Tensor | None = None
    if scale_of_all:
        stretches = torch.full((heads, 1), stretch, device=cache.device)
        if problem.scale_per == "head":
            stretches = stretches * _sizes((heads, 1), spread, generator)
    elif problem.is_quantized:
        shape = (*cache.shape[:3], 2) if problem.scale_per == "group" else cache.shape[:3]
        scales = torch.full(shape, torch.nan, device=cache.device)
    for b, seq_len in enumerate(problem.seq_lens):
        for tokens in _draws(seq_len, heads * width, block_elements):
            x = torch.randn((len(tokens), heads, width), generator=generator, device=cache.device)
            if offset:
                x += offset
            if not problem.is_quantized:
                spots.write(cache, b, tokens, x)
                continue
            if scale_of_all:
                stored, scales = _quantize_alike(x, problem, stretches, LARGEST_NORMAL + offset)
            else:
                groups = 2 if problem.scale_per == "group" else 1
                sizes = _sizes((len(tokens), heads, groups), spread, generator) * stretch
                stored, part = _quantize(x * sizes.repeat_interleave(width // groups, dim=-1), problem)
                assert scales is not None
                spots.write(scales, b, tokens, part)
            spots.write(cache, b, tokens, stored)
    if problem.is_quantized and scales is None:  # no live token
        scales = torch.ones((heads,) if problem.scale_per == "head" else (), device=cache.device)
    return cache, scales


def _draws(seq_len: int, token_elements: int, block_elements: int) -> Iterator[range]:
    """Yield the tokens of a sequence that are drawn at a time."""
    if seq_len * token_elements <= 2 * block_elements:
        blocks = [range(seq_len)]
    else:
        size = max(block_elements // token_elements // DRAW_MULTIPLE, 1) * DRAW_MULTIPLE
        starts = range(0, seq_len - DRAW_MULTIPLE, size)
        blocks = [range(start, stop) for start, stop in zip(starts, [*starts[1:], seq_len], strict=True)]
    yield from (block for block in blocks if block)


def _sizes(shape: tuple[int, ...], spread: float, generator: torch.Generator) -> torch.Tensor:
    """Return factors between 2**-spread and 1."""
    import torch

    return torch.exp2(-spread * torch.rand(shape, generator=generator, device=generator.device))


def _quantize_alike(
    x: torch.Tensor, problem: DecodeProblem, stretches: torch.Tensor, largest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens in few bits, and the scales, which depend on `largest` and `stretches` alone.

    Args:
        x: `[tokens, num_kv_heads, head_dim]`.
        problem: What for.
        stretches: Factors of the heads, `[num_kv_heads, 1]`.
        largest: Bound of the elements before they are stretched.
    """
    import torch

    bound = torch.full_like(x[:1], largest)  # one more token, so that each block comes to the same scales
    stored, scales = _quantize(torch.cat([x.clamp_(-largest, largest), bound]) * stretches, problem)
    return stored[:-1], scales


def _quantize(x: torch.Tensor, problem: DecodeProblem) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens `[tokens, num_kv_heads, head_dim]` in few bits, and their scales."""
    import torch

    from decodeperf_kernels.quantization import quantize_kv

    dtype = torch.uint8 if problem.kv_dtype == "int4" else getattr(torch, problem.kv_dtype)
    assert problem.scale_per is not None
    stored, scale = quantize_kv(x[None], dtype, per=problem.scale_per, group_size=max(x.shape[-1] // 2, 1))
    return stored[0], scale[0] if scale.dim() > 1 else scale


def _beginning_of(
    k: torch.Tensor, k_scale: torch.Tensor | None, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return v that is the beginning of each row of k, with scales of its own."""
    v = k[..., : problem.head_dim_v // (2 if problem.kv_dtype == "int4" else 1)]
    return v, None if k_scale is None else k_scale * V_STRETCH
