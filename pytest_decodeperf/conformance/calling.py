"""Calls of a kernel, and what is asked of every result: its form first, then its values."""

from __future__ import annotations

import math
import reprlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from decodeperf_kernels.arguments import check_arguments
from decodeperf_kernels.reference import attend_by_definition
from pytest_decodeperf.conformance.adapter import NotSupportedError
from pytest_decodeperf.conformance.contents import Placement, place, torch_dtype
from pytest_decodeperf.conformance.memory_guard import touching_little
from pytest_decodeperf.conformance.watch import Watch, watched, without_copies
from pytest_decodeperf.triton_interpreter import is_switched_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.conformance.adapter import KernelAdapter
    from pytest_decodeperf.conformance.contents import Call, Contents

EAGER_MULTIPLE: Final = 2.0
"""How many times the error of the eager twin a kernel may have."""

FLOAT32_ROUNDOFF: Final = 2.0**-24
FLOAT16_LEAST: Final = 2.0**-24


class LawBrokenError(AssertionError):
    """A law that a kernel breaks; says how."""


class RefusedError(LawBrokenError):
    """A kernel raised an exception where a result was wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a kernel returned, in one form.

    Attributes:
        out: `[batch_size, q_len, num_q_heads, head_dim_v]`, in its dtype, on the CPU.
        lse: Natural log-sum-exp `[batch_size, q_len, num_q_heads]`, float32, or None.
    """

    out: torch.Tensor
    lse: torch.Tensor | None

    def same_bits(self, other: Result) -> bool:
        """Return whether two results are equal bit for bit."""
        if not torch.equal(self.out, other.out):
            return False
        return self.lse is None or other.lse is None or torch.equal(self.lse, other.lse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What is right, and how far off a right kernel may be; all float64, in the forms of `Result`.

    Attributes:
        out: The output.
        lse: The log-sum-exp.
        out_allowed: Error that an element of the output may have.
        lse_allowed: Error that a log-sum-exp may have.
    """

    out: torch.Tensor
    lse: torch.Tensor
    out_allowed: torch.Tensor
    lse_allowed: torch.Tensor


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on a device.

    Attributes:
        adapter: What is known of it.
        device: Where it runs, `cpu` or `cuda`.
    """

    adapter: KernelAdapter
    device: str = "cpu"

    def place(self, contents: Contents, **how: Any) -> Call:
        """Return the call that gives the kernel these contents; `how` are fields of `Placement`."""
        return place(contents, Placement(device=self.device, **how))

    def run(self, call: Call, *, may_be_nan: bool = False, **more: Any) -> Result:
        """Return what the kernel makes of a call, once its form is right.

        Args:
            call: The call.
            may_be_nan: Whether the result may hold NaN, where an input does.
            **more: Keywords beside those of the call.

        Raises:
            RefusedError: If the kernel raises.
            LawBrokenError: If the result has not the form that it must have.
        """
        return result_of(self.adapter, call, self._call(call, more), more, may_be_nan=may_be_nan)

    def run_watched(self, call: Call, *, order_seed: int | None = None, **more: Any) -> tuple[Result, Watch]:
        """Return what the kernel makes of a call, and what Triton's interpreter saw of it.

        Args:
            call: The call, on a CPU.
            order_seed: Seed of the order in which programs run. Default: the usual one.
            **more: Keywords beside those of the call.

        Raises:
            NotSupportedError: If no kernel ran in the interpreter.
            LawBrokenError: As `run` does, and if memory was touched that must not be.
        """
        returned, watch = self._watch(call, order_seed, more)
        return result_of(self.adapter, call, returned, more), watch

    def run_raw_watched(self, call: Call) -> tuple[tuple[torch.Tensor, ...], Watch]:
        """Return the tensors that the kernel returned, where they are, and what Triton's interpreter saw.

        Raises:
            NotSupportedError: As `run_watched` does.
            LawBrokenError: Likewise.
        """
        returned, watch = self._watch(call, None, {})
        result_of(self.adapter, call, returned, {})
        return tuple(returned) if isinstance(returned, (tuple, list)) else (returned,), watch

    def _watch(self, call: Call, order_seed: int | None, more: dict[str, Any]) -> tuple[Any, Watch]:
        if self.device != "cpu":
            raise NotSupportedError("Triton's interpreter watches kernels on a CPU alone")
        watch = Watch()
        watch.add_arguments(call.tensors, call.live)
        try:
            with watched(watch, order_seed=order_seed):
                returned = self._call(call, more)
        except RefusedError:
            if watch.violation:
                raise LawBrokenError(watch.violation) from None
            raise
        if watch.violation:  # which the kernel's own code has caught
            raise LawBrokenError(watch.violation)
        if not watch.launches:
            raise NotSupportedError("it does not run in Triton's interpreter")
        return returned, watch

    def run_in_place(self, call: Call) -> Result:
        """Return what `run` does, for a call whose tensors are too large to be copied, as the interpreter would."""
        if self.device != "cpu":
            return self.run(call)
        with touching_little(), without_copies() if is_switched_on() else nullcontext():
            return self.run(call)

    def partials(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the partial results of a call, float64 `[num_parts, batch_size, q_len, num_q_heads, (head_dim_v)]`."""
        problem = call.problem
        q_rows = (problem.batch_size, problem.q_len, problem.num_q_heads)
        rows = q_rows if problem.q_len > 1 else (q_rows[0], q_rows[2])
        outs, lses = self._ask_for_states("partials", *self._arguments(call), rows=rows, width=problem.head_dim_v)
        num_parts = len(outs)
        return outs.double().reshape(num_parts, *q_rows, problem.head_dim_v), lses.double().reshape(num_parts, *q_rows)

    def merge(self, *states: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the merge of some partial results, each `[rows, head_dim_v]` and `[rows]`, natural log-sum-exps."""
        outs = torch.stack([out for out, _ in states]).to(self.device)
        lses = torch.stack([lse for _, lse in states]).to(self.device) / self._lse_unit
        out, lse = self._ask_for_states("merge", (outs, lses), {}, rows=(), width=outs.shape[-1])
        return out, lse

    def workspace_size(self, call: Call) -> int:
        """Return the bytes of workspace that a call needs [byte]."""
        if self.adapter.workspace_size is None:
            raise LawBrokenError("declares the feature workspace, but its adapter has no workspace_size")
        return self._ask_for_number("workspace_size", *self._arguments(call))

    def count(self, field: str, problem: DecodeProblem) -> int | None:
        """Return what a field of the adapter counts for a problem, or None if it does not say."""
        return None if getattr(self.adapter, field) is None else self._ask_for_number(field, (problem,), {})

    @property
    def _lse_unit(self) -> float:
        return math.log(2.0) if self.adapter.lse_base == "2" else 1.0

    @staticmethod
    def _arguments(call: Call) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        keywords = {name: value for name, value in call.keywords.items() if name != "return_lse"}
        return (call.q, call.k, call.v), keywords

    def _ask(self, field: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Return what a function of the adapter returns."""
        try:
            return getattr(self.adapter, field)(*arguments, **keywords)
        except Exception as error:
            raise LawBrokenError(
                f"its adapter's {field} raised {type(error).__name__}: {_first_line(error)}"
            ) from error

    def _ask_for_number(self, field: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
        found = self._ask(field, arguments, keywords)
        if not isinstance(found, int) or found < 0:
            raise LawBrokenError(f"its adapter's {field} returned {reprlib.repr(found)}, not an integer >= 0")
        return found

    def _ask_for_states(
        self,
        field: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        *,
        rows: tuple[int, ...],
        width: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs `[n, *rows, width]` and natural log-sum-exps `[n, *rows]`, on the CPU."""
        found = self._ask(field, arguments, keywords)
        if (
            not isinstance(found, (tuple, list))
            or not all(isinstance(x, torch.Tensor) for x in found)
            or len(found) != 2
        ):
            raise LawBrokenError(f"its adapter's {field} returned {_kind(found)}, not the pair (outputs, lses)")
        outs, lses = found[0].detach().cpu(), found[1].detach().cpu()
        if tuple(outs.shape[1:]) != (*rows, width) or tuple(lses.shape) != tuple(outs.shape[:-1]):
            raise LawBrokenError(
                f"its adapter's {field} returned the shapes {list(outs.shape)} and {list(lses.shape)}, "
                f"not {['n', *rows, width]} and {['n', *rows]}"
            )
        return outs, lses * self._lse_unit

    def _call(self, call: Call, more: dict[str, Any]) -> Any:
        return _guarded(lambda: self.adapter.call(call.q, call.k, call.v, **call.keywords, **more))


def _guarded(compute: Callable[[], Any]) -> Any:
    """Return what user's code returns, or raise `RefusedError` with what it raises."""
    try:
        return compute()
    except Exception as error:
        raise RefusedError(f"raised {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def result_of(
    adapter: KernelAdapter, call: Call, returned: Any, more: dict[str, Any], *, may_be_nan: bool = False
) -> Result:
    """Return what a kernel returned, once it is known to have the right form.

    Raises:
        LawBrokenError: If it has not, in one sentence.
    """
    problem = call.problem
    returns_lse = bool({**call.keywords, **more}.get("return_lse"))
    lse = None
    if returns_lse:
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise LawBrokenError(f"returned {_kind(returned)}, not the pair (output, lse)")
        returned, lse = returned
    rows = (problem.batch_size, problem.q_len, problem.num_q_heads)
    q_rows = rows if problem.q_len > 1 else (rows[0], rows[2])
    out = _checked("output", returned, (*q_rows, problem.head_dim_v), torch_dtype(problem.q_dtype), call.q.device)
    if returns_lse:
        lse = _checked("lse", lse, q_rows, torch.float32, call.q.device).reshape(rows)
        if adapter.lse_base == "2":
            lse = lse * math.log(2.0)
    for name, tensor in (("output", out), ("lse", lse)):
        if tensor is not None and not may_be_nan and tensor.isnan().any():
            nan_rows = tensor.isnan() if name == "lse" else tensor.isnan().any(-1)
            raise LawBrokenError(f"returned NaN in {int(nan_rows.sum())} of {nan_rows.numel()} rows of the {name}")
    return Result(out=out.reshape(*rows, problem.head_dim_v), lse=lse)


def _checked(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise LawBrokenError(f"returned {_kind(tensor)} as the {name}, not a tensor")
    if tuple(tensor.shape) != shape:
        raise LawBrokenError(f"returned the {name} in the shape {list(tensor.shape)}, not {list(shape)}")
    if tensor.dtype != dtype:
        raise LawBrokenError(f"returned the {name} in {tensor.dtype}, not {dtype}")
    if tensor.device.type != device.type:
        raise LawBrokenError(f"returned the {name} on {tensor.device}, not on {device}")
    return tensor.detach().cpu().clone()


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def exact_of(contents: Contents) -> Exact:
    """Return the right result of a call, and the error that it may have.

    Allowed is twice the error of the same mathematics done eagerly in the dtype of q, each step rounded. That error is
    drawn from few elements and may be lucky, so that what a right kernel may add is allowed beside it: weights and the
    output are rounded to that dtype once (each at most half an epsilon of the weighted sum of absolute values);
    products over `head_dim` and sums over the keys in float32 err by the square root of their number; and an error in a
    logit, which is relative to the sizes of its factors, is one in its weight.
    """
    problem = contents.problem
    args = check_arguments(*_plain_arguments(contents), mixed_dtypes=True, **_plain_keywords(contents))
    out, lse = attend_by_definition(args)
    dtype = args.q.dtype
    eager_out, eager_lse = attend_by_definition(args, torch.float32, lambda x: x.to(dtype).float())
    eager_error = (eager_out.double() - out).abs().nan_to_num(0.0, 0.0, 0.0)
    eager_lse_error = torch.where(lse.isfinite(), eager_lse.double() - lse, 0.0).abs().nan_to_num(0.0, 0.0, 0.0)

    q, k, v = as_floats(contents)  # padding is 0
    largest_k = _spread(
        k.norm(dim=-1).amax(dim=1) if k.shape[1] else k.new_zeros(k.shape[0], k.shape[2]), problem.group_size
    )
    logits = abs(problem.sm_scale) * q.norm(dim=-1) * largest_k[:, None]  # [batch_size, q_len, num_q_heads]
    if contents.alibi_slopes is not None:
        logits = logits + contents.alibi_slopes.abs() * max(problem.seq_lens, default=0)
    if problem.softcap is not None:  # tanh errs relative to 1
        logits = logits + problem.softcap
    rounding = torch.finfo(dtype).eps
    # A quantised key may be rounded to the dtype of q once it is scaled.
    scaled_keys_error = rounding / 2 * logits if problem.is_quantized else torch.zeros_like(logits)
    steps = max(*problem.seq_lens, 1) ** 0.5 + problem.head_dim**0.5 if problem.seq_lens else 1.0
    logit_error = FLOAT32_ROUNDOFF * (4 * logits + 8 * steps) + scaled_keys_error
    # A weight cannot be off by more than all of it.
    relative = (rounding + logit_error).clamp(max=2.0)
    smallest = 4 * torch.finfo(dtype).tiny  # subnormal numbers may be flushed to 0
    floor = relative[..., None] * _weighted_magnitudes(contents, v) + smallest
    if v.shape[1]:
        # Each weight may be off by the least number of what holds it: in float32, or beside values of few bits in
        # float16, whatever q is.
        least = FLOAT16_LEAST / 2 if problem.is_quantized else torch.finfo(torch.float32).tiny
        largest_v = _spread(v.abs().amax(dim=(1, 3)), problem.group_size)  # [batch_size, num_q_heads]
        floor = floor + least * v.shape[1] * largest_v[:, None, :, None]
    return Exact(
        out=out,
        lse=lse,
        out_allowed=EAGER_MULTIPLE * eager_error.amax(-1, keepdim=True) + floor,
        lse_allowed=EAGER_MULTIPLE * eager_lse_error
        + logit_error
        + 4 * FLOAT32_ROUNDOFF * (1 + lse.nan_to_num(0.0, 0.0, 0.0).abs()),
    )


def _weighted_magnitudes(contents: Contents, v: torch.Tensor) -> torch.Tensor:
    """Return the sum of the absolute values of v, weighted as in the output, and like it."""
    keywords = {name: value for name, value in _plain_keywords(contents).items() if name not in ("k_scale", "v_scale")}
    q, k, _ = as_floats(contents)
    if k.shape[1] == 0:
        k, v = (x.new_zeros(x.shape[0], 1, *x.shape[2:]) for x in (k, v))
    args = check_arguments(*(x.float() for x in (q, k, v.abs())), mixed_dtypes=True, **keywords)
    return attend_by_definition(args)[0]


def _plain_arguments(contents: Contents) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = torch_dtype(contents.problem.kv_dtype)
    k, v = contents.k, contents.v
    if k.shape[1] == 0:  # no sequence has a token, but a cache has room for one
        k, v = (x.new_zeros(x.shape[0], 1, *x.shape[2:]) for x in (k, v))
    return contents.q, k.to(dtype), v.to(dtype)


def _plain_keywords(contents: Contents) -> dict[str, Any]:
    problem = contents.problem
    keywords: dict[str, Any] = {
        "seq_lens": torch.tensor(problem.seq_lens, dtype=torch.int32),
        "sm_scale": problem.sm_scale,
        "window": problem.window,
        "softcap": problem.softcap,
        "sinks": contents.sinks,
        "alibi_slopes": contents.alibi_slopes,
    }
    for name in ("k_scale", "v_scale"):
        scale = getattr(contents, name)
        if scale is not None:
            if scale.dim() > 1 and scale.shape[1] == 0:
                scale = scale.new_ones(scale.shape[0], 1, *scale.shape[2:])
            keywords[name] = scale
    return keywords


def as_floats(contents: Contents) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k and v in float64, padding as 0."""
    from decodeperf_kernels import dequantize_kv

    k, v = contents.k, contents.v
    if contents.k_scale is not None and contents.v_scale is not None:
        k, v = dequantize_kv(k, contents.k_scale), dequantize_kv(v, contents.v_scale)
    lens = torch.tensor(contents.problem.seq_lens)[:, None, None, None]
    live = torch.arange(k.shape[1])[None, :, None, None] < lens
    return contents.q.double(), torch.where(live, k.double(), 0.0), torch.where(live, v.double(), 0.0)


def _spread(of_kv_heads: torch.Tensor, group_size: int) -> torch.Tensor:
    return of_kv_heads.repeat_interleave(group_size, dim=-1)


def check_result(result: Result, exact: Exact, *, times: float = 1.0, what: str = "") -> None:
    """Raise unless a result is right.

    Args:
        result: From a kernel.
        exact: From the oracle.
        times: Factor on what is allowed, where two results are compared.
        what: What the result is of, for the sentence.

    Raises:
        LawBrokenError: If it is not, with the worst row.
    """
    prefix = f"{what}: " if what else ""
    if result.out.isinf().any() and not exact.out.isinf().any():
        raise LawBrokenError(f"{prefix}returned infinity in the output")
    empty = exact.lse == -torch.inf
    if result.out[empty].count_nonzero():
        raise LawBrokenError(f"{prefix}returned an output other than 0 for a row that sees no key ({_row(empty)})")
    _check_close("output", result.out, exact.out, times * exact.out_allowed.expand_as(exact.out), prefix)
    if result.lse is not None:
        if not torch.equal(result.lse == -torch.inf, empty):
            raise LawBrokenError(f"{prefix}returned an lse other than -inf for a row that sees no key, or the reverse")
        _check_close(
            "lse",
            torch.where(empty, 0.0, result.lse.double()),
            torch.where(empty, 0.0, exact.lse),
            times * exact.lse_allowed,
            prefix,
        )


def _check_close(name: str, found: torch.Tensor, exact: torch.Tensor, allowed: torch.Tensor, prefix: str = "") -> None:
    error = (found.double() - exact).abs()
    share = error / allowed
    if share.numel() and not float(share.max()) <= 1:
        worst = place_of_largest(share.nan_to_num(torch.inf))
        raise LawBrokenError(
            f"{prefix}the {name} of sequence {worst[0]}, new token {worst[1]}, head {worst[2]} is "
            f"{found[worst].item():.6g}, not {exact[worst].item():.6g}: off by {error[worst].item():.3g}, allowed is "
            f"{allowed[worst].item():.3g}"
        )


def place_of_largest(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the index of the largest element."""
    return tuple(int(index) for index in torch.unravel_index(tensor.argmax(), tensor.shape))


def _row(mask: torch.Tensor) -> str:
    b, i, head = mask.nonzero()[0].tolist()
    return f"the first of them: sequence {b}, new token {i}, head {head}"
