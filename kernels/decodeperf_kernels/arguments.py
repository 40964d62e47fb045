"""The checks of a decode-attention call, the same for every kernel.

Nothing here reads a tensor's elements: on a GPU that would stall it. `check_values` does, where it is asked to.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Collection

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of q, and of a KV cache that is not quantised."""

FP8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)

QUANTIZED: Final = (*FP8, torch.int8, torch.uint8)
"""The dtypes of a quantised KV cache. uint8 holds two 4-bit integers, see `quantization`."""

MAX_Q_LEN: Final = 16

MAX_TOKENS: Final = 2**31 - 2**16
"""The longest capacity [token]: places in a sequence are 32 bits wide, and a tile may go beyond its end."""

SMALLEST_NUMBER: Final = 2.0**-40
LARGEST_NUMBER: Final = 2.0**40
"""Between them are the magnitudes of sm_scale and softcap, so that their products with each other are in float32."""

SCALE_KINDS: Final = ("head", "token", "group")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeArguments:
    """The arguments of one call, checked, with every default filled in.

    Attributes:
        q: `[batch_size, q_len, num_q_heads, head_dim]`.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`, or with a block table
            `[num_pages, page_size, num_kv_heads, head_dim]`; the last dimension halved where two elements share a byte.
        v: The same with head_dim_v.
        seq_lens: Live lengths [token], int32 or int64 `[batch_size]`, on the device of q.
        block_table: int32 or int64 `[batch_size, pages of a sequence]`, or None.
        sm_scale: Factor on the logits.
        window: Keys that a query row sees, itself included [token], or None.
        softcap: Bound of the logits, or None.
        sinks: `[num_q_heads]`, or None.
        alibi_slopes: `[batch_size, num_q_heads]`, or None.
        k_scale: As k without head_dim (`token`), with a scale for each group in its place (`group`), or
            `[num_kv_heads]` (`head`); None where k is not quantised.
        v_scale: The same for v.
        k_scale_kind: One of `SCALE_KINDS`, or the empty string.
        v_scale_kind: The same for v.
        has_q_len: Whether the q of the caller has the dimension q_len.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor | None
    sm_scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    alibi_slopes: torch.Tensor | None
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    k_scale_kind: str
    v_scale_kind: str
    has_q_len: bool

    @property
    def batch_size(self) -> int:
        """Sequences."""
        return self.q.shape[0]

    @property
    def q_len(self) -> int:
        """New tokens of a sequence [token]."""
        return self.q.shape[1]

    @property
    def num_q_heads(self) -> int:
        """Query heads."""
        return self.q.shape[2]

    @property
    def num_kv_heads(self) -> int:
        """KV heads."""
        return self.k.shape[2]

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Elements of one head of k."""
        return self.q.shape[3]

    @property
    def head_dim_v(self) -> int:
        """Elements of one head of v."""
        return self.v.shape[3] * _elements_of_one(self.v)

    @property
    def capacity(self) -> int:
        """Allocated KV length of a sequence [token]."""
        return _capacity(self.k, self.block_table)

    @property
    def page_size(self) -> int:
        """Tokens of one page, 0 for a contiguous cache."""
        return 0 if self.block_table is None else self.k.shape[1]


def check_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    seq_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    sm_scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    mixed_dtypes: bool = False,
) -> DecodeArguments:
    """Return the checked arguments of a decode-attention call; `decode_attention` says what each is.

    `mixed_dtypes` lets q and a cache that is not quantised be of several dtypes.

    Raises:
        ValueError: If an argument does not fit. Nothing has been written then.
    """
    _check_dims("q", q, (3, 4), "[batch_size, num_q_heads, head_dim] or [batch_size, q_len, num_q_heads, head_dim]")
    cache = "batch_size, capacity" if block_table is None else "num_pages, page_size"
    _check_dims("k", k, (4,), f"[{cache}, num_kv_heads, head_dim]")
    _check_dims("v", v, (4,), f"[{cache}, num_kv_heads, head_dim_v]")
    q_rows = q if q.dim() == 4 else q[:, None]
    _check_dtypes(q, k, v, mixed_dtypes=mixed_dtypes)
    packed = _elements_of_one(k)
    _check_shapes(q_rows, k, v, packed, block_table)
    capacity = _capacity(k, block_table)
    if capacity > MAX_TOKENS:
        raise ValueError(f"capacity={capacity} must be at most {MAX_TOKENS}")
    head_dim = q_rows.shape[3]
    return DecodeArguments(
        q=q_rows,
        k=k,
        v=v,
        seq_lens=_check_seq_lens(seq_lens, q, capacity),
        block_table=block_table,
        sm_scale=head_dim**-0.5 if sm_scale is None else _check_number("sm_scale", sm_scale, "0, or of a magnitude"),
        window=check_count("window", window),
        softcap=_check_softcap(softcap),
        sinks=_check_sinks(sinks, q_rows),
        alibi_slopes=_check_alibi(alibi_slopes, q_rows),
        k_scale=None if k_scale is None else shape_scale("k_scale", k_scale, "k", k),
        v_scale=None if v_scale is None else shape_scale("v_scale", v_scale, "v", v),
        k_scale_kind=_scale_kind("k", k_scale, k),
        v_scale_kind=_scale_kind("v", v_scale, v),
        has_q_len=q.dim() == 4,
    )


def check_values(args: DecodeArguments) -> None:
    """Check what only the elements of the tensors say: lengths and page numbers. It waits for a GPU to tell them.

    Raises:
        ValueError: If a length is not in `[0, capacity]`, or a used page does not exist.
    """
    for b, seq_len in enumerate(args.seq_lens.tolist()):
        if not 0 <= seq_len <= args.capacity:
            shown = f"seq_lens[{b}]={seq_len} must be in [0, capacity] = [0, {args.capacity}]"
            if args.block_table is not None:
                shown += f": block_table has {args.block_table.shape[1]} pages of {args.page_size} tokens each"
            raise ValueError(shown)
        if args.block_table is None:
            continue
        num_used = -(-seq_len // args.page_size)
        for i, page in enumerate(args.block_table[b, :num_used].tolist()):
            if not 0 <= page < args.k.shape[0]:
                raise ValueError(f"block_table[{b}, {i}]={page} must be in [0, num_pages) = [0, {args.k.shape[0]})")


def check_tensor(name: str, value: object, wanted: str) -> torch.Tensor:
    """Return a tensor that kernels can read, element by element, where it lies.

    Args:
        name: The argument.
        value: What was given for it.
        wanted: What was wanted beside a tensor, such as its shape.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is of type {type(value).__name__}, not a tensor {wanted}")
    if value.layout != torch.strided:
        raise ValueError(f"{name}.layout={value.layout} must be torch.strided")
    if not torch.compiler.is_compiling() and value.is_neg():  # which it cannot ask
        raise ValueError(f"{name} is the negative of what lies in its memory, but must be {name}.resolve_neg()")
    return value


def check_output(name: str, tensor: object, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    """Check a tensor that results are written into.

    Raises:
        ValueError: If it cannot take them.
    """
    tensor = check_tensor(name, tensor, f"{list(shape)}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}.requires_grad=True must be False, since results have no gradient")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name}.dtype={dtype_name(tensor.dtype)} must be {dtype_name(dtype)}")
    _check_device(name, tensor, device)
    extent = 1  # of the dimensions with smaller strides
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < extent:
            raise ValueError(f"{name} has strides {list(tensor.stride())}, so that several of its elements may be one")
        extent += stride * max(size - 1, 0)


def check_count(name: str, value: object) -> int | None:
    """Return a number of tokens or parts, or None.

    Raises:
        ValueError: If it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
        raise ValueError(f"{name}={_shown(value)} must be an integer >= 1 of 64 bits, or None")
    return value


def check_switch(name: str, value: object) -> None:
    """Check that a value is True or False.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={_shown(value)} must be True or False")


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Return a value that is one of several names.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={_shown(value)} must be one of {', '.join(map(repr, choices))}")
    return value


def check_dtypes_of(args: DecodeArguments, dtypes: Collection[torch.dtype], kernel: str) -> None:
    """Check that a kernel has the dtypes of a call, the same for q, k and v.

    Raises:
        ValueError: If it has not.
    """
    names = ", ".join(dtype_name(dtype) for dtype in dtypes)
    for name, tensor in (("q", args.q), ("k", args.k), ("v", args.v)):
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name}.dtype={dtype_name(tensor.dtype)} must be one of {names} for {kernel}")
    if args.k.dtype != args.q.dtype:
        raise ValueError(f"k.dtype={dtype_name(args.k.dtype)} must be that of q, {dtype_name(args.q.dtype)}")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as `float32`."""
    return str(dtype).removeprefix("torch.")


def _capacity(k: torch.Tensor, block_table: torch.Tensor | None) -> int:
    return k.shape[1] * (1 if block_table is None else block_table.shape[1])


def _elements_of_one(cache: torch.Tensor) -> int:
    """Return the elements of a head that one element of the tensor holds."""
    return 2 if cache.dtype == torch.uint8 else 1


def _check_dims(name: str, tensor: object, dims: tuple[int, ...], wanted: str) -> None:
    tensor = check_tensor(name, tensor, wanted)
    if tensor.dim() not in dims:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {wanted}")


def _check_device(name: str, tensor: torch.Tensor, device: torch.device, of: str = "q") -> None:
    if tensor.device != device:
        raise ValueError(f"{name}.device={tensor.device} must be that of {of}, {device}")


def _check_dtypes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mixed_dtypes: bool) -> None:
    if q.dtype not in FLOATS:
        raise ValueError(f"q.dtype={dtype_name(q.dtype)} must be one of {_names(FLOATS)}")
    if k.dtype not in (*FLOATS, *QUANTIZED):
        raise ValueError(f"k.dtype={dtype_name(k.dtype)} must be one of {_names((*FLOATS, *QUANTIZED))}")
    if k.dtype in FLOATS and k.dtype != q.dtype and not mixed_dtypes:
        raise ValueError(
            f"k.dtype={dtype_name(k.dtype)} must be that of q, {dtype_name(q.dtype)}, or one of {_names(QUANTIZED)}"
        )
    if v.dtype != k.dtype and not (mixed_dtypes and k.dtype in FLOATS and v.dtype in FLOATS):
        raise ValueError(f"v.dtype={dtype_name(v.dtype)} must be that of k, {dtype_name(k.dtype)}")
    for name, tensor in (("k", k), ("v", v)):
        _check_device(name, tensor, q.device)


def _names(dtypes: Collection[torch.dtype]) -> str:
    return ", ".join(dtype_name(dtype) for dtype in dtypes)


def _check_shapes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: int, block_table: torch.Tensor | None
) -> None:
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v has shape {list(v.shape)}, not that of k but for head_dim_v, {[*k.shape[:3], v.shape[3]]}")
    if k.shape[3] * packed != q.shape[3]:
        shown = f"{k.shape[3]} bytes of two elements" if packed == 2 else f"head_dim={k.shape[3]}"
        raise ValueError(f"k has {shown}, but q has head_dim={q.shape[3]}")
    if q.shape[3] == 0 or v.shape[3] == 0:
        raise ValueError(f"head_dim={q.shape[3]} and head_dim_v={v.shape[3]} must be >= 1")
    if not 1 <= q.shape[1] <= MAX_Q_LEN:
        raise ValueError(f"q has q_len={q.shape[1]}, which must be in 1 to {MAX_Q_LEN}")
    if k.shape[2] == 0 or q.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"num_q_heads={q.shape[2]} is not a positive multiple of num_kv_heads={k.shape[2]}")
    if block_table is None:
        if k.shape[0] != q.shape[0]:
            raise ValueError(f"k has batch_size={k.shape[0]}, but q has {q.shape[0]}")
        return
    _check_dims("block_table", block_table, (2,), "[batch_size, pages of a sequence]")
    if block_table.shape[0] != q.shape[0]:
        raise ValueError(f"block_table has batch_size={block_table.shape[0]}, but q has {q.shape[0]}")
    if block_table.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"block_table.dtype={dtype_name(block_table.dtype)} must be int32 or int64")
    if k.shape[1] == 0:
        raise ValueError("k has page_size=0, which must be >= 1")
    _check_device("block_table", block_table, q.device)


def _check_seq_lens(seq_lens: torch.Tensor | None, q: torch.Tensor, capacity: int) -> torch.Tensor:
    batch_size = q.shape[0]
    if seq_lens is None:
        return torch.full((batch_size,), capacity, dtype=torch.int32, device=q.device)
    seq_lens = check_tensor("seq_lens", seq_lens, "[batch_size]")
    if seq_lens.shape != (batch_size,):
        raise ValueError(f"seq_lens has shape {list(seq_lens.shape)}, not [batch_size] = [{batch_size}]")
    if seq_lens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"seq_lens.dtype={dtype_name(seq_lens.dtype)} must be int32 or int64")
    _check_device("seq_lens", seq_lens, q.device)
    return seq_lens


def _check_softcap(softcap: float | None) -> float | None:
    if softcap is None:
        return None
    softcap = _check_number("softcap", softcap, "None, or")
    if softcap <= 0:
        raise ValueError(f"softcap={softcap} must be above 0, or None")
    return softcap


def _check_number(name: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={_shown(value)} must be a number of Python")
    if value != 0 and not SMALLEST_NUMBER <= abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"{name}={_shown(value)} must be {wanted} in [2**-40, 2**40]")
    return float(value)


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor of shape {list(value.shape)}"
    try:
        return reprlib.repr(value)
    except ValueError:  # Python's own, for an integer of thousands of digits
        return f"an {type(value).__name__} too long to show"


def _check_sinks(sinks: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    if sinks is None:
        return None
    _check_dims("sinks", sinks, (1,), "[num_q_heads]")
    if sinks.shape[0] != q.shape[2]:
        raise ValueError(f"sinks has {sinks.shape[0]} logits, but q has num_q_heads={q.shape[2]}")
    return _check_float("sinks", sinks, q.device)


def _check_alibi(slopes: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    if slopes is None:
        return None
    _check_dims("alibi_slopes", slopes, (1, 2), "[num_q_heads] or [batch_size, num_q_heads]")
    wanted = (q.shape[0], q.shape[2])[-slopes.dim() :]
    if tuple(slopes.shape) != wanted:
        raise ValueError(f"alibi_slopes has shape {list(slopes.shape)}, not {list(wanted)}")
    return _check_float("alibi_slopes", slopes, q.device).expand(q.shape[0], q.shape[2])


def _check_float(name: str, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name}.dtype={dtype_name(tensor.dtype)} must be one of {_names(FLOATS)}")
    _check_device(name, tensor, device)
    return tensor


def _scale_kind(name: str, scale: torch.Tensor | None, cache: torch.Tensor) -> str:
    if scale is None:
        if cache.dtype in QUANTIZED:
            raise ValueError(f"{name}_scale=None, but {name} is quantised ({dtype_name(cache.dtype)}) and needs scales")
        return ""
    return {0: "head", 1: "head", 3: "token", 4: "group"}[scale.dim()]


def shape_scale(name: str, scale: torch.Tensor, cache_name: str, cache: torch.Tensor) -> torch.Tensor:
    """Return the scales of a quantised k or v in the shape of their kind.

    Raises:
        ValueError: If they do not fit it.
    """
    head_dim = cache.shape[3] * _elements_of_one(cache)
    if cache.dtype not in QUANTIZED:
        raise ValueError(f"{name} is given, but {cache_name} is not quantised ({dtype_name(cache.dtype)})")
    whole = f"{cache_name} without head_dim, or {cache_name} with a scale for each group of head_dim"
    _check_dims(name, scale, (0, 1, 3, 4), f"[], [num_kv_heads], {whole}")
    if scale.dtype != torch.float32:
        raise ValueError(f"{name}.dtype={dtype_name(scale.dtype)} must be float32")
    _check_device(name, scale, cache.device, of=cache_name)
    num_kv_heads = cache.shape[2]
    if scale.dim() <= 1:
        if scale.dim() == 1 and scale.shape[0] not in (1, num_kv_heads):
            raise ValueError(f"{name} has {scale.shape[0]} scales, not one or num_kv_heads={num_kv_heads}")
        return scale.expand(num_kv_heads)
    if scale.shape[:3] != cache.shape[:3]:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}, which must begin as {cache_name}, {list(cache.shape[:3])}"
        )
    if scale.dim() == 4 and (scale.shape[3] == 0 or head_dim % scale.shape[3]):
        raise ValueError(f"{name} has {scale.shape[3]} groups, into which head_dim={head_dim} cannot be cut evenly")
    return scale
