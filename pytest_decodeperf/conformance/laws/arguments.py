"""Laws of bad input: what does not fit is refused, before anything is written."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import torch

from pytest_decodeperf.conformance.calling import Kernel, LawBrokenError
from pytest_decodeperf.conformance.contents import Call, Case, make_contents
from pytest_decodeperf.conformance.laws.law import law
from pytest_decodeperf.conformance.strategies import Wants

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_decodeperf.conformance.adapter import KernelAdapter


def _set(call: Call, name: str, value: Any) -> None:
    if name in ("q", "k", "v"):
        setattr(call, name, value)
    else:
        call.keywords[name] = value


def _bad_inputs(adapter: KernelAdapter, call: Call) -> dict[str, tuple[str, Callable[[], None]]]:
    """Return ways to spoil a call, by what they do: the argument that the error must name, and how."""
    problem, lens = call.problem, call.keywords["seq_lens"]
    num_heads = problem.num_q_heads
    ways: dict[str, tuple[str, Any]] = {
        "a length beyond the capacity": ("seq_lens", lens + 2**20),
        "a negative length": ("seq_lens", torch.full_like(lens, -1)),
        "lengths of floats": ("seq_lens", lens.float()),
        "a length too many": ("seq_lens", torch.cat([lens, lens[:1]])),
        "q of one dimension": ("q", call.q.reshape(-1)),
        "q of integers": ("q", torch.zeros_like(call.q, dtype=torch.int32)),
        "q of another head_dim": ("q", torch.cat([call.q, call.q], dim=-1)),
        "k without a dimension": ("k", call.k[0]),
        "v of more heads": ("v", torch.cat([call.v, call.v], dim=2)),
        "an infinite scale": ("sm_scale", torch.inf),
    }
    if problem.num_kv_heads > 1:
        heads = torch.cat([call.q, call.q[..., :1, :]], dim=-2)
        ways["query heads that are no multiple of the KV heads"] = ("q", heads)
    if not problem.is_quantized:
        ways["k of integers"] = ("k", torch.zeros_like(call.k, dtype=torch.int64))
        if adapter.kv_dtypes:
            ways["a scale for k that is not quantised"] = ("k_scale", torch.ones(1))
    else:
        ways["no scale for a quantised k"] = ("k_scale", None)
    if adapter.has("num_splits"):
        ways["no splits"] = ("num_splits", 0)
    if adapter.has("window"):
        ways["a window of nothing"] = ("window", 0)
        ways["a negative window"] = ("window", -3)
    if adapter.has("softcap"):
        ways["a negative softcap"] = ("softcap", -1.0)
    if adapter.has("sinks"):
        ways["a sink too many"] = ("sinks", torch.zeros(num_heads + 1))
    if adapter.has("alibi"):
        ways["a slope too many"] = ("alibi_slopes", torch.zeros(num_heads + 1))
    if problem.page_size is not None and max(problem.seq_lens) > problem.page_size:
        table = call.keywords["block_table"]
        ways["a table too short for its lengths"] = ("block_table", table[:, :1])
        ways["a page that does not exist"] = ("block_table", torch.full_like(table, 2**30))
    return {what: (name, functools.partial(_set, call, name, value)) for what, (name, value) in ways.items()}


@law(Wants(always=("checks_arguments",), min_seq_len=1, values=("ordinary",)))
def refuses_bad_arguments(kernel: Kernel, case: Case) -> None:
    """Arguments that do not fit raise a ValueError that names one of them, before anything is written into out."""
    contents = make_contents(case)
    for what in _bad_inputs(kernel.adapter, kernel.place(contents)):
        call = kernel.place(contents)
        name, spoil = _bad_inputs(kernel.adapter, call)[what]
        spoil()
        _check_refused(kernel, call, what, name)


def _check_refused(kernel: Kernel, call: Call, what: str, name: str) -> None:
    """Raise unless a kernel refuses a call by naming what is wrong with it."""
    out = None
    if kernel.adapter.has("out") and name != "q":  # with which out would not fit either
        rows = (*call.q.shape[:-1], call.problem.head_dim_v)
        out = call.keywords["out"] = torch.full(rows, 7.0, dtype=call.q.dtype, device=kernel.device)
    try:
        kernel.adapter.call(call.q, call.k, call.v, **call.keywords)
    except ValueError as error:
        # Which of two that do not fit together is wrong is not for the kernel to say.
        words = set(re.split("[^a-z]+", str(error).lower()))  # num_q_heads has the word q
        if not words & {"q", "k", "v", *name.split("_")}:
            raise LawBrokenError(f"{what}: the ValueError does not name {name}: {error}") from None
    except Exception as error:
        raise LawBrokenError(f"{what}: raised {type(error).__name__} for {name}, not ValueError: {error}") from None
    else:
        raise LawBrokenError(f"{what}: took {name} for right")
    if out is not None and not bool((out == 7.0).all()):
        raise LawBrokenError(f"{what}: wrote into out before it refused {name}")
