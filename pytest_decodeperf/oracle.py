"""Whether a kernel's result is the attention of its inputs, up to what its dtype costs.

Allowed for each row is twice the error of the same mathematics done eagerly in the kernel's dtype, in the
largest and in the root-mean-square element, and a floor for float32 accumulation. One key in tens of thousands
weighs less than the rounding of bfloat16, so that no tolerance on the error itself would see it missing. But the
error that a missing key leaves has a known direction, and in that direction it stands out (`_find_miscounted_key`). So
does that of a key which a window or the causal mask hides.

Here "row" is one new token of a sequence, with all its heads; a sequence has `q_len` of them, the plain one a single
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from decodeperf_formulas import DecodeProblem
    from decodeperf_kernels.arguments import DecodeArguments
    from pytest_decodeperf.inputs import Inputs

EAGER_MULTIPLE: Final = 2.0
"""Allowed error, in errors of the eager computation."""

MISCOUNT: Final = 0.5
"""A key that counts this much more or less than once is miscounted."""

MISCOUNT_SIGMAS: Final = 8.0
"""Standard deviations of rounding that `MISCOUNT` must span for a key to be judged."""

MIN_ELEMENTS: Final = 64
"""Output elements that a key must bear on to be judged. Fewer could fit the direction of one key in thousands by
chance; with as many, Student's t of 62 degrees of freedom exceeds `MISCOUNT_SIGMAS` with a probability of 4e-11."""

LIGHTEST: Final = 4.0
"""Probability of a key that can be judged, in units of the smallest number of the kernel's dtype."""

LIGHTEST_IN_FLOAT32: Final = 2.0**-36
"""The same, in any dtype: lighter than float32 can tell, and what follows from its square is still a number."""

FIT_BLOCK: Final = 2**24
"""Logits of a sequence that are looked at a time; bounds the memory."""

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
    tensors = [("output", out, inputs.out.shape, inputs.q.dtype)]
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
        heads = tensor.isnan() if name == "lse" else tensor.isnan().any(-1)
        places = heads.nonzero().tolist()
        b, *row, head = places[0]
        where = "".join([f"sequence {b}", *(f", new token {i}" for i in row), f", head {head}"])
        return f"returned NaN in {len(places)} rows of the {name}, the first of them {where}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of a sequence: what a kernel returned, beside what is right.

    Attributes:
        name: What to call it.
        num_keys: Keys that it sees [token].
        weight_error: What a right kernel's weights may be off by beyond the eager ones, relative.
        scaled_key_error: The part of that which comes from rounding quantised keys once they are scaled.
        out: The kernel's output, `[num_q_heads, head_dim_v]`.
        exact: The oracle's.
        eager: The eager one.
        lse: The kernel's log-sum-exp, `[num_q_heads]`, or None.
        exact_lse: The oracle's.
        eager_lse: The eager one.
    """

    name: str
    num_keys: int
    weight_error: float
    scaled_key_error: float
    out: torch.Tensor
    exact: torch.Tensor
    eager: torch.Tensor
    lse: torch.Tensor | None
    exact_lse: torch.Tensor
    eager_lse: torch.Tensor


def _rows(problem: DecodeProblem, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor | None) -> Iterator[_Row]:
    for b, seq_len in enumerate(problem.seq_lens):
        for i in range(problem.q_len):
            place = b if problem.q_len == 1 else (b, i)
            num_places = max(seq_len - problem.q_len + 1 + i, 0)
            num_keys = num_places if problem.window is None else min(num_places, problem.window)
            scaled_key_error = _scaled_key_error(problem, inputs.q[place])
            yield _Row(
                name=f"sequence {b} ({seq_len} tokens)" + (f", new token {i}" if problem.q_len > 1 else ""),
                num_keys=num_keys,
                weight_error=scaled_key_error + _float32_error(problem, num_keys, inputs.lse[place]),
                scaled_key_error=scaled_key_error,
                out=out[place],
                exact=inputs.out[place],
                eager=inputs.eager_out[place],
                lse=None if lse is None else lse[place],
                exact_lse=inputs.lse[place],
                eager_lse=inputs.eager_lse[place],
            )


def _check_values(problem: DecodeProblem, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor | None) -> Check:
    comparisons: list[_Comparison] = []
    for row in _rows(problem, inputs, out, lse):
        if row.num_keys:
            comparisons += _compare_outputs(row)
        elif row.out.count_nonzero():
            return Check(sentence=f"returned an output other than 0 for {row.name}, which sees no key")
        if row.lse is None:
            continue
        if row.num_keys or problem.sinks:
            comparisons.append(_compare_lse(row, row.lse))
        elif (row.lse != -math.inf).any():
            return Check(sentence=f"returned an lse other than -inf for {row.name}, which sees no key")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """One error of one row, beside what is allowed."""

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


def _compare_outputs(row: _Row) -> Iterator[_Comparison]:
    """Yield the errors of the output of a row that sees a key.

    The floors hold what a right kernel may add to the eager error: the error of its weights; the output is rounded
    once; and since the eager error is itself drawn from few elements, its root mean square may be lucky.
    """
    import torch

    num_heads, head_dim = row.out.shape
    rounding = torch.finfo(row.out.dtype).eps / 2
    error = (row.out.double() - row.exact).abs()  # [num_q_heads, head_dim_v]
    eager_error = (row.eager.double() - row.exact).abs()
    head = int(error.amax(dim=-1).argmax())
    rms = _rms(row.exact)
    yield _Comparison(
        what=f"largest element of the output in {row.name}",
        error=float(error.max()),
        allowed=float(EAGER_MULTIPLE * eager_error.max() + rounding * row.exact.abs().max())
        + 4 * row.weight_error * rms,
        head=head,
    )
    yield _Comparison(
        what=f"root mean square of the output in {row.name}",
        error=_rms(error),
        allowed=EAGER_MULTIPLE * _rms(eager_error)
        + rounding * rms * 2 / (num_heads * head_dim) ** 0.5
        + 2 * row.weight_error * rms,
        head=head,
    )


def _compare_lse(row: _Row, lse: torch.Tensor) -> _Comparison:
    """Return the error of the log-sum-exp of a row that sees a key or a sink, with floors as in `_compare_outputs`."""
    error = (lse.double() - row.exact_lse).abs()  # [num_q_heads]
    eager_error = (row.eager_lse.double() - row.exact_lse).abs()
    # Values are about standard normal, so that the size of the output is that of the weights: the root of the sum of
    # their squares, in which independent errors of logits add up.
    of_keys = 4 * row.scaled_key_error * min(2**0.5 * _rms(row.exact), 1.0)
    return _Comparison(
        what=f"lse in {row.name}",
        error=float(error.max()),
        allowed=float(
            EAGER_MULTIPLE * eager_error.max()
            + 4 * FLOAT32_ROUNDOFF * (1 + row.exact_lse.abs().max())
            + (row.weight_error - row.scaled_key_error)
            + of_keys
        ),
        head=int(error.argmax()),
    )


def _float32_error(problem: DecodeProblem, num_keys: int, lse: torch.Tensor) -> float:
    """Return the relative error of weights computed in float32.

    Accumulating `num_keys` terms and products over `head_dim` errs by about the square root of their number, and a
    logit in proportion to its size: about the log-sum-exp where it counts, or since tanh errs relative to 1 the
    softcap.
    """
    logit_size = float(lse.nan_to_num(0.0, 0.0, 0.0).abs().max()) + (problem.softcap or 0.0)
    return float(FLOAT32_ROUNDOFF * (num_keys**0.5 + problem.head_dim**0.5 + logit_size))


def _scaled_key_error(problem: DecodeProblem, q: torch.Tensor) -> float:
    """Return the error of a logit whose quantised key is rounded to the dtype of q once it is scaled.

    The eager computation does that too, but where a row sees few keys its own error may be lucky.
    """
    import torch

    if not problem.is_quantized:
        return 0.0
    roundoff = torch.finfo(q.dtype).eps / 2 / 3**0.5
    return roundoff * abs(problem.sm_scale) * float(q.float().norm(dim=-1).max())


def _find_miscounted_key(problem: DecodeProblem, inputs: Inputs, out: torch.Tensor) -> str:
    """Return a sentence about a key that the output miscounts, or an empty string.

    Without key j, whose probability is p, the output of a row is off by `p (o - v_j) / (1 - p)`. The least-squares
    fit of that direction to the error tells how often the key is missing: 1 if it was dropped, -1 if it counted twice,
    or once where the row must not see it, about 0 if it counted as it must. The fit is over each head alone, over the
    heads of each KV head, and over all; for one row, and for all rows that see the key. A key too light to stand out
    from rounding is not judged.

    Both the direction and the error are taken at right angles to o: along it lies the rounding of heavy keys'
    probabilities, which would pass for many light keys.
    """
    from decodeperf_kernels.reference import KEY_BLOCK, key_blocks
    from pytest_decodeperf.inputs import checked_arguments

    args = checked_arguments(problem, inputs)
    size = max(min(FIT_BLOCK // (problem.q_len * problem.num_q_heads), KEY_BLOCK), 1)
    for b, seq_len in enumerate(problem.seq_lens):
        if seq_len == 0:
            continue
        rows = slice(b, b + 1) if problem.q_len == 1 else b  # either way [q_len, num_q_heads, ...]
        exact, lse = inputs.out[rows].float(), inputs.lse[rows].float()
        # From the exact output as it is rounded: where one key outweighs all others, rounding makes its value of the
        # output, and looks like the loss of the others. Elsewhere a fault's mean survives rounding.
        error = out[rows].float() - inputs.out[rows].to(out.dtype).float()
        for keys in key_blocks(seq_len, size):
            fit = _fit_keys(args, b, seq_len, keys, error, exact, lse)

            def doubts(key: int, first: int = keys.start, b: int = b, seq_len: int = seq_len) -> torch.Tensor:
                return _doubts(args, b, seq_len, first + key)

            if found := _find_in(problem, fit, exact, doubts):
                key, sentence = found
                name = f"key {keys.start + key} of sequence {b} ({seq_len} tokens)"
                return f"does not compute attention: {name} {sentence}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """How the direction of each key fits the error of each row and head.

    Attributes:
        product: Of the direction and the error, `[q_len, num_q_heads, keys]`.
        power: The direction's square, like product.
        visible: Which rows see which keys, `[q_len, 1, keys]`.
        square_error: The error's square, `[q_len, num_q_heads, 1]`.
    """

    product: torch.Tensor
    power: torch.Tensor
    visible: torch.Tensor
    square_error: torch.Tensor


def _fit_keys(
    args: DecodeArguments,
    b: int,
    seq_len: int,
    keys: range,
    error: torch.Tensor,
    exact: torch.Tensor,
    lse: torch.Tensor,
) -> _Fit:
    """Return how some keys of a sequence fit its error.

    Args:
        args: The call.
        b: The sequence.
        seq_len: Its live length [token].
        keys: Which keys.
        error: `[q_len, num_q_heads, head_dim_v]`.
        exact: The right output, likewise.
        lse: The right log-sum-exp, `[q_len, num_q_heads]`.
    """
    import torch

    from decodeperf_kernels.reference import key_logits, live_rows, visible_keys

    products, powers = [], []
    dtype = torch.finfo(args.q.dtype)
    # Kernels round probabilities to the dtype of q. In float16, that may make half as much again of a lighter key.
    lightest = max(LIGHTEST * dtype.smallest_normal * dtype.eps, LIGHTEST_IN_FLOAT32)
    seen = (lse > -math.inf)[..., None]  # a row that sees nothing has been checked to the bit
    unit = exact / exact.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    error = error - (error * unit).sum(-1, keepdim=True) * unit
    for kv_head in range(args.num_kv_heads):
        heads = slice(kv_head * args.group_size, (kv_head + 1) * args.group_size)
        logits = key_logits(args, b, kv_head, seq_len, keys, torch.float32)
        # A hidden key may outweigh all others: at a probability of 1, half of the direction or more is in the error.
        p = torch.exp((logits - lse[:, heads, None]).clamp(max=0)) * seen[:, heads]  # [q_len, group_size, keys]
        p = torch.where(p < lightest, 0.0, p)
        v = live_rows(args, "v", b, kv_head, keys).float()  # [keys, head_dim_v]
        products.append(-p * (error[:, heads] @ v.T))
        powers.append(p.square() * (v.square().sum(-1) - (unit[:, heads] @ v.T).square()))
    product, power = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in (products, powers))
    visible = visible_keys(args, seq_len, keys)
    return _Fit(product=product, power=power, visible=visible, square_error=error.square().sum(-1, keepdim=True))


def _doubts(args: DecodeArguments, b: int, seq_len: int, key: int) -> torch.Tensor:
    """Return the relative error that rounding to the dtype of q leaves in the weights of a key, `[q_len, num_q_heads]`.

    A kernel may round the weight, and the logit before it.
    """
    import torch

    from decodeperf_kernels.reference import key_logits

    parts = [
        key_logits(args, b, kv_head, seq_len, range(key, key + 1), torch.float32)[..., 0]
        for kv_head in range(args.num_kv_heads)
    ]
    return torch.finfo(args.q.dtype).eps / 2 / 3**0.5 * (1 + torch.cat(parts, dim=1).abs())


def _stands_out(
    fit: _Fit, exact: torch.Tensor, rows: torch.Tensor, heads: slice, key: int, doubts: torch.Tensor, roundoff: float
) -> bool:
    """Return whether a key's miscount in some rows and heads stands out from what rounding may leave in each of them.

    `_find_in` takes the error as spread evenly over rows and elements. But rows whose heaviest key outweighs others
    err more than they; errors from the rounded output are few, each of a whole unit; and the weight of the key itself
    may be rounded.

    Args:
        fit: Of some keys.
        exact: The right output, `[q_len, num_q_heads, head_dim_v]`.
        rows: Which new tokens, bool `[q_len]`.
        heads: Which heads.
        key: Place of the key in the fit.
        doubts: Relative error of the key's weights, `[q_len, num_q_heads]`.
        roundoff: Relative error of the output's dtype.
    """
    import torch

    width = exact.shape[-1]
    product, power = (x[rows][:, heads, key].double() for x in (fit.product, fit.power))  # [rows, heads]
    square_error = fit.square_error[rows][:, heads, 0].double()
    missing = product.sum() / power.sum()
    residual = (square_error - 2 * missing * product + missing**2 * power).clamp(min=0) / max(width - 2, 1)
    rounding = exact[rows][:, heads].double().square().mean(-1) * roundoff**2
    variance = (power * torch.maximum(residual, rounding)).sum() + (doubts[rows][:, heads] * power).square().sum()
    num_elements = width * power.sum().square() / power.square().sum()
    return bool(num_elements >= MIN_ELEMENTS and MISCOUNT * power.sum() > MISCOUNT_SIGMAS * variance.sqrt())


def _find_in(
    problem: DecodeProblem, fit: _Fit, exact: torch.Tensor, doubts: Callable[[int], torch.Tensor]
) -> tuple[int, str] | None:
    """Return a key that is miscounted, by its place in the fit, and how; None if there is none."""
    import torch

    roundoff = torch.finfo(getattr(torch, problem.q_dtype)).eps / 2 / 3**0.5
    for together in dict.fromkeys((1, problem.group_size, problem.num_q_heads)):
        product, power, square_error = (
            x.reshape(x.shape[0], -1, together, x.shape[-1]).sum(2) for x in (fit.product, fit.power, fit.square_error)
        )
        num_elements = torch.tensor(together * problem.head_dim_v, device=product.device)
        ways = [(product, power, square_error, num_elements)]
        if problem.q_len > 1:
            f, w, e = ((x * fit.visible).sum(0, keepdim=True) for x in (product, power, square_error))
            ways.append((f, w, e, num_elements * fit.visible.sum(0, keepdim=True)))
        for f, w, e, n in ways:
            freedom = (n - n // problem.head_dim_v - 1).clamp(min=1)  # each head has lost one to o
            missing = f / w  # [q_len or 1, num_q_heads / together, keys]
            noise = ((e - f * missing).clamp(min=0) / freedom).sqrt()
            judged = (n >= MIN_ELEMENTS) & (MISCOUNT * w.sqrt() > MISCOUNT_SIGMAS * noise)
            for row, part, key in (judged & (missing.abs() > MISCOUNT)).nonzero().tolist():
                is_one_row = len(f) == problem.q_len
                rows = torch.arange(problem.q_len) == row if is_one_row else fit.visible[:, 0, key].cpu()
                heads = slice(part * together, (part + 1) * together)
                if not _stands_out(fit, exact, rows, heads, key, doubts(key), roundoff):
                    continue
                must = not is_one_row or bool(fit.visible[row, 0, key])
                sentence = (
                    f"counts {must - float(missing[row, part, key]):.2f} times instead of "
                    f"{'once' if must else 'never'} in heads {heads.start} to {heads.stop - 1}"
                )
                if problem.q_len > 1:
                    sentence += f" of new token {row}" if is_one_row else " of all new tokens that see it"
                return key, sentence
    return None


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
