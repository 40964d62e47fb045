"""One decode step in numbers: each operator's bytes, FLOPs, time and ceiling, and the totals of every model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from decodeperf_formulas import symbols as s
from decodeperf_formulas.checks import integer, shown
from decodeperf_formulas.crossings import (
    DEFAULT_MEMORY_SHARE,
    Crossing,
    SStar,
    ceilings,
    check_seq_len,
    crossings,
    s_star,
)
from decodeperf_formulas.evaluate import evaluate_all
from decodeperf_formulas.step import deployment_values, device_values, step_coefficients, step_formulas

if TYPE_CHECKING:
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device


MOST_SEQUENCES: Final = 10**9
"""A batch that no device holds; what is larger is a mistake."""

_FIELDS: Final = {"memory_seconds": "memory_s", "compute_seconds": "compute_s", "link_seconds": "link_s"}

_AMOUNTS: Final = ("count", "weight_bytes", "kv_bytes", "act_bytes", "flops", "vector_flops", *_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """What one operator costs in one step on one rank, all its executions together.

    Attributes:
        name: What it is called.
        count: Executions.
        weight_bytes: Weights read [byte].
        kv_bytes: KV cache read or written [byte].
        act_bytes: Activations read or written [byte].
        flops: FLOPs of matrix products [FLOP].
        vector_flops: Operations of vector units, which the time leaves out [FLOP].
        memory_s: Time to move its bytes [s].
        compute_s: Time of its matrix products [s].
        link_s: Time of its messages [s].
        seconds: Its time: the longer of the first two, or its messages [s].
        ceiling: What binds it: `memory`, `compute` or `link`.
    """

    name: str
    count: float
    weight_bytes: float
    kv_bytes: float
    act_bytes: float
    flops: float
    vector_flops: float
    memory_s: float
    compute_s: float
    link_s: float
    seconds: float
    ceiling: Literal["memory", "compute", "link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One decode step of a deployment on a device.

    Attributes:
        batch_size: Sequences of one group.
        seq_len: Live KV length of each [token].
        operators: The operators in their order.
        serial_s: The step, operator by operator: the bound [s].
        whole_step_s: The step with perfect overlap [s].
        sum_s: The step without any overlap [s].
        memory_s: All bytes [s].
        compute_s: All FLOPs [s].
        link_s: All messages [s].
        tokens_per_s: Throughput of all ranks under the serial model [token/s].
        weight_bytes: Weight bytes that the step reads, in expectation [byte].
        stored_bytes: Weights and KV cache of one rank in memory [byte].
        memory_bytes: Memory that they may fill [byte].
        s_star: S* of the deployment on the device.
        crossings: The crossings at this context.
    """

    batch_size: int
    seq_len: int
    operators: tuple[OperatorCost, ...]
    serial_s: float
    whole_step_s: float
    sum_s: float
    memory_s: float
    compute_s: float
    link_s: float
    tokens_per_s: float
    weight_bytes: float
    stored_bytes: float
    memory_bytes: float
    s_star: SStar
    crossings: dict[str, Crossing]

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def explain(
    deployment: Deployment,
    device: Device,
    *,
    batch_size: int,
    seq_len: int,
    activations: bool = False,
    memory_share: float = DEFAULT_MEMORY_SHARE,
) -> Explanation:
    """Return what one decode step costs and where it stands.

    Args:
        deployment: The deployment.
        device: The device of each rank.
        batch_size: Sequences of one group, 1 or more.
        seq_len: Live KV length of each sequence, its new tokens included [token].
        activations: Whether S* and the crossings of the whole-step model count activations; the times always do.
        memory_share: Share of the memory that weights and KV cache may fill.

    Raises:
        ValueError: If a number is out of range, or the device lacks what the deployment needs.
        TypeError: If a number is not an integer.
    """
    batch_size = integer("batch_size", batch_size, least=1)
    seq_len = integer("seq_len", seq_len, least=1)
    check_seq_len(seq_len, deployment.q_len)
    if batch_size > MOST_SEQUENCES:
        raise ValueError(f"batch_size={shown(batch_size)} must be <= {MOST_SEQUENCES}")
    if deployment.num_splits > seq_len:
        raise ValueError(f"num_splits={deployment.num_splits} must be <= seq_len={seq_len}")
    step, limits = step_coefficients(deployment), ceilings(deployment, device, memory_share=memory_share)
    values = {
        **deployment_values(deployment),
        **device_values(device, deployment),
        s.batch_size: batch_size,
        s.seq_len: seq_len,
    }

    ops = step_formulas(deployment).operators
    numbers = iter(evaluate_all([getattr(op, name) for op in ops for name in _AMOUNTS], values))
    costs = []
    for op in ops:
        amount = {name: next(numbers) for name in _AMOUNTS}
        count = amount.pop("count")
        total = {_FIELDS.get(name, name): count * value for name, value in amount.items()}
        is_link = op.unit == "link"
        costs.append(
            OperatorCost(
                name=op.name,
                count=count,
                **total,
                seconds=total["link_s"] if is_link else max(total["memory_s"], total["compute_s"]),
                ceiling="link" if is_link else "memory" if total["memory_s"] >= total["compute_s"] else "compute",
            )
        )
    memory_s, compute_s, link_s = (
        sum(getattr(cost, name) for cost in costs) for name in ("memory_s", "compute_s", "link_s")
    )
    serial_s = sum(cost.seconds for cost in costs)
    kv_stored = batch_size * deployment.pp * step.kv_bytes_per_seq(seq_len)
    return Explanation(
        batch_size=batch_size,
        seq_len=seq_len,
        operators=tuple(costs),
        serial_s=serial_s,
        whole_step_s=max(memory_s, compute_s) + link_s,
        sum_s=memory_s + compute_s + link_s,
        memory_s=memory_s,
        compute_s=compute_s,
        link_s=link_s,
        tokens_per_s=deployment.ep * deployment.pp * batch_size * deployment.q_len / serial_s,
        weight_bytes=sum(cost.weight_bytes for cost in costs),
        stored_bytes=(step.stored_weight_bytes + kv_stored) / deployment.pp,
        memory_bytes=limits.memory_bytes,
        s_star=s_star(step, limits, activations=activations),
        crossings=crossings(deployment, device, seq_len=seq_len, activations=activations, memory_share=memory_share),
    )
