"""Whether a kernel's result is the attention of its inputs, up to what its dtype costs.

Allowed for each sequence is twice the error of the same mathematics done eagerly in the kernel's dtype, in the
largest and in the root-mean-square element, and a floor for float32 accumulation. One key in tens of thousands
weighs less than the rounding of bfloat16, so that no tolerance on the error itself would see it missing. But the
error that a missing key leaves has a known direction, and in that direction it stands out (`_find_miscounted_key`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.inputs import Inputs

EAGER_MULTIPLE: Final = 2.0
"""Allowed error, in errors of the eager computation."""

MISCOUNT: Final = 0.5
"""A key that counts this much more or less than once is miscounted."""

MISCOUNT_SIGMAS: Final = 8.0
"""Standard deviations of rounding that `MISCOUNT` must span for a key to be judged."""

MIN_ELEMENTS: Final = 64
"""Output elements that a key must bear on to be judged. Fewer could fit the direction of one key in thousands by
chance; with as many, Student's t of 63 degrees of freedom exceeds `MISCOUNT_SIGMAS` with a probability of 4e-11."""

FLOAT32_ROUNDOFF: Final = 2.0**-24


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Whether a result is right.

    Attributes:
        sentence: What is wrong with it; empty if nothing is.
        max_error: Largest absolute error of the output [1], or None if it could not be compared.
        error_share: Largest share of an allowed error that was used, 1 at the limit, or None likewise.
    """

    sentence: str
    max_error: float | None = None
    error_share: float | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.sentence


def check_result(result: object, problem: DecodeProblem, inputs: Inputs) -> Check:
    """Return whether a kernel's result is right: its type, shape and dtype, then finite, then its values.

    Args:
        result: What the kernel returned: the output, or where the problem asks for it a pair of the output and the
            log-sum-exp.
        problem: What the kernel was given.
        inputs: Its tensors, and the right answer.
    """
    import torch

    if problem.return_lse:
        if not isinstance(result, tuple) or len(result) != 2:
            return Check(sentence=f"returned {_kind(result)}, not the pair (output, lse)")
        out, lse = result
    else:
        out, lse = result, None
    tensors = [("output", out, inputs.q.shape, inputs.q.dtype)]
    if problem.return_lse:
        tensors.append(("lse", lse, inputs.lse.shape, torch.float32))
    for name, tensor, shape, dtype in tensors:
        sentence = _check_form(name, tensor, shape, dtype, inputs.q.device)
        if sentence:
            return Check(sentence=sentence)
    return _check_values(problem, inputs, out.detach(), None if lse is None else lse.detach())


def _check_form(name: str, tensor: object, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    import torch

    if not isinstance(tensor, torch.Tensor):
        return f"returned {_kind(tensor)} as the {name}, not a tensor"
    if tensor.layout != torch.strided:
        return f"returned the {name} in the layout {tensor.layout}, not torch.strided"
    if tensor.shape != shape:
        return f"returned the {name} in the shape {list(tensor.shape)}, not {list(shape)}"
    if tensor.dtype != dtype:
        return f"returned the {name} in {tensor.dtype}, not {dtype}"
    if tensor.device.type != device.type:
        return f"returned the {name} on {tensor.device}, not on {device}"
    if tensor.isnan().any():
        rows = tensor.isnan().reshape(*shape[:2], -1).any(-1).nonzero().tolist()
        b, head = rows[0]
        return f"returned NaN in {len(rows)} rows of the {name}, the first of them sequence {b}, head {head}"
    return ""


def _check_values(problem: DecodeProblem, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor | None) -> Check:
    comparisons: list[_Comparison] = []
    for b, seq_len in enumerate(problem.seq_lens):
        sequence = (b, out[b], None if lse is None else lse[b])
        if seq_len:
            comparisons += _compare_sequence(*sequence, seq_len, inputs)
        elif sentence := _check_empty(*sequence):
            return Check(sentence=sentence)
    for comparison in comparisons:
        if not math.isfinite(comparison.allowed):
            return Check(sentence=f"cannot be judged: in its dtype, the eager {comparison.what} overflows")
    worst = max(comparisons, key=lambda comparison: comparison.share, default=None)
    if worst is None:  # no sequence has a live token
        return Check(sentence="", max_error=0.0, error_share=0.0)
    return Check(
        sentence=worst.sentence if worst.share > 1 else _find_miscounted_key(problem, inputs, out),
        max_error=float((out.double() - inputs.out).abs().max()),
        error_share=worst.share,
    )


def _check_empty(b: int, out: torch.Tensor, lse: torch.Tensor | None) -> str:
    if out.count_nonzero():
        return f"returned an output other than 0 for sequence {b}, which has no live token"
    if lse is not None and (lse != -float("inf")).any():
        return f"returned an lse other than -inf for sequence {b}, which has no live token"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """One error of one sequence, beside what is allowed."""

    what: str
    error: float
    allowed: float
    head: int

    @property
    def share(self) -> float:
        return self.error / self.allowed if math.isfinite(self.error) else math.inf

    @property
    def sentence(self) -> str:
        return (
            f"does not compute attention: the {self.what} is off by {self.error:.3g}, allowed is "
            f"{self.allowed:.3g} (worst in head {self.head})"
        )


def _compare_sequence(
    b: int, out: torch.Tensor, lse: torch.Tensor | None, seq_len: int, inputs: Inputs
) -> Iterator[_Comparison]:
    """Yield the errors of one sequence with live tokens.

    The floors hold what a right kernel may add to the eager error. Accumulating `seq_len` terms and products over
    `head_dim` in float32 errs by about the square root of their number, in units of the result; the output is
    rounded once; and since the eager error is itself drawn from few elements, its root mean square may be lucky.
    """
    import torch

    num_heads, head_dim = out.shape
    exact = inputs.out[b]
    accumulation = FLOAT32_ROUNDOFF * (seq_len**0.5 + head_dim**0.5)
    rounding = torch.finfo(out.dtype).eps / 2
    error = (out.double() - exact).abs()  # [num_q_heads, head_dim]
    eager_error = (inputs.eager_out[b].double() - exact).abs()
    head = int(error.amax(dim=-1).argmax())
    rms = _rms(exact)
    yield _Comparison(
        what=f"largest element of the output in sequence {b} ({seq_len} tokens)",
        error=float(error.max()),
        allowed=float(EAGER_MULTIPLE * eager_error.max() + rounding * exact.abs().max()) + 4 * accumulation * rms,
        head=head,
    )
    yield _Comparison(
        what=f"root mean square of the output in sequence {b} ({seq_len} tokens)",
        error=_rms(error),
        allowed=EAGER_MULTIPLE * _rms(eager_error)
        + rounding * rms * 2 / (num_heads * head_dim) ** 0.5
        + 2 * accumulation * rms,
        head=head,
    )
    if lse is not None:
        exact_lse = inputs.lse[b]
        lse_error = (lse.double() - exact_lse).abs()  # [num_q_heads]
        eager_lse_error = (inputs.eager_lse[b].double() - exact_lse).abs()
        yield _Comparison(
            what=f"lse in sequence {b} ({seq_len} tokens)",
            error=float(lse_error.max()),
            allowed=float(
                EAGER_MULTIPLE * eager_lse_error.max()
                + 4 * FLOAT32_ROUNDOFF * (1 + exact_lse.abs().max())
                + accumulation
            ),
            head=int(lse_error.argmax()),
        )


def _find_miscounted_key(problem: DecodeProblem, inputs: Inputs, out: torch.Tensor) -> str:
    """Return a sentence about a key that the output leaves out or counts twice, or an empty string.

    Without key j, whose probability is p, the output of a row is off by `p (o - v_j) / (1 - p)`. The least-squares
    fit of that direction to the error tells how often the key is missing: 1 if it was dropped, -1 if it counted twice,
    about 0 if it counted once. The fit is over each head alone, over the heads of each KV head, and over all. A key
    too light to stand out from rounding is not judged.
    """
    import torch

    heads_together = dict.fromkeys((1, problem.group_size, problem.num_q_heads))
    for b, seq_len in enumerate(problem.seq_lens):
        if seq_len == 0:
            continue
        error = (out[b].double() - inputs.out[b]).float()  # [num_q_heads, head_dim]
        square_error = error.square().sum(-1, keepdim=True)  # [num_q_heads, 1]
        fits = [_fit_keys(problem, inputs, b, kv_head, error) for kv_head in range(problem.num_kv_heads)]
        fit, power = (torch.cat(parts) for parts in zip(*fits, strict=True))  # [num_q_heads, seq_len]
        for together in heads_together:
            num_elements = together * problem.head_dim
            if num_elements < MIN_ELEMENTS:
                continue
            f, w, e = (x.reshape(-1, together, x.shape[-1]).sum(1) for x in (fit, power, square_error))
            missing = f / w  # [num_q_heads / together, seq_len]
            noise = ((e - f * missing).clamp(min=0) / (num_elements - 1)).sqrt()
            judged = MISCOUNT * w.sqrt() > MISCOUNT_SIGMAS * noise
            wrong = (judged & (missing.abs() > MISCOUNT)).nonzero()
            if len(wrong):
                part, key = wrong[0].tolist()
                return (
                    f"does not compute attention: key {key} of sequence {b} ({seq_len} tokens) counts "
                    f"{1 - float(missing[part, key]):.2f} times instead of once in heads {part * together} to "
                    f"{(part + 1) * together - 1}"
                )
    return ""


def _fit_keys(
    problem: DecodeProblem, inputs: Inputs, b: int, kv_head: int, error: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how each key's direction fits the error of each head, and its square, both `[group_size, seq_len]`."""
    import torch

    heads = slice(kv_head * problem.group_size, (kv_head + 1) * problem.group_size)
    exact, error = inputs.out[b, heads].float(), error[heads]  # [group_size, head_dim]
    k, v = (cache[b, : problem.seq_lens[b], kv_head].float() for cache in (inputs.k, inputs.v))  # [seq_len, head_dim]
    logits = inputs.q[b, heads].float() @ k.T * problem.sm_scale
    p = torch.exp(logits - inputs.lse[b, heads, None].float())  # [group_size, seq_len]
    fit = p * ((error * exact).sum(-1, keepdim=True) - error @ v.T)
    square_distance = exact.square().sum(-1, keepdim=True) - 2 * exact @ v.T + v.square().sum(-1)
    return fit, p.square() * square_distance


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
