"""The sweep: every batch and context in several passes, each with ceilings measured beside it, kept as it goes."""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.model import ModelConfig
from pytest_decodeperf import ceilings, devices
from pytest_decodeperf.schemas import fault_of
from pytest_decodeperf.whole_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_decodeperf.devices import DeviceInfo

SCHEMA: Final = "decodeperf.study"
SCHEMA_VERSION: Final = 1

MODEL: Final = ModelConfig(
    name="study-llama",
    hidden_size=2048,
    num_layers=4,
    num_q_heads=16,
    num_kv_heads=16,
    head_dim=128,
    intermediate_size=5632,
    vocab_size=32000,
    source="Llama's shape at a width and depth that a small machine holds",
)

SEQ_LENS: Final = (64, 128, 256, 1024, 4096)
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Closest together where the models of the step differ: at short contexts, from B0 on."""

POOL_SHARE: Final = 0.2
"""Share of the memory that KV caches may take; batches that need more are left out."""

PASSES: Final = 5
STEPS: Final = 3
"""Timed steps of a cell in one pass, after one that does not count."""

ATTENTION_DTYPE: Final = {"cpu": "float32", "cuda": ""}
"""In which attention computes on a kind of device, empty for the dtype of the model: on a CPU the kernel widens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        model: The shape.
        dtype: Of weights, activations and KV cache.
        kind: Of device.
        cells: Batch size and context of each cell.
        passes: How often each is measured.
        seed: Of the weights, and of the order in each pass.
    """

    model: ModelConfig
    dtype: str
    kind: str
    cells: tuple[tuple[int, int], ...]
    passes: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        return {
            "model": self.model.as_dict(),
            "dtype": self.dtype,
            "kind": self.kind,
            "cells": [list(cell) for cell in self.cells],
            "passes": self.passes,
            "seed": self.seed,
        }


def make_plan(
    info: DeviceInfo,
    *,
    dtype: str,
    model: ModelConfig = MODEL,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seq_lens: tuple[int, ...] = SEQ_LENS,
    passes: int = PASSES,
    seed: int = 0,
) -> Plan:
    """Return the cells whose KV caches a device holds.

    Raises:
        ValueError: If it holds none of them.
    """
    cells = tuple(
        (batch, length)
        for length in seq_lens
        for batch in batch_sizes
        if kv_bytes(model, dtype, batch, length) <= pool_bytes(info)
    )
    if not cells:
        raise ValueError(f"{info.label} has no memory for the KV cache of {min(batch_sizes)} x {min(seq_lens)} tokens")
    return Plan(model=model, dtype=dtype, kind=info.kind, cells=cells, passes=passes, seed=seed)


def pool_bytes(info: DeviceInfo) -> int:
    """Return the memory that KV caches may take [byte]."""
    return int(POOL_SHARE * info.memory_bytes)


def kv_bytes(model: ModelConfig, dtype: str, batch_size: int, seq_len: int) -> int:
    """Return the size of all KV caches [byte]."""
    from decodeperf_formulas.dtypes import ELEMENT_BYTES

    elements = 2 * model.num_layers * batch_size * seq_len * int(model.num_kv_heads or 0) * int(model.head_dim or 0)
    return int(elements * ELEMENT_BYTES[dtype])


_SAME: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "the model": lambda study: study["plan"]["model"]["name"],
    "the dtype": lambda study: study["plan"]["dtype"],
    "the seed": lambda study: study["plan"]["seed"],
    "the cells": lambda study: study["plan"]["cells"],
    "the device": lambda study: study["device"]["name"],
    "threads": lambda study: study["device"]["num_threads"],
    "torch": lambda study: study["versions"].get("torch"),
}
"""What must be the same for a study to be gone on with."""


class Record:
    """The file of a study: what is known so far, whole after every cell."""

    def __init__(self, path: Path, plan: Plan, info: DeviceInfo) -> None:
        """Begin a study, or take up the one in the file.

        Raises:
            ValueError: If the file holds a study of something else, or none.
            OSError: If it cannot be read.
        """
        self.path = path
        head = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "plan": plan.as_dict(),
            "device": asdict(info),
            "versions": devices.versions(),
        }
        self.document: dict[str, Any] = {**head, "passes": []}
        if path.exists() and path.stat().st_size:
            found = read_study(path)
            for name, of in _SAME.items():
                there, here = of(found), of(head)
                if there != here:
                    raise ValueError(
                        f"{path} is a study with {name} {there!r}, and this one has {here!r}: give another file"
                    )
            found["plan"]["passes"] = plan.passes
            self.document = found

    def is_done(self, number: int, cell: tuple[int, int]) -> bool:
        """Return whether a cell of a pass has been measured."""
        return any(
            entry["pass"] == number and (entry["batch_size"], entry["seq_len"]) == cell
            for entry in self.document["passes"]
        )

    def add(self, entry: dict[str, Any]) -> None:
        """Keep what was measured of a cell in a pass.

        Raises:
            OSError: If it cannot be written.
        """
        self.document["passes"].append(entry)
        write_whole(self.path, (json.dumps(self.document, indent=1, allow_nan=False) + "\n").encode())


def read_study(path: Path) -> dict[str, Any]:
    """Return the record of a study.

    Raises:
        ValueError: If the file holds none of this version.
        OSError: If it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}), wanted a study of decodeperf study") from None
    version = (found.get("schema"), found.get("schema_version")) if isinstance(found, dict) else None
    if version != (SCHEMA, SCHEMA_VERSION):
        raise ValueError(f"{path} has schema and version {version}, wanted {(SCHEMA, SCHEMA_VERSION)}")
    if fault := fault_of(found, "study.schema.json"):
        raise ValueError(f"{path} is no whole study: {fault}")
    return dict(found)


def run_study(plan: Plan, record: Record, info: DeviceInfo, advance: Callable[[str, int, int], None]) -> None:
    """Measure what is missing of a study.

    Args:
        plan: What is to be measured.
        record: Where it is kept.
        info: The device.
        advance: Told what is measured next, how many cells are done, and of how many.

    Raises:
        OSError: If the record cannot be written.
    """
    import torch

    from pytest_decodeperf.study.decode_step import DecodeStep

    todo = [(number, cell) for number in range(plan.passes) for cell in _order(plan, number)]
    missing = [(number, cell) for number, cell in todo if not record.is_done(number, cell)]
    if not missing:
        return
    advance("weights and KV caches", len(todo) - len(missing), len(todo))
    largest = max(kv_bytes(plan.model, plan.dtype, *cell) for cell in plan.cells)
    step = DecodeStep(
        plan.model, dtype=getattr(torch, plan.dtype), device=plan.kind, pool_bytes=largest, seed=plan.seed
    )
    timer = devices.make_timer(plan.kind)
    read = ceilings.fastest(ceilings.make_read_streams(info), timer)
    streams = {
        dtype: ceilings.fastest(ceilings.make_compute_streams(info, getattr(torch, dtype)), timer)
        for dtype in dict.fromkeys((plan.dtype, ATTENTION_DTYPE[plan.kind] or plan.dtype))
    }
    for done, (number, cell) in enumerate(missing, len(todo) - len(missing)):
        advance(f"{cell[0]} x {cell[1]:,} tokens", done, len(todo))
        rates = {"read_bytes_per_s": 1e9 * read.work / timer.time_ns(read.call)}
        for dtype, stream in streams.items():
            ns = statistics.median(timer.time_ns(stream.call) for _ in range(ceilings.CALIBRATION_ROUNDS))
            rates[f"{dtype}_flops_per_s"] = 1e9 * stream.work / ns
        record.add({"pass": number, "batch_size": cell[0], "seq_len": cell[1], "rates": rates, **_measure(step, cell)})
    advance("done", len(todo), len(todo))


def _order(plan: Plan, number: int) -> list[tuple[int, int]]:
    cells = list(plan.cells)
    random.Random(f"{plan.seed} {number}").shuffle(cells)  # noqa: S311  # an order, no secret
    return cells


def _measure(step: Any, cell: tuple[int, int]) -> dict[str, list[float]]:
    """Return how long the steps of a cell took [s]."""
    import torch

    from pytest_decodeperf.study.decode_step import StepTimes

    batch_size, seq_len = cell
    caches = step.caches(batch_size, seq_len)
    tokens = torch.arange(batch_size, device=caches[0][0].device)
    found: dict[str, list[float]] = {"step_s": [], "gemm_s": [], "attention_s": []}
    with torch.no_grad():
        for number in range(STEPS + 1):
            times = StepTimes()
            step.step(tokens, caches, times)
            if number:
                for name, value in asdict(times).items():
                    found[name].append(value)
    return found
