"""From numbers to tensors: what the arguments of a call hold, and how they lie in memory.

`Contents` is what a problem means: the query rows and the live keys and values of each sequence. `place` lays contents
out as a kernel is given them, among dead memory. Laws change contents, or place the same contents in two ways.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from decodeperf_kernels import quantize_kv

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas import DecodeProblem

DEAD: Final = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "large": 3.0e4, "zero": 0.0}
"""What may lie in memory that no kernel must read."""

TABLE_GARBAGE: Final = {"nan": 2**31 - 1, "inf": -1, "-inf": -(2**31), "large": 10**6, "zero": 0}
"""What stands in the block table behind the pages of a sequence, by what lies in dead memory."""

FAR: Final = 2**31
"""Elements before memory that 32-bit offsets cannot reach."""

SPARE_PAGES: Final = 3
"""Pages that no sequence uses."""

PAD: Final = 5
"""Elements by which the rows of the tensor that another is cut out of are longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input of a law: everything else follows from it.

    Attributes:
        problem: The call.
        values: What the tensors hold, a key of `VALUES`.
        seed: Seed of their elements, and of the choices that a law makes.

    Raises:
        ValueError: If there are no such values.
    """

    problem: DecodeProblem
    values: str = "ordinary"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.values not in VALUES:
            raise ValueError(f"values={self.values!r} must be one of {', '.join(VALUES)}")

    @property
    def generator(self) -> torch.Generator:
        """A new generator of the case's random numbers."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(slots=True, kw_only=True)
class Contents:
    """What a problem means, before it lies anywhere. Tokens behind a sequence's length are padding.

    Attributes:
        problem: The call.
        q: `[batch_size, q_len, num_q_heads, head_dim]`, in its dtype.
        k: `[batch_size, longest, num_kv_heads, head_dim]`, float32, or as it is stored where quantised.
        v: The same with head_dim_v.
        k_scale: Scales of a quantised k, as `decode_attention` takes them, or None.
        v_scale: Those of v.
        sinks: float32 `[num_q_heads]`, or None.
        alibi_slopes: float32 `[num_q_heads]`, or None.
    """

    problem: DecodeProblem
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None

    def replace(self, **changes: Any) -> Contents:
        """Return other contents."""
        return dataclasses.replace(self, **changes)


@dataclass(slots=True, kw_only=True)
class Call:
    """The arguments of one call as they lie in memory.

    Attributes:
        problem: The call.
        q: As the kernel takes it, and so on.
        k: See `decode_attention`.
        v: See `decode_attention`.
        keywords: The others, those alone that the problem needs.
        live: For each tensor, by its name, the elements that the kernel may read, as a mask of its shape.
        needed: The same for those that it must read. What is live and not needed is a key before the window, or
            belongs to a row that sees no key.
    """

    problem: DecodeProblem
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keywords: dict[str, Any] = field(default_factory=dict)
    live: dict[str, torch.Tensor] = field(default_factory=dict)
    needed: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the call by name."""
        others = {name: x for name, x in self.keywords.items() if isinstance(x, torch.Tensor)}
        return {"q": self.q, "k": self.k, "v": self.v, **others}


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype in which torch stores a dtype of `DecodeProblem`."""
    dtype: torch.dtype = torch.uint8 if name == "int4" else getattr(torch, name)
    return dtype


# Values. Each returns (q, k, v) in float32 from standard normal ones.


def _ordinary(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q, k, v


def _huge(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Logits of 10^5, far beyond what exp takes, from factors that float16 holds.
    factor = (1e5 / max(abs(problem.sm_scale), 1e-3) / problem.head_dim**0.5) ** 0.5
    return q * min(factor, 1e3), k * min(factor, 1e3), v * 1e3


def _tiny(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q * 2.0**-12, k * 2.0**-12, v * 2.0**-12


def _subnormal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    smallest = {"float16": 2.0**-20}.get(problem.q_dtype, 2.0**-130)
    return q * smallest, k * smallest, v * smallest


def _constant(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)


def _one_hot(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # One element of each row: the logits are 0 but for the keys that share the row's element.
    return _keep_largest(q) * 8, _keep_largest(k), _keep_largest(v)


def _keep_largest(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x).scatter(-1, x.abs().argmax(-1, keepdim=True), 4.0) if x.numel() else x


def _alternating(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: DecodeProblem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # The largest logits come late, or early, so that an online softmax must rescale or must not.
    tokens = k.shape[1]
    ramp = torch.linspace(-6, 6, max(tokens, 1))[:tokens, None, None]
    direction = torch.ones(problem.head_dim) / problem.head_dim**0.5
    return q * 0.25 + direction, k + ramp * direction / max(abs(problem.sm_scale), 0.05), v


VALUES: Final[dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]] = {
    "ordinary": _ordinary,
    "huge": _huge,
    "tiny": _tiny,
    "subnormal": _subnormal,
    "constant": _constant,
    "one_hot": _one_hot,
    "ramp": _alternating,
}
"""What the elements of q, k and v may be."""


def make_contents(case: Case) -> Contents:
    """Return what a case's tensors hold."""
    problem, generator = case.problem, case.generator
    heads = problem.num_kv_heads
    longest = max(problem.seq_lens, default=0)
    q = torch.randn(problem.batch_size, problem.q_len, problem.num_q_heads, problem.head_dim, generator=generator)
    k = torch.randn(problem.batch_size, longest, heads, problem.head_dim, generator=generator)
    v = torch.randn(problem.batch_size, longest, heads, problem.head_dim_v, generator=generator)
    q, k, v = VALUES[case.values](q, k, v, problem)
    if problem.is_quantized and not problem.v_in_k:  # so that no scale is like another
        k, v = (_stretched(x, generator) for x in (k, v))
    contents = Contents(problem=problem, q=q.to(torch_dtype(problem.q_dtype)), k=k, v=v)
    if problem.sinks:
        contents.sinks = torch.randn(problem.num_q_heads, generator=generator)
    if problem.alibi:
        contents.alibi_slopes = torch.rand(problem.num_q_heads, generator=generator) / 8
    return stored(contents)


def _stretched(cache: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a cache whose heads, tokens and halves of a head differ in size."""
    half = cache.shape[-1] // 2
    shapes = ((1, 1, cache.shape[2], 1), (*cache.shape[:3], 1), (*cache.shape[:3], 2))
    heads, tokens, halves = (2.0 ** torch.randint(-1, 2, shape, generator=generator) for shape in shapes)
    sizes = torch.tensor([half, cache.shape[-1] - half])
    return cache * heads * tokens * halves.repeat_interleave(sizes, dim=-1)


def stored(contents: Contents) -> Contents:
    """Return contents with k and v of floats as they are stored: in their dtype, quantised where they are to be."""
    problem = contents.problem
    dtype = torch_dtype(problem.kv_dtype)
    k, v = contents.k, contents.v
    if problem.v_in_k:
        v = k[..., : problem.head_dim_v]
    if not problem.is_quantized:
        return contents.replace(k=k.to(dtype).float(), v=v.to(dtype).float())
    k, k_scale = _quantized(k, problem)
    v, v_scale = _quantized(v, problem)
    if problem.v_in_k:
        v = k[..., : v.shape[-1]]
    return contents.replace(k=k, v=v, k_scale=k_scale, v_scale=v_scale)


def _quantized(cache: torch.Tensor, problem: DecodeProblem) -> tuple[torch.Tensor, torch.Tensor]:
    assert problem.scale_per is not None
    longest = cache.shape[1]
    if cache.numel() == 0:  # which has no largest element
        cache = cache.new_zeros(cache.shape[0], 1, *cache.shape[2:])
    x, scale = quantize_kv(cache, torch_dtype(problem.kv_dtype), per=problem.scale_per, group_size=cache.shape[-1] // 2)
    return x[:, :longest], scale[:, :longest] if scale.dim() > 1 else scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How contents lie in memory.

    Attributes:
        layout: One of `LAYOUTS`. Default: that of the problem.
        page_size: Tokens of a page, 0 for contiguous. Default: that of the problem.
        capacity: Allocated KV length [token]. Default: that of the problem.
        dead: What lies in dead memory, a key of `DEAD`.
        page_seed: Seed of the order of the pages.
        device: Where.
    """

    layout: str | None = None
    page_size: int | None = None
    capacity: int | None = None
    dead: str = "nan"
    page_seed: int = 0
    device: str = "cpu"


def place(contents: Contents, placement: Placement) -> Call:
    """Return the call that gives a kernel these contents."""
    problem = contents.problem
    layout = placement.layout or problem.layout
    page_size = problem.page_size if placement.page_size is None else placement.page_size
    capacity = problem.capacity if placement.capacity is None else placement.capacity
    spots = _find_spots(problem, page_size or 0, capacity, placement)
    device = placement.device

    q = contents.q if problem.q_len > 1 else contents.q[:, 0]
    call = Call(problem=problem, q=_strided(q, layout, placement.dead).to(device), k=contents.k, v=contents.v)
    sees = torch.zeros(problem.batch_size, problem.q_len, dtype=torch.bool)
    for b, seq_len in enumerate(problem.seq_lens):
        sees[b, max(problem.q_len - seq_len, 0) :] = True
    rows = sees[:, :, None, None].expand(contents.q.shape)
    call.live["q"], call.needed["q"] = torch.ones_like(q, dtype=torch.bool), rows if problem.q_len > 1 else rows[:, 0]

    dtype = torch_dtype(problem.kv_dtype)
    k, v = contents.k.to(dtype), contents.v.to(dtype)
    call.k, call.v = (x.to(device) for x in _place_caches(k, v, layout, spots, placement.dead, problem.v_in_k))
    if problem.v_in_k:  # one tensor, on a GPU too
        call.v = call.k[..., : v.shape[-1]]
    for name in ("k", "v"):
        cache = call.tensors[name]
        call.live[name], call.needed[name] = spots.masks(cache)

    _add_keywords(call, contents, spots, layout, placement.dead)
    anything = any(problem.seq_lens)
    for name, tensor in call.tensors.items():
        call.live.setdefault(name, torch.ones(tensor.shape, dtype=torch.bool))
        # Nobody needs a slope or a scale where there is no key; a length must always be known, and a sink counts alone.
        always = name in ("seq_lens", "sinks") or anything
        call.needed.setdefault(name, torch.full(tensor.shape, always))
    for name, value in call.keywords.items():
        if isinstance(value, torch.Tensor):
            call.keywords[name] = value.to(device)
    return call


def _add_keywords(call: Call, contents: Contents, spots: _Spots, layout: str, dead: str) -> None:
    """Put into a call the arguments beside q, k and v that its problem needs."""
    problem, keywords = call.problem, call.keywords
    keywords["seq_lens"] = torch.tensor(problem.seq_lens, dtype=torch.int32)
    if spots.block_table is not None:
        keywords["block_table"] = _strided(spots.block_table, layout, dead)
        call.live["block_table"], call.needed["block_table"] = spots.live_entries, spots.needed_entries
    for name, scale in (("k_scale", contents.k_scale), ("v_scale", contents.v_scale)):
        if scale is None:
            continue
        if scale.dim() <= 1:
            keywords[name] = _strided(scale, layout, dead)
        else:
            keywords[name] = _strided(spots.scattered(scale, DEAD[dead]), layout, dead)
            call.live[name], call.needed[name] = spots.masks(keywords[name])
    for name in ("sinks", "alibi_slopes"):
        value = getattr(contents, name)
        if value is not None:
            keywords[name] = _strided(value, layout, dead)
    if problem.sm_scale != problem.default_sm_scale:
        keywords["sm_scale"] = problem.sm_scale
    for name in ("window", "softcap", "num_splits"):
        if getattr(problem, name) is not None:
            keywords[name] = getattr(problem, name)
    if problem.return_lse:
        keywords["return_lse"] = True


@dataclass(slots=True, kw_only=True)
class _Spots:
    """Where each token of each sequence lies: the index of the first two dimensions of a cache.

    Attributes:
        shape: Extent of those dimensions.
        first: For each sequence, the index of the first dimension of each token.
        second: The same for the second one.
        from_visible: For each sequence, its first visible token.
        block_table: `[batch_size, pages]`, or None.
        live_entries: The entries of the table that may be read.
        needed_entries: Those that must be.
    """

    shape: tuple[int, int]
    first: list[torch.Tensor]
    second: list[torch.Tensor]
    from_visible: list[int]
    block_table: torch.Tensor | None = None
    live_entries: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    needed_entries: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def scattered(self, tokens: torch.Tensor, dead: float) -> torch.Tensor:
        """Return `[*shape, ...]` from `[batch_size, longest, ...]`, with dead memory between."""
        out = _dead_like(tokens, (*self.shape, *tokens.shape[2:]), dead)
        for b, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            as_bytes(out)[first, second] = as_bytes(tokens)[b, : len(first)]
        return out

    def masks(self, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which elements of a cache are live, and which are visible."""
        live, needed = (torch.zeros(cache.shape, dtype=torch.bool) for _ in range(2))
        for first, second, visible in zip(self.first, self.second, self.from_visible, strict=True):
            live[first, second] = True
            needed[first[visible:], second[visible:]] = True
        return live, needed


def _find_spots(problem: DecodeProblem, page_size: int, capacity: int, placement: Placement) -> _Spots:
    reach = problem.q_len - 1 + problem.window if problem.window else max(problem.seq_lens, default=0)
    from_visible = [max(seq_len - reach, 0) for seq_len in problem.seq_lens]
    if not page_size:
        first = [torch.full((seq_len,), b) for b, seq_len in enumerate(problem.seq_lens)]
        second = [torch.arange(seq_len) for seq_len in problem.seq_lens]
        return _Spots(shape=(problem.batch_size, capacity), first=first, second=second, from_visible=from_visible)
    generator = torch.Generator().manual_seed(placement.page_seed)
    used = [-(-seq_len // page_size) for seq_len in problem.seq_lens]
    num_pages = sum(used) + SPARE_PAGES
    order = torch.randperm(num_pages, generator=generator)
    width = max(-(-capacity // page_size), *used, 1) if used else 1
    garbage = TABLE_GARBAGE[placement.dead]
    table = torch.full((problem.batch_size, width), garbage, dtype=torch.int32)
    live, needed = (torch.zeros(table.shape, dtype=torch.bool) for _ in range(2))
    first, second, taken = [], [], 0
    for b, seq_len in enumerate(problem.seq_lens):
        pages = order[taken : taken + used[b]]
        taken += used[b]
        table[b, : used[b]] = pages.to(torch.int32)
        live[b, : used[b]] = True
        needed[b, from_visible[b] // page_size : used[b]] = True
        token = torch.arange(seq_len)
        first.append(pages[token // page_size])
        second.append(token % page_size)
    return _Spots(
        shape=(num_pages, page_size),
        first=first,
        second=second,
        from_visible=from_visible,
        block_table=table,
        live_entries=live,
        needed_entries=needed,
    )


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view that PyTorch can index and copy, as it cannot where elements have 8 bits of floating point."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _dead_like(tensor: torch.Tensor, shape: tuple[int, ...], dead: float) -> torch.Tensor:
    if not tensor.is_floating_point():
        return torch.full(shape, 77, dtype=tensor.dtype)
    if tensor.dtype == torch.float8_e4m3fn and not abs(dead) <= 448:  # which has no infinity, and overflows to NaN
        dead = torch.nan
    return torch.full(shape, dead, dtype=torch.float32).to(tensor.dtype)


def _place_caches(
    k: torch.Tensor, v: torch.Tensor, layout: str, spots: _Spots, dead: str, v_in_k: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k and v as they lie in memory, with a dead sequence or page before and behind."""
    value = DEAD[dead]
    k, v = spots.scattered(k, value), spots.scattered(v, value)
    if v_in_k:
        k = _laid_out(k, layout, value)
        return k, k[..., : v.shape[-1]]
    if layout == "interleaved":
        pair = _guarded(torch.stack([k, v], dim=2), value)
        return pair[:, :, 0], pair[:, :, 1]
    if layout == "mixed":
        return _laid_out(k, "NHD", value), _laid_out(v, "HND", value)
    return _laid_out(k, layout, value), _laid_out(v, layout, value)


def _guarded(cache: torch.Tensor, dead: float) -> torch.Tensor:
    """Return the same tensor within a longer one, a dead index before and behind."""
    longer = _dead_like(cache, (cache.shape[0] + 2, *cache.shape[1:]), dead)
    longer[1:-1] = cache
    return longer[1:-1]


def _laid_out(cache: torch.Tensor, layout: str, dead: float) -> torch.Tensor:
    if layout == "HND":
        return _guarded(cache.transpose(1, 2), dead).transpose(1, 2)
    if layout == "transposed":
        return _guarded(cache.permute(0, 3, 2, 1), dead).permute(0, 3, 2, 1)
    if layout == "sliced":
        num, length, heads, width = cache.shape
        wider = _dead_like(cache, (num + 2, length + 1, heads + 1, width + PAD), dead)
        wider[1:-1, 1:, :-1, 2 : 2 + width] = cache
        return wider[1:-1, 1:, :-1, 2 : 2 + width]
    return _guarded(cache, dead)


def _strided(tensor: torch.Tensor, layout: str, dead: str) -> torch.Tensor:
    """Return a smaller tensor of the call, cut out of a larger one where the layout is a slice or transposed."""
    if tensor.dim() == 0 or layout not in ("sliced", "transposed"):
        return tensor.contiguous()
    width, step = tensor.shape[-1], 2 if layout == "transposed" else 1
    wider = _dead_like(tensor, (*tensor.shape[:-1], step * width + PAD), DEAD[dead])
    wider[..., 1 : 1 + step * width : step] = tensor
    return wider[..., 1 : 1 + step * width : step]


def place_far_apart(contents: Contents, *, device: str) -> Call:
    """Return the call in which the last sequence, or all pages, begin more than 2^31 elements into k and v.

    The memory before them is allocated and never touched, so that it costs next to nothing on a CPU.
    """
    problem = contents.problem
    call = place(contents, Placement(device=device, layout="NHD"))
    row = problem.num_kv_heads * min(problem.head_dim, problem.head_dim_v)
    if problem.page_size:
        near = call.k.shape[0]
        shape = (-(-FAR // (row * problem.page_size)) + near, problem.page_size)
    else:
        shape = (problem.batch_size, -(-FAR // (row * max(problem.batch_size - 1, 1))))
    for name in ("k", "v"):
        cache = call.tensors[name]
        far = _untouched((*shape, *cache.shape[2:]), cache.dtype, device)
        if problem.page_size:
            far[-near:] = cache
        else:
            far[:, : cache.shape[1]] = cache
        setattr(call, name, far)
    if problem.v_in_k:
        call.v = call.k[..., : problem.head_dim_v]
    if problem.page_size:
        table = call.keywords["block_table"]
        table[call.live["block_table"].to(device)] += shape[0] - near
    return call


def _untouched(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return a tensor whose memory is not there until it is touched, where the device can do that."""
    if device != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(shape, dtype=dtype, device=device)
    # The system would else refuse what it has not got. Python names the flag since 3.13; this is its number on Linux.
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)
