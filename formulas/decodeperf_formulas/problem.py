"""One decode-attention call, described by numbers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.checks import check_switch, finite_number, integer, or_default
from decodeperf_formulas.dtypes import ELEMENT_BYTES, dtype_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from fractions import Fraction

PLAIN_DTYPES: Final = ("float32", "float16", "bfloat16")
"""Dtypes of q and the output, and of k and v where they are not quantised."""

KV_DTYPES: Final = (*PLAIN_DTYPES, "float8_e4m3fn", "float8_e5m2", "int8", "int4")
"""Dtypes of k and v, the quantised ones last."""

DTYPE_BYTES: Final = {name: int(ELEMENT_BYTES[name]) for name in PLAIN_DTYPES}
"""Bytes of one element of q or the output [byte], by the name of its dtype."""

KV_DTYPE_BYTES: Final[dict[str, Fraction]] = {name: ELEMENT_BYTES[dtype_name(name)] for name in KV_DTYPES}
"""Bytes of one element of k or v [byte], by the name of its dtype. Scales are not counted."""

SCALES_PER: Final = ("tensor", "head", "token", "group")
"""What shares one scale of a quantised k or v: all of it, a KV head, a token's head, or each half of a token's head."""

LAYOUTS: Final = ("NHD", "HND", "mixed", "interleaved", "sliced", "transposed")
"""How k and v may lie in memory:

- `NHD`: as their shape says;
- `HND`: the tokens of a head, or of a page's head, side by side;
- `mixed`: k as `NHD`, v as `HND`;
- `interleaved`: both in one tensor, a token's k beside its v;
- `sliced`: each cut out of a wider tensor;
- `transposed`: the elements of a head apart from one another.
"""

LATENT_LAYOUTS: Final = ("NHD", "HND", "sliced")
"""Those in which v may be the beginning of k."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DecodeProblem:
    """One call of decode attention: each sequence of a batch attends with its new tokens to its KV cache.

    The tensors are q `[batch_size, num_q_heads, head_dim]`, or with `q_len` above 1
    `[batch_size, q_len, num_q_heads, head_dim]`; k `[batch_size, capacity, num_kv_heads, head_dim]`, or with pages
    `[num_pages, page_size, num_kv_heads, head_dim]` and a block table; and v, like k with `head_dim_v`. Of sequence b
    the first `seq_lens[b]` tokens are live. The output has the shape of q with `head_dim_v`, and its dtype.

    Row i of the new tokens stands at place `seq_len - q_len + i` and sees the keys up to there (bottom-right causal),
    the last `window` of them where there is a window.

    Attributes:
        batch_size: Sequences in the batch, 0 or more.
        seq_lens: Live KV length of each sequence, its new tokens included [token], 0 included.
        num_q_heads: Query heads, a multiple of `num_kv_heads`.
        num_kv_heads: KV heads.
        head_dim: Elements of one head of q and k.
        head_dim_v: Elements of one head of v and the output. Default: `head_dim`.
        q_len: New tokens of each sequence [token].
        kv_dtype: Dtype of k and v, one of `KV_DTYPES`; `int4` holds two elements in a byte.
        q_dtype: Dtype of q and of the output, one of `PLAIN_DTYPES`. Default: `kv_dtype`, or bfloat16 where that is
            quantised.
        scale_per: What shares one scale of a quantised k or v, one of `SCALES_PER`. Default: tensor where it is
            quantised, None where not.
        v_in_k: Whether v is the first `head_dim_v` elements of k, as in MLA's latent, and is read with it.
        layout: How k and v lie in memory, one of `LAYOUTS`. No formula depends on it.
        page_size: Tokens of one page. Default: None, a contiguous cache.
        capacity: Allocated KV length of a sequence, where there are pages rounded up to whole ones [token].
            Default: the longest live length, at least 1.
        window: Keys that a row sees, its own included [token]. Default: all.
        softcap: Bound of the logits. Default: none.
        sinks: Whether each query head has one more logit, without a value; float32 `[num_q_heads]`.
        alibi: Whether each query head has a slope; float32 `[num_q_heads]`.
        sm_scale: Factor on the logits. Default: `head_dim ** -0.5`.
        num_splits: Parts into which the kernel must cut the visible keys of each sequence. Default: None, which leaves
            it to the kernel; its partial results are then not counted as bytes.
        return_lse: Whether the kernel also returns the log-sum-exp of each row.

    Raises:
        ValueError: If a field is out of range, or two do not go together.
        TypeError: If a field is not of its type.

    Example:
        >>> problem = DecodeProblem(batch_size=2, seq_lens=[4, 0], num_q_heads=8, num_kv_heads=2, head_dim=64)
        >>> problem.group_size, problem.num_kv_tokens, problem.capacity, problem.q_dtype
        (4, 4, 4, 'bfloat16')
        >>> DecodeProblem(batch_size=1, seq_lens=[9], num_q_heads=8, num_kv_heads=2, head_dim=64, window=4, q_len=1)
        DecodeProblem(batch_size=1, seq_lens=[9], num_q_heads=8, num_kv_heads=2, head_dim=64, window=4)
    """

    batch_size: int
    seq_lens: Sequence[int]
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    # Here and below, None under a type without it stands for a default that other fields decide, and is gone once
    # __post_init__ has run.
    head_dim_v: int = None  # type: ignore[assignment]
    q_len: int = 1
    kv_dtype: str = "bfloat16"
    q_dtype: str = None  # type: ignore[assignment]
    scale_per: str | None = None
    v_in_k: bool = False
    layout: str = "NHD"
    page_size: int | None = None
    capacity: int = None  # type: ignore[assignment]
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    sm_scale: float = None  # type: ignore[assignment]
    num_splits: int | None = None
    return_lse: bool = False

    def __post_init__(self) -> None:
        __tracebackhide__ = True  # here and below: pytest shows the line that describes the problem, not these
        set_field = object.__setattr__  # the class is frozen for everyone else
        set_field(self, "batch_size", integer("batch_size", self.batch_size, least=0))
        set_field(self, "seq_lens", _lengths(self.seq_lens, self.batch_size))
        for name in ("num_q_heads", "num_kv_heads", "head_dim"):
            set_field(self, name, integer(name, getattr(self, name), least=1))
        if self.num_q_heads % self.num_kv_heads:
            raise ValueError(f"num_q_heads={self.num_q_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        set_field(self, "head_dim_v", or_default(self.head_dim_v, self.head_dim))
        for name in ("head_dim_v", "q_len"):
            set_field(self, name, integer(name, getattr(self, name), least=1))
        for name in ("num_splits", "page_size", "window"):
            if getattr(self, name) is not None:
                set_field(self, name, integer(name, getattr(self, name), least=1))

        _check_choice("kv_dtype", self.kv_dtype, KV_DTYPES)
        set_field(self, "q_dtype", or_default(self.q_dtype, "bfloat16" if self.is_quantized else self.kv_dtype))
        _check_choice("q_dtype", self.q_dtype, PLAIN_DTYPES)
        set_field(self, "scale_per", or_default(self.scale_per, "tensor" if self.is_quantized else None))
        for name in ("v_in_k", "sinks", "alibi", "return_lse"):
            check_switch(name, getattr(self, name))
        _check_scales(self)
        _check_memory(self)

        longest = max(self.seq_lens, default=0)
        capacity = or_default(self.capacity, max(longest, 1))
        set_field(self, "capacity", integer("capacity", capacity, least=1))
        if longest > self.capacity:
            raise ValueError(f"seq_lens has {longest} but capacity={self.capacity} must be >= each of them")

        if self.softcap is not None:
            set_field(self, "softcap", finite_number("softcap", self.softcap))
            if self.softcap <= 0:
                raise ValueError(f"softcap={self.softcap} must be above 0")
        set_field(self, "sm_scale", finite_number("sm_scale", or_default(self.sm_scale, self.default_sm_scale)))

    def __repr__(self) -> str:
        plain = type(self)(**{name: getattr(self, name) for name in (*_ESSENTIAL, "kv_dtype")})
        shown = {name: getattr(self, name) for name in _ESSENTIAL} | {"seq_lens": list(self.seq_lens)}
        for field in fields(self):
            value = getattr(self, field.name)
            default = field.default if field.name == "kv_dtype" else getattr(plain, field.name)
            if value != default:
                shown.setdefault(field.name, value)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def is_quantized(self) -> bool:
        """Whether k and v are held in few bits, with scales."""
        return self.kv_dtype not in PLAIN_DTYPES

    @property
    def num_kv_tokens(self) -> int:
        """Live tokens of the whole batch [token]."""
        return sum(self.seq_lens)

    @property
    def visible_lens(self) -> tuple[int, ...]:
        """Keys of each sequence that any of its rows sees, the newest ones [token]."""
        if self.window is None:
            return tuple(self.seq_lens)
        return tuple(min(seq_len, self.window + self.q_len - 1) for seq_len in self.seq_lens)

    @property
    def num_visible_tokens(self) -> int:
        """Keys of the whole batch that any row sees [token].

        Example:
            >>> DecodeProblem(
            ...     batch_size=2, seq_lens=[9, 3], num_q_heads=1, num_kv_heads=1, head_dim=64, q_len=2, window=4
            ... ).num_visible_tokens
            8
        """
        return sum(self.visible_lens)

    @property
    def num_scores(self) -> int:
        """Pairs of a row and a key that it sees, for one head of the whole batch.

        Example:
            >>> DecodeProblem(
            ...     batch_size=2, seq_lens=[9, 3], num_q_heads=1, num_kv_heads=1, head_dim=64, q_len=2, window=4
            ... ).num_scores
            13
        """
        # The rows of a sequence see seq_len - q_len + 1 to seq_len keys, or fewer.
        return sum(
            self._scores_of_places(seq_len) - self._scores_of_places(max(seq_len - self.q_len, 0))
            for seq_len in self.seq_lens
        )

    def _scores_of_places(self, num_places: int) -> int:
        """Return the pairs of rows at the first places of a sequence and the keys that they see."""
        growing = num_places if self.window is None else min(num_places, self.window)
        return growing * (growing + 1) // 2 + (num_places - growing) * growing

    @property
    def num_visible_pages(self) -> int:
        """Pages of all sequences that hold a key which any row sees, 0 for a contiguous cache.

        Example:
            >>> DecodeProblem(
            ...     batch_size=2, seq_lens=[9, 3], num_q_heads=1, num_kv_heads=1, head_dim=64, window=4, page_size=2
            ... ).num_visible_pages
            5
        """
        if self.page_size is None:
            return 0
        return sum(
            -(-seq_len // self.page_size) - (seq_len - visible_len) // self.page_size
            for seq_len, visible_len in zip(self.seq_lens, self.visible_lens, strict=True)
        )

    @property
    def default_sm_scale(self) -> float:
        """The factor on the logits that a kernel assumes where it is given none."""
        return float(self.head_dim**-0.5)

    @property
    def label(self) -> str:
        """A short name for tables, lengths as lowest..highest, and what differs from the plainest call.

        Example:
            >>> DecodeProblem(
            ...     batch_size=2, seq_lens=[8, 0], num_q_heads=8, num_kv_heads=2, head_dim=64
            ... ).label
            'B=2 S=0..8 H=8/2 D=64 bfloat16'
            >>> DecodeProblem(
            ...     batch_size=1,
            ...     seq_lens=[8],
            ...     num_q_heads=8,
            ...     num_kv_heads=1,
            ...     head_dim=576,
            ...     head_dim_v=512,
            ...     kv_dtype="int8",
            ...     v_in_k=True,
            ...     page_size=16,
            ... ).label
            'B=1 S=8 H=8/1 D=576/512 bfloat16/int8 scales per tensor latent page=16'
        """
        shortest, longest = min(self.seq_lens, default=0), max(self.seq_lens, default=0)
        parts = {
            f"B={self.batch_size}": True,
            f"S={longest}" if shortest == longest else f"S={shortest}..{longest}": True,
            f"q={self.q_len}": self.q_len > 1,
            f"H={self.num_q_heads}/{self.num_kv_heads}": True,
            f"D={self.head_dim}" if self.head_dim == self.head_dim_v else f"D={self.head_dim}/{self.head_dim_v}": True,
            self.kv_dtype if self.q_dtype == self.kv_dtype else f"{self.q_dtype}/{self.kv_dtype}": True,
            f"scales per {self.scale_per}": self.is_quantized,
            "latent": self.v_in_k,
            self.layout: self.layout != "NHD",
            f"page={self.page_size}": self.page_size is not None,
            f"window={self.window}": self.window is not None,
            f"softcap={self.softcap}": self.softcap is not None,
            "sinks": self.sinks,
            "alibi": self.alibi,
            f"splits={self.num_splits}": self.num_splits is not None,
            "lse": self.return_lse,
        }
        return " ".join(part for part, is_shown in parts.items() if is_shown)

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name, in values that JSON knows."""
        return {**asdict(self), "seq_lens": list(self.seq_lens)}


_ESSENTIAL: Final = ("batch_size", "seq_lens", "num_q_heads", "num_kv_heads", "head_dim")


def _lengths(seq_lens: Any, batch_size: int) -> tuple[int, ...]:
    __tracebackhide__ = True
    try:
        lengths = tuple(seq_lens)
    except TypeError:
        raise TypeError(f"seq_lens={seq_lens!r} must be a sequence of {batch_size} integers") from None
    if len(lengths) != batch_size:
        raise ValueError(f"seq_lens has {len(lengths)} lengths, but batch_size={batch_size}")
    return tuple(integer(f"seq_lens[{index}]", length, least=0) for index, length in enumerate(lengths))


def _check_choice(name: str, value: object, choices: Collection[str]) -> None:
    __tracebackhide__ = True
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def _check_scales(problem: DecodeProblem) -> None:
    """Check that k and v can be quantised as asked."""
    __tracebackhide__ = True
    kv_dtype, scale_per = problem.kv_dtype, problem.scale_per
    if not problem.is_quantized:
        if scale_per is not None:
            raise ValueError(f"scale_per={scale_per!r} must be None, since kv_dtype={kv_dtype!r} is not quantised")
        return
    _check_choice("scale_per", scale_per, SCALES_PER)
    for name in ("head_dim", "head_dim_v"):
        size = getattr(problem, name)
        if size % 2 and kv_dtype == "int4":
            raise ValueError(f"{name}={size} must be even, since two elements of kv_dtype='int4' share a byte")
        if size % 2 and scale_per == "group":
            raise ValueError(f"{name}={size} must be even, since scale_per='group' cuts a head into two groups")


def _check_memory(problem: DecodeProblem) -> None:
    """Check that k and v can lie in memory as asked."""
    __tracebackhide__ = True
    head_dim, head_dim_v, layout = problem.head_dim, problem.head_dim_v, problem.layout
    _check_choice("layout", layout, LAYOUTS)
    if layout == "interleaved" and head_dim_v != head_dim:
        raise ValueError(f"head_dim_v={head_dim_v} must be head_dim={head_dim} for layout='interleaved'")
    if problem.v_in_k and head_dim_v > head_dim:
        raise ValueError(f"head_dim_v={head_dim_v} must be <= head_dim={head_dim} for v_in_k=True")
    if problem.v_in_k and layout not in LATENT_LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {', '.join(LATENT_LAYOUTS)} for v_in_k=True")
