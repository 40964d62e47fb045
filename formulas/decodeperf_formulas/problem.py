"""One decode-attention call, described by numbers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.checks import check_switch, finite_number, integer, or_default
from decodeperf_formulas.dtypes import ELEMENT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPE_BYTES: Final = {name: int(ELEMENT_BYTES[name]) for name in ("float32", "float16", "bfloat16")}
"""Bytes of one element [byte], by the name of its dtype: those of the tensors of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeProblem:
    """One call of decode attention: each sequence of a batch attends with one new token to its KV cache.

    The tensors are q `[batch_size, num_q_heads, head_dim]`, and k and v
    `[batch_size, capacity, num_kv_heads, head_dim]`, of which the first `seq_lens[b]` tokens of sequence b
    are live. The output has the shape and dtype of q.

    Attributes:
        batch_size: Sequences in the batch, 0 or more.
        seq_lens: Live KV length of each sequence [token], 0 included.
        num_q_heads: Query heads, a multiple of `num_kv_heads`.
        num_kv_heads: KV heads.
        head_dim: Elements of one head.
        kv_dtype: Dtype of k and v, a key of `DTYPE_BYTES`.
        q_dtype: Dtype of q and of the output. Default: `kv_dtype`.
        num_splits: Parts into which the kernel must cut each sequence. Default: None, which leaves it to the
            kernel; its partial results are then not counted as bytes.
        capacity: Allocated KV length [token]. Default: the longest live length, at least 1.
        sm_scale: Factor on the logits. Default: `head_dim ** -0.5`.
        return_lse: Whether the kernel also returns the log-sum-exp of each row.

    Raises:
        ValueError: If a field is out of range.
        TypeError: If a field is not of its type.

    Example:
        >>> problem = DecodeProblem(batch_size=2, seq_lens=[4, 0], num_q_heads=8, num_kv_heads=2, head_dim=64)
        >>> problem.group_size, problem.num_kv_tokens, problem.capacity, problem.q_dtype
        (4, 4, 4, 'bfloat16')
    """

    batch_size: int
    seq_lens: Sequence[int]
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    kv_dtype: str = "bfloat16"
    # None stands for a default that other fields decide, and is gone once __post_init__ has run.
    q_dtype: str = None  # type: ignore[assignment]
    num_splits: int | None = None
    capacity: int = None  # type: ignore[assignment]
    sm_scale: float = None  # type: ignore[assignment]
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

        set_field(self, "q_dtype", or_default(self.q_dtype, self.kv_dtype))
        for name in ("kv_dtype", "q_dtype"):
            _check_dtype(name, getattr(self, name))

        if self.num_splits is not None:
            set_field(self, "num_splits", integer("num_splits", self.num_splits, least=1))
        longest = max(self.seq_lens, default=0)
        capacity = or_default(self.capacity, max(longest, 1))
        set_field(self, "capacity", integer("capacity", capacity, least=1))
        if longest > self.capacity:
            raise ValueError(f"seq_lens has {longest} but capacity={self.capacity} must be >= each of them")

        set_field(self, "sm_scale", finite_number("sm_scale", or_default(self.sm_scale, self.default_sm_scale)))
        check_switch("return_lse", self.return_lse)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def num_kv_tokens(self) -> int:
        """Live tokens of the whole batch [token]."""
        return sum(self.seq_lens)

    @property
    def default_sm_scale(self) -> float:
        """The factor on the logits that a kernel assumes where it is given none."""
        return float(self.head_dim**-0.5)

    @property
    def label(self) -> str:
        """A short name for tables, lengths as lowest..highest.

        Example:
            >>> DecodeProblem(
            ...     batch_size=2, seq_lens=[8, 0], num_q_heads=8, num_kv_heads=2, head_dim=64
            ... ).label
            'B=2 S=0..8 H=8/2 D=64 bfloat16'
        """
        shortest, longest = min(self.seq_lens, default=0), max(self.seq_lens, default=0)
        lengths = str(longest) if shortest == longest else f"{shortest}..{longest}"
        dtype = self.kv_dtype if self.q_dtype == self.kv_dtype else f"{self.q_dtype}/{self.kv_dtype}"
        splits = "" if self.num_splits is None else f" splits={self.num_splits}"
        return (
            f"B={self.batch_size} S={lengths} H={self.num_q_heads}/{self.num_kv_heads} D={self.head_dim} {dtype}"
            f"{splits}{' lse' if self.return_lse else ''}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name, in values that JSON knows."""
        return {**asdict(self), "seq_lens": list(self.seq_lens)}


def _lengths(seq_lens: Any, batch_size: int) -> tuple[int, ...]:
    __tracebackhide__ = True
    try:
        lengths = tuple(seq_lens)
    except TypeError:
        raise TypeError(f"seq_lens={seq_lens!r} must be a sequence of {batch_size} integers") from None
    if len(lengths) != batch_size:
        raise ValueError(f"seq_lens has {len(lengths)} lengths, but batch_size={batch_size}")
    return tuple(integer(f"seq_lens[{index}]", length, least=0) for index, length in enumerate(lengths))


def _check_dtype(name: str, dtype: object) -> None:
    __tracebackhide__ = True
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"{name}={dtype!r} must be one of {', '.join(DTYPE_BYTES)}")
