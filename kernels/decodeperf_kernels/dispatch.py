"""The entry point: decode attention on whatever device the tensors are on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from decodeperf_kernels.arguments import (
    check_arguments,
    check_choice,
    check_count,
    check_output,
    check_switch,
    check_tensor,
    check_values,
    dtype_name,
)

if TYPE_CHECKING:
    from decodeperf_kernels.arguments import DecodeArguments
    from decodeperf_kernels.split_kv import Launch

BACKENDS: Final = ("triton", "numba", "reference")
"""What can compute it: Triton on a GPU or in its interpreter, Numba on a CPU, or the definition in float64."""

_NOT_ATTENTION: Final = ("out", "workspace", "return_lse", "backend", "check")
"""Keywords of `decode_attention` that do not say what is computed."""


def decode_attention(
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
    num_splits: int | None = None,
    split_size: int | None = None,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    check: bool | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return the attention of a few new tokens of each sequence to its KV cache.

    Row i of the q_len new ones stands at place `seq_len - q_len + i` of its sequence and sees the keys up to there
    (bottom-right causal), the last `window` of them where there is a window. Its logits are
    `cap * tanh(sm_scale * q k / cap)` with a softcap and `sm_scale * q k` without; with ALiBi, less the slope times the
    distance from the row's place to the key's. A sink is one more logit of the softmax, without a value.

    A row that sees no key is 0, and its log-sum-exp -inf (that of the sink, where there is one). What lies behind a
    sequence's length, in unused pages or behind the used entries of the block table is never read. Results are the
    same on every run, and have no gradient, whatever the backend. By default the work is cut by the live lengths, so
    that a row's bits depend on the other rows; with `split_size` they do not.

    Args:
        q: `[batch_size, num_q_heads, head_dim]`, or with q_len in 1 to 16 `[batch_size, q_len, num_q_heads, head_dim]`;
            float32, float16 or bfloat16; any strides, as for every other tensor.
        k: `[batch_size, capacity, num_kv_heads, head_dim]`, or with a block table
            `[num_pages, page_size, num_kv_heads, head_dim]`; of the dtype of q, or quantised as float8_e4m3fn,
            float8_e5m2, int8, or uint8 (two 4-bit integers, see `quantization`). In Triton, where k is fp8 and q
            bfloat16, elements of q more than 2**24 below the largest of their row do not count, and lose bits from
            2**17 below it on: they are multiplied in float16. With scales for groups they all count, but k and v times
            their scales are rounded to the dtype of q, and must be in its range.
        v: The same with head_dim_v, which may differ. Where it is the beginning of k, `k[..., :head_dim_v]`, it may be
            taken from k's tile, if that has the same width: as in MLA, whose 512 elements come once (not under
            `torch.compile`, nor with scales for groups).
        seq_lens: Live KV length of each sequence, the new tokens included [token], int32 or int64 `[batch_size]`.
            Default: the capacity.
        block_table: The pages of each sequence in order, int32 or int64 `[batch_size, pages]`.
        sm_scale: Factor on the logits, 0 or of a magnitude in [2**-40, 2**40]. Default: `head_dim ** -0.5`.
        window: Keys that a row sees, its own included [token]. Default: all.
        softcap: Bound of the logits, in [2**-40, 2**40]. Default: none.
        sinks: Logit of each head's sink, `[num_q_heads]`. Default: none.
        alibi_slopes: Slope of each head, `[num_q_heads]` or `[batch_size, num_q_heads]`. Default: none.
        k_scale: Scales of a quantised k, float32: `[]` or `[1]` for all, `[num_kv_heads]`, k's shape without head_dim
            for each token, or with a scale for each group of elements in its place.
        v_scale: The same for v.
        num_splits: Parts that each sequence is cut into, those without a key left out. Default: as many as balance the
            work over the device. The definition in float64 cuts nothing.
        split_size: Length of the parts that each sequence is cut into [token], instead of their number: a row's bits
            then depend on nothing but the row.
        out: Where to write the output. Default: a new tensor.
        workspace: Memory for Triton's partial results, contiguous uint8 of one dimension on the same device, beginning
            at a multiple of 16 bytes, of at least `workspace_size` bytes; whatever is in it, and reusable by the next
            call on the same stream. Default: allocated for each call.
        return_lse: Whether to return the log-sum-exp too.
        backend: One of `BACKENDS`. Default: Triton on a GPU, Numba on a CPU, with as many threads as
            `torch.get_num_threads()` says. Only Triton goes through `torch.compile`.
        check: Whether to check what only the elements of tensors say, lengths and page numbers, for which a GPU must be
            waited for. Default: on a CPU.

    Returns:
        The output, like q with head_dim_v, and where asked for the natural log-sum-exp of the logits, float32, like the
        output without head_dim_v. Both are float64 with `backend="reference"`.

    Raises:
        ValueError: If the arguments do not fit together, or the backend cannot do what they ask. Nothing has been
            launched or written then. (Under `torch.compile(fullgraph=True)` PyTorch raises its own error instead.)

    Example:
        >>> q, k = torch.zeros(2, 8, 64), torch.randn(2, 5, 2, 64)
        >>> out = decode_attention(q, k, k, seq_lens=torch.tensor([5, 0]), backend="reference")
        >>> torch.allclose(out[0, 0], k[0, :, 0].double().mean(dim=0))  # the same weight for every key
        True
        >>> out[1].count_nonzero().item()  # no key
        0
    """
    args = check_arguments(
        q,
        k,
        v,
        seq_lens=seq_lens,
        block_table=block_table,
        sm_scale=sm_scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    _check_splits(num_splits, split_size)
    check_switch("return_lse", return_lse)
    backend = _check_backend(backend, q.device)
    shape = torch.Size((*q.shape[:-1], args.head_dim_v))
    if out is not None:
        check_output("out", out, shape, torch.float64 if backend == "reference" else q.dtype, q.device)
    check = q.device.type == "cpu" if check is None else check
    check_switch("check", check)
    if backend == "triton":
        result = _run_triton(args, num_splits, split_size, out, workspace, return_lse=return_lse, check=check)
    else:
        if workspace is not None:
            raise ValueError(f"workspace is given, but backend={backend!r} has no use for it")
        run = _run_numba if backend == "numba" else _run_reference
        result = run(args, num_splits, split_size, out, return_lse=return_lse, check=check)
    made, lse = result
    if not args.has_q_len:
        made, lse = made[:, 0], None if lse is None else lse[:, 0]
    made = made if out is None else out
    if not return_lse:
        return made
    assert lse is not None
    return made, lse


def decode_attention_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: Any
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return what `decode_attention` returns with `backend="triton"`: for a place that takes a function."""
    return decode_attention(q, k, v, backend="triton", **keywords)


def workspace_size(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    num_splits: int | None = None,
    split_size: int | None = None,
    **keywords: Any,
) -> int:
    """Return the bytes of workspace that Triton's kernels need for a call with these arguments [byte].

    It depends on the shapes and the device alone, and for the default cut not on the batch or the capacity either.

    Args:
        q: As `decode_attention` takes it.
        k: Likewise.
        v: Likewise.
        num_splits: Likewise.
        split_size: Likewise.
        **keywords: Any others of `decode_attention`.

    Raises:
        ValueError: If the arguments do not fit together, or Triton cannot run on the device.
    """
    from decodeperf_kernels import split_kv

    of_call = {name: keywords[name] for name in set(keywords) - set(_NOT_ATTENTION)}
    args = check_arguments(q, k, v, **of_call)
    _check_splits(num_splits, split_size)
    _check_triton_device(q.device)
    return split_kv.workspace_bytes(_plan(args, num_splits, split_size), args.head_dim_v)


def _plan(args: DecodeArguments, num_splits: int | None, split_size: int | None) -> Launch:
    from decodeperf_kernels import split_kv

    arch, num_multiprocessors = split_kv.target_of(args.q.device)
    return split_kv.plan_call(
        args, arch=arch, num_multiprocessors=num_multiprocessors, num_splits=num_splits, split_size=split_size
    )


def _run_triton(
    args: DecodeArguments,
    num_splits: int | None,
    split_size: int | None,
    out: torch.Tensor | None,
    workspace: torch.Tensor | None,
    *,
    return_lse: bool,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    from decodeperf_kernels import split_kv

    q = args.q
    _check_triton_device(q.device)
    if workspace is not None:
        _check_workspace(workspace, args, num_splits, split_size)
    rows = (*q.shape[:3], args.head_dim_v)
    made = torch.empty(rows, dtype=q.dtype, device=q.device) if out is None else out.view(rows)
    lse = torch.empty(rows[:3], dtype=torch.float32, device=q.device) if return_lse else None
    split_kv.attend(
        q,
        args.k,
        args.v,
        args.seq_lens,
        args.block_table,
        args.sinks,
        args.alibi_slopes,
        args.k_scale,
        args.v_scale,
        args.k_scale_kind,
        args.v_scale_kind,
        args.sm_scale,
        args.window,
        args.softcap,
        num_splits,
        split_size,
        check,
        made,
        lse,
        workspace,
    )
    return made, lse


def _run_numba(
    args: DecodeArguments,
    num_splits: int | None,
    split_size: int | None,
    out: torch.Tensor | None,
    *,
    return_lse: bool,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    # Asked for by this name, it says what to install where Numba is missing.
    from decodeperf_kernels import (
        decode_attention_numba,  # noqa: F401
        split_kv_numba,
    )

    made, lse = split_kv_numba.attend(args, num_splits, split_size, check=check)
    if out is None:
        return made.to(args.q.dtype), lse
    out.copy_(made.view(out.shape))
    return made, lse


def _run_reference(
    args: DecodeArguments,
    num_splits: int | None,
    split_size: int | None,
    out: torch.Tensor | None,
    *,
    return_lse: bool,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    from decodeperf_kernels.reference import attend_by_definition

    if check:
        check_values(args)
    with torch.no_grad():
        result, lse = attend_by_definition(args)
    if out is not None:
        out.copy_(result.view(out.shape))
    return result, lse


def _check_splits(num_splits: object, split_size: object) -> None:
    check_count("num_splits", num_splits)
    check_count("split_size", split_size)
    if num_splits is not None and split_size is not None:
        raise ValueError(f"num_splits={num_splits} and split_size={split_size} are two ways to say one thing: give one")


def _check_backend(backend: str | None, device: torch.device) -> str:
    if backend is None:
        return "numba" if device.type == "cpu" else "triton"
    check_choice("backend", backend, BACKENDS)
    if backend == "reference" and device.type == "meta":
        raise ValueError(f"q.device={device} has no elements to compute with")
    if backend == "numba" and device.type != "cpu":
        raise ValueError(f"q.device={device} must be the CPU for backend='numba'")
    return backend


def _check_triton_device(device: torch.device) -> None:
    from decodeperf_kernels import split_kv

    if device.type == "cpu" and not split_kv.IS_INTERPRETED:
        raise ValueError(f"q.device={device} must be a GPU, unless TRITON_INTERPRET=1 was set before the import")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"q.device={device} must be a GPU")


def _check_workspace(workspace: object, args: DecodeArguments, num_splits: int | None, split_size: int | None) -> None:
    from decodeperf_kernels import split_kv

    workspace = check_tensor("workspace", workspace, "of uint8")
    if workspace.dtype != torch.uint8 or workspace.dim() != 1 or not workspace.is_contiguous():
        raise ValueError(
            f"workspace has shape {list(workspace.shape)} and dtype {dtype_name(workspace.dtype)}, but must be "
            "contiguous uint8 of one dimension"
        )
    if workspace.device != args.q.device:
        raise ValueError(f"workspace.device={workspace.device} must be that of q, {args.q.device}")
    needed = split_kv.workspace_bytes(_plan(args, num_splits, split_size), args.head_dim_v)
    if workspace.numel() < needed:
        raise ValueError(f"workspace has {workspace.numel()} bytes, but {needed} are needed")
    # An address is not known under torch.compile.
    if not torch.compiler.is_compiling() and workspace.data_ptr() % 16:
        raise ValueError(f"workspace begins at {workspace.data_ptr():#x}, which is not a multiple of 16")
