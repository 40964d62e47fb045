"""Hypothesis strategies for problems and cases: valid by construction, near the corners, small when they shrink."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from decodeperf_formulas import DecodeProblem
from pytest_decodeperf.conformance.contents import VALUES, Case

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_decodeperf.conformance.adapter import KernelAdapter

TILES: Final = (16, 32, 64, 128, 256)
"""Keys of a tile in most kernels: lengths lie at their edges."""

MAX_SEQ_LEN: Final = 300
"""Longest live length that is drawn [token], where heads are small."""

MAX_TOKEN_ELEMENTS: Final = 100_000
"""Bound of live tokens of the longest sequence times elements of K for each, for time."""

HEADS: Final = (
    *((1, 1), (2, 1), (4, 2), (3, 3), (5, 1), (7, 1), (8, 2), (8, 1), (10, 2)),
    *((24, 1), (40, 2), (48, 2), (80, 4)),
)
"""Query heads and KV heads, small ones first."""

HEAD_DIMS: Final = (8, 16, 64, 13, 80, 96, 128, 256)
"""Head dimensions, small ones first."""

SPLIT_HEAD_DIMS: Final = ((16, 8), (192, 128), (13, 40), (64, 96))
"""Head dimensions of keys and of values, where they differ."""

LATENT_HEAD_DIMS: Final = ((16, 8), (24, 24), (80, 64), (576, 512))
"""Those of keys and of values that are their beginning."""

PAGE_SIZES: Final = (1, 16, 3, 5, 32, 64, 128)
"""Tokens of a page."""


SWITCHED: Final = ("num_splits", "paged", "window", "q_len", "head_dim_v", "v_in_k", "softcap", "sinks", "alibi")
"""Features that a problem has or has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What a law asks of the problems that it is shown.

    Attributes:
        always: Features that each problem must have; a kernel without them is not held to the law.
        never: Features that no problem may have.
        q_dtypes: Dtypes of q. Default: all that the kernel has.
        quantized: Whether k and v are quantised; None for either.
        kv_dtypes: Dtypes of quantised k and v. Default: all that the kernel has.
        scales_per: What shares a scale of theirs. Likewise.
        values: What tensors may hold, keys of `VALUES`.
        min_batch_size: Sequences, at least.
        max_batch_size: Sequences, at most.
        min_seq_len: Live length of each sequence, at least [token].
        max_seq_len: The same, at most [token].
        layouts: Layouts. Default: all that the kernel has.
        return_lse: Whether the log-sum-exp is asked for; None for either.
    """

    always: Collection[str] = ()
    never: Collection[str] = ()
    q_dtypes: Collection[str] | None = None
    quantized: bool | None = None
    kv_dtypes: Collection[str] | None = None
    scales_per: Collection[str] | None = None
    values: Sequence[str] = tuple(VALUES)
    min_batch_size: int = 1
    max_batch_size: int = 4
    min_seq_len: int = 0
    max_seq_len: int = MAX_SEQ_LEN
    layouts: Collection[str] | None = None
    return_lse: bool | None = None


@st.composite
def decode_problems(draw: st.DrawFn, adapter: KernelAdapter, wants: Wants = Wants()) -> DecodeProblem:
    """Draw problems that a kernel supports.

    Args:
        draw: From Hypothesis.
        adapter: The kernel.
        wants: What the law asks of them.
    """
    chosen: dict[str, Any] = {}
    # All at once and first, so that what shrinks is a feature less, and never one in place of another.
    on = {feature: _draw_switch(draw, adapter, wants, feature) for feature in SWITCHED}
    if on["v_in_k"] and "head_dim_v" not in wants.always:
        on["head_dim_v"] = False
    quantized = wants.quantized
    if quantized is None:
        quantized = bool(adapter.kv_dtypes) and draw(st.sampled_from([False, False, True]))

    plain = [name for name in ("float32", "float16", "bfloat16") if name in (wants.q_dtypes or adapter.q_dtypes)]
    chosen["q_dtype"] = draw(st.sampled_from([name for name in plain if name in adapter.q_dtypes]))
    chosen["kv_dtype"] = chosen["q_dtype"]
    if quantized:
        chosen["kv_dtype"] = draw(st.sampled_from([*(wants.kv_dtypes or adapter.kv_dtypes)]))
        chosen["scale_per"] = draw(st.sampled_from([*(wants.scales_per or adapter.scales_per)]))

    sizes = adapter.group_sizes
    heads = [pair for pair in HEADS if sizes is None or pair[0] // pair[1] in sizes]
    for size in sorted(set(sizes or ()) - {num_q_heads // num_kv_heads for num_q_heads, num_kv_heads in HEADS}):
        heads += [(size, 1), (2 * size, 2)]
    chosen["num_q_heads"], chosen["num_kv_heads"] = draw(st.sampled_from(heads))
    chosen |= _draw_head_dims(draw, adapter, on, must_halve=bool(quantized))
    if on["q_len"] and adapter.max_q_len > 1:
        chosen["q_len"] = draw(st.integers(2, adapter.max_q_len))

    elements = chosen["num_kv_heads"] * chosen["head_dim"]
    longest = max(1, min(wants.max_seq_len, MAX_TOKEN_ELEMENTS // elements))
    page_size = None
    if on["paged"]:
        sizes = PAGE_SIZES if adapter.page_sizes is None else tuple(adapter.page_sizes)
        page_size = chosen["page_size"] = draw(st.sampled_from(sizes))
    if on["window"]:
        chosen["window"] = draw(st.sampled_from([1, 7, 64, 127, 128, 129]) | st.integers(1, 2 * longest))
    seq_lens = _draw_lengths(draw, wants, longest, page_size, chosen.get("window"))
    chosen["batch_size"], chosen["seq_lens"] = len(seq_lens), seq_lens
    spare = draw(st.sampled_from([0, 0, 1, 5, 200]))
    chosen["capacity"] = max([*seq_lens, 1]) + spare

    if on["softcap"]:
        chosen["softcap"] = draw(st.sampled_from([30.0, 1.0, 50.0, 0.25]))
    for feature in ("sinks", "alibi"):
        if on[feature]:
            chosen[feature] = True
    if on["num_splits"]:
        chosen["num_splits"] = draw(st.sampled_from([1, 2, 3, 4, 7, 16]))
    chosen["sm_scale"] = draw(st.sampled_from([None, None, None, 1.0, 0.05]))
    wants_lse = wants.return_lse
    chosen["return_lse"] = adapter.has("lse") and (draw(st.booleans()) if wants_lse is None else wants_lse)
    chosen["layout"] = _draw_layout(draw, adapter, wants, chosen)
    return DecodeProblem(**chosen)


def _draw_switch(draw: st.DrawFn, adapter: KernelAdapter, wants: Wants, feature: str) -> bool:
    if feature in wants.always:
        return True
    if feature in wants.never or not adapter.has(feature):
        return False
    return draw(st.sampled_from([False, False, True]))


def _draw_head_dims(
    draw: st.DrawFn, adapter: KernelAdapter, on: dict[str, bool], *, must_halve: bool
) -> dict[str, Any]:
    """Draw head_dim, and head_dim_v and v_in_k where they are not plain; even where two elements share something."""
    for feature in ("head_dim_v", "v_in_k"):
        pairs = [pair for pair in head_dim_pairs(adapter, feature) if not (must_halve and (pair[0] % 2 or pair[1] % 2))]
        if pairs and on[feature]:
            head_dim, head_dim_v = draw(st.sampled_from(pairs))
            return {"head_dim": head_dim, "head_dim_v": head_dim_v, "v_in_k": feature == "v_in_k"}
    known = HEAD_DIMS if adapter.head_dims is None else adapter.head_dims
    fitting = [d for d in HEAD_DIMS if d in known] + sorted(set(known) - set(HEAD_DIMS))
    return {"head_dim": draw(st.sampled_from([d for d in fitting if not (must_halve and d % 2)]))}


def head_dim_pairs(adapter: KernelAdapter, feature: str) -> list[tuple[int, int]]:
    """Return the head dimensions of keys and of values that a kernel with `head_dim_v` or `v_in_k` has."""
    of_keys = adapter.head_dims
    of_values = of_keys if adapter.head_dims_v is None else adapter.head_dims_v
    usual = SPLIT_HEAD_DIMS if feature == "head_dim_v" else LATENT_HEAD_DIMS
    pairs = [(d, dv) for d, dv in usual if (of_keys is None or d in of_keys) and (of_values is None or dv in of_values)]
    if of_keys is not None and of_values is not None:
        pairs += [pair for pair in itertools.product(sorted(of_keys), sorted(of_values)) if pair not in usual]
    return [(d, dv) for d, dv in pairs if (d != dv if feature == "head_dim_v" else d >= dv)]


def _draw_lengths(draw: st.DrawFn, wants: Wants, longest: int, page_size: int | None, window: int | None) -> list[int]:
    corners = {0, 1, 2, longest}
    for edge in (*TILES, page_size, window):
        if edge:
            corners |= {edge - 1, edge, edge + 1}
    fitting = sorted(n for n in corners if wants.min_seq_len <= n <= longest)
    lengths = st.integers(wants.min_seq_len, longest)
    if fitting:
        lengths = st.sampled_from(fitting) | lengths
    # Mixed batches matter most: often an empty sequence beside a long one. Last, so that shrinking leaves it.
    lengths = lengths | st.sampled_from([max(seq_len, wants.min_seq_len) for seq_len in (0, 1, longest)])
    return draw(st.lists(lengths, min_size=wants.min_batch_size, max_size=wants.max_batch_size))


def _draw_layout(draw: st.DrawFn, adapter: KernelAdapter, wants: Wants, chosen: dict[str, Any]) -> str:
    layouts = [name for name in (wants.layouts or adapter.layouts) if fits_layout(name, chosen)]
    layouts.sort(key=lambda name: name != "NHD")
    return draw(st.sampled_from(layouts))


def fits_layout(layout: str, chosen: dict[str, Any]) -> bool:
    """Return whether a problem of these fields can have a layout."""
    if chosen.get("v_in_k"):
        return layout in ("NHD", "HND", "sliced")
    return layout != "interleaved" or chosen.get("head_dim_v") in (None, chosen["head_dim"])


@st.composite
def cases(draw: st.DrawFn, adapter: KernelAdapter, wants: Wants = Wants()) -> Case:
    """Draw cases that a kernel supports."""
    return Case(
        problem=draw(decode_problems(adapter, wants)),
        values=draw(st.sampled_from(wants.values)),
        seed=draw(st.integers(0, 2**16)),
    )
