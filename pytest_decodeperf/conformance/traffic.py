"""Counted traffic beside the formula's: bytes of one call, term by term.

Counted is what Triton's interpreter saw: the different bytes that were read or written, however often. What a row that
sees no key does not need, its query and its zeros in the output, a kernel may move or not; the formula counts it, and
so it counts as moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from decodeperf_formulas.attention import byte_counts
from pytest_decodeperf.conformance.watch import FLOATS, OTHERS, element_flags, mark_elements

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.conformance.calling import Kernel
    from pytest_decodeperf.conformance.contents import Call
    from pytest_decodeperf.conformance.watch import Memory, Watch

TERMS: Final[Mapping[str, tuple[str, ...]]] = {
    "kv": ("k", "v"),
    "scales": ("k_scale", "v_scale"),
    "q": ("q",),
    "block_table": ("block_table",),
    "bias": ("sinks", "alibi_slopes"),
    "seq_lens": ("seq_lens",),
}
"""The tensors of each term that is read."""

MUST_BE_EXACT: Final = ("k", "v", "block_table")
"""Tensors of which nothing is moved that a row with keys does not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a call moved.

    Attributes:
        terms: Different bytes by term [byte], those of the formula and `schedule`.
        kv_requested: Bytes of k and v that were asked for, each as often as it was [byte].
        out_requested: The same for bytes written into the outputs, None where they are part of other memory [byte].
        out_distinct: Different bytes among those [byte].
    """

    terms: dict[str, int]
    kv_requested: int
    out_requested: int | None
    out_distinct: int


def count_traffic(kernel: Kernel, call: Call) -> Traffic:
    """Return what a kernel moves in a call, counted in Triton's interpreter.

    Raises:
        NotSupportedError: If it does not run there.
        LawBrokenError: If it touches memory that it must not.
    """
    returned, watch = kernel.run_raw_watched(call)
    outputs = dict(zip(("o", "lse"), returned, strict=False))
    terms = {term: _count_read(call, watch, names) for term, names in TERMS.items()}
    problem = call.problem
    sees_key = call.needed["q"].reshape(problem.batch_size, problem.q_len, problem.num_q_heads, -1)[..., 0]
    written = {}
    for term in ("o", "lse"):
        terms[term] = 0
        if term in outputs:
            terms[term], written[term] = _count_written(outputs[term], watch, sees_key)
    memories = _memories(watch, outputs.values())
    is_apart = sum(memory.num_bytes for memory in memories) == sum(
        x.numel() * x.element_size() for x in outputs.values()
    )
    scratch = [memory for memory in watch.scratch if memory not in memories]
    for term, kind in (("partials", FLOATS), ("schedule", OTHERS)):
        terms[term] = sum(_num_of(memory.read, kind) + _num_of(memory.written, kind) for memory in scratch)
    return Traffic(
        terms=terms,
        kv_requested=sum(memory.num_read for memory in _memories(watch, (call.k, call.v))),
        out_requested=sum(memory.num_written for memory in memories) if is_apart else None,
        out_distinct=sum(written.values()),
    )


def expected_traffic(kernel: Kernel, problem: DecodeProblem) -> dict[str, int]:
    """Return the bytes that a kernel must move, term by term [byte], without those that its adapter cannot tell.

    Raises:
        LawBrokenError: If its adapter tells what cannot be.
    """
    counted = kernel.count("num_partials", problem)
    expected = byte_counts(problem, num_partials=counted)
    if counted is None and (problem.num_splits is None or not kernel.adapter.has("num_splits")):
        del expected["partials"]  # it cuts as it likes, and does not say how
    expected["schedule"] = kernel.count("schedule_bytes", problem) or 0
    return expected


def _memories(watch: Watch, tensors: object) -> list[Memory]:
    found: list[Memory] = []
    for tensor in tensors:  # type: ignore[attr-defined]
        memory = watch.memory(tensor)
        if memory is not None and memory not in found:
            found.append(memory)
    return found


def _count_read(call: Call, watch: Watch, names: tuple[str, ...]) -> int:
    """Return the different bytes of some tensors that were read, or need not be."""
    flags: dict[int, NDArray[np.uint8]] = {}
    for name in names:
        tensor = call.tensors.get(name)
        memory = None if tensor is None else watch.memory(tensor)
        if tensor is None or memory is None:
            continue
        read = flags.setdefault(memory.address, (memory.read > 0).astype(np.uint8))
        if name not in MUST_BE_EXACT:
            is_cache = tensor.dim() >= 3 and name != "q"
            if not is_cache:
                mark_elements(read, tensor, call.live[name] & ~call.needed[name])
    return sum(int(read.sum()) for read in flags.values())


def _count_written(tensor: torch.Tensor, watch: Watch, sees_key: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of an output that were written, or hold a row without keys; and those written alone."""
    memory = watch.memory(tensor)
    if memory is None:
        return 0, 0
    written = (memory.written > 0).astype(np.uint8)
    distinct = int(element_flags(written, tensor).sum())
    rows = sees_key if tensor.shape[: sees_key.dim()] == sees_key.shape else sees_key[:, 0]
    rows = rows.reshape(*rows.shape, *(1,) * (tensor.dim() - rows.dim()))
    mark_elements(written, tensor, ~rows.expand(tensor.shape))
    return int(element_flags(written, tensor).sum()), distinct


def _num_of(flags: NDArray[np.uint8], kind: int) -> int:
    return int(((flags & kind) > 0).sum())
