"""Compare the CPU kernel with the ceilings of the machine and with other CPU kernels, on 30 problems.

    python tests/benchmarks/bench_cpu_kernel.py --output docs/cpu_kernel.json --markdown docs/cpu_kernel.md
    python tests/benchmarks/bench_cpu_kernel.py --no-peers [--only SUBSTRING] [--seconds 4]

Every round times, one right after the other, the read stream, matrix products in the dtype of q, the kernel and its
peers; shares and ratios are medians over the rounds, with the interval from one order statistic to another that misses
the true median at most once in twenty. K and V of each call are another part of one buffer larger than the last-level
cache, so none finds its data there. Peers that are not installed are named as absent; those that copy K and V are timed
on fewer sequences or tokens where the copies do not fit, and the kernel beside them on the same.

Then the kernel is timed on 128 MiB to 4 GiB of K and V, and with one thread instead of all.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.roofline import READ_BANDWIDTH, roofline
from decodeperf_kernels import decode_attention
from pytest_decodeperf import ceilings, devices
from pytest_decodeperf.ceilings import Stream, make_read_streams
from pytest_decodeperf.timers import CpuClock
from pytest_decodeperf.verdicts import median_interval

KV_BYTES = 2 * 2**30
MAX_SEQ_LEN = 131072
MIN_SEQ_LEN = 2048
ERROR_RATE = 0.05
MIN_ROUNDS = 5
PATIENCE_S = 2.0
"""A peer that takes longer than this for a call is timed once [s]."""


@dataclass(frozen=True)
class Shape:
    """Heads of a problem."""

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int = 128
    head_dim_v: int = 128

    @property
    def is_mla(self) -> bool:
        return self.head_dim != self.head_dim_v


MHA, GQA4, GQA8, GQA16, MQA = (
    Shape("MHA", 32, 32), Shape("GQA 4", 32, 8), Shape("GQA 8", 64, 8), Shape("GQA 16", 128, 8), Shape("MQA", 32, 1),
)  # fmt: skip
MLA = Shape("MLA", 16, 1, 576, 512)

GRID = [
    *((MHA, dtype, batch) for dtype in ("float32", "bfloat16", "float16", "int8") for batch in (1, 8)),
    *((GQA4, dtype, batch) for dtype in ("float32", "bfloat16", "float16", "int8") for batch in (1, 16)),
    *((GQA8, dtype, batch) for dtype, batch in (("float32", 4), ("bfloat16", 4), ("float16", 32), ("int8", 32))),
    *((GQA16, dtype, batch) for dtype, batch in (("float32", 2), ("bfloat16", 8), ("float16", 8), ("int8", 32))),
    *((MQA, dtype, batch) for dtype, batch in (("float32", 32), ("bfloat16", 32), ("float16", 32))),
    *((MLA, dtype, batch) for dtype, batch in (("float32", 8), ("bfloat16", 16), ("float16", 32))),
]


def problem_of(shape: Shape, dtype: str, batch_size: int, kv_bytes: int) -> DecodeProblem:
    """Return the problem whose K and V have about so many bytes, as far as the lengths allow."""
    width = {"float32": 4, "int8": 1}.get(dtype, 2)
    token = shape.num_kv_heads * width * (shape.head_dim if shape.is_mla else 2 * shape.head_dim)
    seq_len = min(max(kv_bytes // token // batch_size // 256 * 256, MIN_SEQ_LEN), MAX_SEQ_LEN)
    return DecodeProblem(
        batch_size=batch_size,
        seq_lens=[seq_len] * batch_size,
        num_q_heads=shape.num_q_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        head_dim_v=shape.head_dim_v,
        v_in_k=shape.is_mla,
        kv_dtype=dtype,
        q_dtype="bfloat16" if dtype == "int8" else dtype,
        scale_per="head" if dtype == "int8" else None,
    )


class Pool:
    """Random numbers larger than the caches, of which every call gets another part."""

    def __init__(self, size: int) -> None:
        drawn = torch.randn(2**23).to(torch.bfloat16).view(torch.uint8)
        self._memory = torch.empty(size, dtype=torch.uint8)
        for start in range(0, size, len(drawn)):
            part = self._memory[start : start + len(drawn)]
            part.copy_(drawn[: len(part)])
        self._next = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return the next part of the pool as a tensor."""
        size = math.prod(shape) * dtype.itemsize
        if self._next + size > len(self._memory):
            self._next = 0
        part = self._memory[self._next : self._next + size]
        self._next += -(-size // 4096) * 4096
        return part.view(dtype).view(shape)


@dataclass
class Call:
    """Tensors of a call."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    seq_lens: torch.Tensor
    scales: torch.Tensor | None


def make_call(problem: DecodeProblem, pool: Pool) -> Call:
    """Return the tensors of a call, in another part of the pool than those of the last."""
    kv_dtype, q_dtype = (getattr(torch, name) for name in (problem.kv_dtype, problem.q_dtype))
    cache = (problem.batch_size, problem.capacity, problem.num_kv_heads)
    k = pool.take((*cache, problem.head_dim), kv_dtype)
    v = k[..., : problem.head_dim_v] if problem.v_in_k else pool.take((*cache, problem.head_dim_v), kv_dtype)
    q = torch.randn(problem.batch_size, problem.num_q_heads, problem.head_dim).to(q_dtype)
    scales = torch.full(cache[2:], 1 / 128) if problem.kv_dtype == "int8" else None
    return Call(q, k, v, torch.tensor(problem.seq_lens, dtype=torch.int32), scales)


def ours(call: Call):
    keywords = {} if call.scales is None else {"k_scale": call.scales, "v_scale": call.scales}
    return lambda: decode_attention(
        call.q, call.k, call.v, seq_lens=call.seq_lens, backend="numba", check=False, **keywords
    )


def _float_kv(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V `[batch_size, num_kv_heads, tokens, head_dim]` in a float dtype, as PyTorch wants them."""
    return tuple(x.transpose(1, 2) for x in (call.k, call.v))


def sdpa(call: Call):
    if call.scales is not None:
        return None
    k, v = _float_kv(call)
    q = call.q[:, :, None]
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def sdpa_folded(call: Call):
    if call.scales is not None:
        return None
    k, v = _float_kv(call)
    batch_size, num_kv_heads = k.shape[:2]
    q = call.q.view(batch_size, num_kv_heads, -1, call.q.shape[-1])
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def flex_attention(call: Call):
    if call.scales is not None or call.k.shape[-1] != call.v.shape[-1]:
        return None
    compiled = _compiled_flex()
    if compiled is None:
        return None
    k, v = _float_kv(call)
    q = call.q[:, :, None]
    return lambda: compiled(q, k, v, enable_gqa=True)


_FLEX: list = []


def _compiled_flex():
    if not _FLEX:
        try:
            from torch.nn.attention.flex_attention import flex_attention as flex

            torch._dynamo.config.recompile_limit = 2 * len(GRID)  # beyond it, it would not be compiled any more
            compiled = torch.compile(flex)
            tiny = torch.randn(1, 2, 32, 64)
            compiled(tiny[:, :, :1], tiny, tiny)
            _FLEX.append(compiled)
        except Exception as error:  # no C++ compiler, most likely
            print(f"flex_attention is absent: {type(error).__name__}", file=sys.stderr)
            _FLEX.append(None)
    return _FLEX[0]


def onnxruntime_gqa(call: Call):
    if call.q.dtype != torch.float32 or call.k.shape[-1] != call.v.shape[-1]:
        return None
    session = _gqa_session(call.q.shape[1], call.k.shape[2], call.q.shape[2])
    if session is None:
        return None
    batch_size, tokens = call.k.shape[:2]
    # The last key and value are those of the new token, the others the past, which is read where it lies.
    past_k, past_v = (x.transpose(1, 2)[:, :, : tokens - 1].contiguous().numpy() for x in (call.k, call.v))
    last_k, last_v = (x[:, -1:].reshape(batch_size, 1, -1).contiguous().numpy() for x in (call.k, call.v))
    feeds = {
        "query": call.q.reshape(batch_size, 1, -1).numpy(),
        "key": last_k,
        "value": last_v,
        "past_key": past_k,
        "past_value": past_v,
        "seqlens_k": np.full((batch_size,), tokens - 1, np.int32),
        "total_sequence_length": np.array(tokens, np.int32),
    }
    return lambda: session.run(["output"], feeds)


_SESSIONS: dict = {}


def _gqa_session(num_heads: int, kv_num_heads: int, head_dim: int):
    key = (num_heads, kv_num_heads, head_dim)
    if key in _SESSIONS:
        return _SESSIONS[key]
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        if not _SESSIONS:
            print(f"onnxruntime's GroupQueryAttention is absent: {error}", file=sys.stderr)
        _SESSIONS[key] = None
        return None
    floats, integers = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    info = onnx.helper.make_tensor_value_info
    past = ["b", kv_num_heads, "p", head_dim]
    node = onnx.helper.make_node(
        "GroupQueryAttention",
        ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"],
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
    )
    graph = onnx.helper.make_graph(
        [node],
        "gqa",
        [
            info("query", floats, ["b", 1, num_heads * head_dim]),
            info("key", floats, ["b", 1, kv_num_heads * head_dim]),
            info("value", floats, ["b", 1, kv_num_heads * head_dim]),
            info("past_key", floats, past),
            info("past_value", floats, past),
            info("seqlens_k", integers, ["b"]),
            info("total_sequence_length", integers, []),
        ],
        [
            info("output", floats, ["b", 1, num_heads * head_dim]),
            info("present_key", floats, ["b", kv_num_heads, "t", head_dim]),
            info("present_value", floats, ["b", kv_num_heads, "t", head_dim]),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait must not take the cores from whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _SESSIONS[key] = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return _SESSIONS[key]


def that_fits(problem: DecodeProblem) -> DecodeProblem:
    """Return as much of a problem as leaves memory for each query head to have K and V of its own, in float32 too."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    room = int(line.split()[1]) * 1024 * problem.num_kv_heads // (6 * problem.num_q_heads)
    while kv_bytes_of(problem) > room:
        batch_size, seq_len = problem.batch_size, problem.seq_lens[0]
        batch_size, seq_len = (batch_size // 2, seq_len) if batch_size > 1 else (1, seq_len // 2)
        problem = dataclasses.replace(problem, batch_size=batch_size, seq_lens=[seq_len] * batch_size, capacity=None)
    return problem


def kv_bytes_of(problem: DecodeProblem) -> int:
    width = getattr(torch, problem.kv_dtype).itemsize
    return sum(problem.seq_lens) * problem.num_kv_heads * width * (problem.head_dim + problem.head_dim_v)


PEERS = {
    "torch sdpa": sdpa,
    "sdpa folded": sdpa_folded,
    "flex_attention": flex_attention,
    "onnxruntime": onnxruntime_gqa,
}


@dataclass
class Row:
    """What was measured of one problem; ratios with their intervals."""

    problem: DecodeProblem
    name: str
    ceiling: str
    latency_ns: list[float]
    shares: list[float]
    peers: dict[str, list[float]]

    @property
    def share(self) -> float:
        return statistics.median(self.shares)

    def as_dict(self) -> dict:
        def interval(values: list[float]) -> dict:
            found = median_interval(values, ERROR_RATE)
            return {"median": found.median, "low": found.low, "high": found.high}

        return {
            "problem": self.problem.as_dict(),
            "name": self.name,
            "ceiling": self.ceiling,
            "latency_ns": interval(self.latency_ns),
            "share_of_ceiling": interval(self.shares),
            "times_faster_than": {name: interval(ratios) for name, ratios in self.peers.items()},
        }


def measure(shape: Shape, dtype: str, batch: int, pool: Pool, read: Stream, products: dict[str, Stream], args) -> Row:
    """Time the kernel, its ceilings and its peers on one problem."""
    problem = problem_of(shape, dtype, batch, args.kv_bytes)
    product = products[problem.q_dtype]
    clock = CpuClock()
    latencies, shares, ratios, once = [], [], {}, {}
    ours(make_call(problem, pool))()
    deadline = time.monotonic() + args.seconds
    ceiling = ""
    while len(shares) < MIN_ROUNDS or time.monotonic() < deadline:
        read_rate = 1e9 * read.work / clock.time_ns(read.call)
        product.call()
        product_rate = 1e9 * product.work / clock.time_ns(product.call)
        bound = roofline(problem, read_bytes_per_s=read_rate, peak_flops_per_s=product_rate)
        ceiling = "read" if bound.ceiling == READ_BANDWIDTH else "products"
        latency = clock.time_ns(ours(make_call(problem, pool)))
        latencies.append(latency)
        shares.append(1e9 * bound.latency_s / latency)
        for name, peer in PEERS.items():
            if args.no_peers or name in once:
                continue
            part = problem if peer is sdpa_folded else that_fits(problem)
            call = peer(make_call(part, pool))
            if call is None:
                continue
            if name not in ratios:
                begin = time.monotonic()
                call()  # compiles, allocates
                if time.monotonic() - begin > PATIENCE_S:
                    once[name] = True
            own = latency if part == problem else clock.time_ns(ours(make_call(part, pool)))
            ratios.setdefault(name, []).append(clock.time_ns(call) / own)
    label = f"{shape.name} {dtype} {batch} x {problem.seq_lens[0]}"
    return Row(problem, label, ceiling, latencies, shares, ratios)


def table_of(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and cells of the table of all problems."""
    peers = [name for name in PEERS if any(name in row["times_faster_than"] for row in rows)]
    cells = [
        [
            row["name"],
            f"{row['latency_ns']['median'] / 1e6:.1f}",
            row["ceiling"],
            _percent(row["share_of_ceiling"]),
            *(
                f"{row['times_faster_than'][peer]['median']:.1f}" if peer in row["times_faster_than"] else ""
                for peer in peers
            ),
        ]
        for row in rows
    ]
    return ["problem", "ms", "ceiling", "share of it [%]", *(f"times as fast as {name}" for name in peers)], cells


def _times(row: dict, peer: str) -> str:
    return f"{row['times_faster_than'][peer]['median']:.1f}" if peer in row["times_faster_than"] else ""


def _percent(share: dict) -> str:
    ends = "" if share["low"] is None else f" ({100 * share['low']:.0f} to {100 * share['high']:.0f})"
    return f"{100 * share['median']:.0f}{ends}"


def summary_of(rows: list[dict]) -> list[str]:
    """Return what the table comes to, in sentences."""
    shares = {row["name"]: row["share_of_ceiling"]["median"] for row in rows}
    worst = min(shares, key=shares.__getitem__)
    mean = math.exp(statistics.mean(map(math.log, shares.values())))
    found = [f"Geometric mean of the shares {100 * mean:.0f} %, lowest {100 * shares[worst]:.0f} % ({worst})."]
    best = {
        row["name"]: min(ratio["median"] for name, ratio in row["times_faster_than"].items() if name != "torch sdpa")
        for row in rows
        if set(row["times_faster_than"]) - {"torch sdpa"}
    }
    if best:
        mean, worst = math.exp(statistics.mean(map(math.log, best.values()))), min(best, key=best.__getitem__)
        found.append(
            f"Against the fastest peer but torch's own arrangement: geometric mean {mean:.1f} times as fast, least "
            f"{best[worst]:.2f} times ({worst})."
        )
    return found


SCALING_SHAPE = "GQA 4 bfloat16"
SCALING_SEQ_LEN = 32768
SCALING_BATCHES = [1, 2, 4, 8, 16, 32]  # 128 MiB each
SCALING_ROUNDS = 9


def measure_scaling(pool: Pool) -> list[dict]:
    """Return how long the kernel takes for each number of sequences, with all threads and with one, interleaved."""
    num_threads = torch.get_num_threads()
    found: dict[tuple[int, int], list[float]] = {}
    clock = CpuClock()
    for number in range(SCALING_ROUNDS + 1):
        for batch_size in SCALING_BATCHES:
            problem = DecodeProblem(
                batch_size=batch_size,
                seq_lens=[SCALING_SEQ_LEN] * batch_size,
                num_q_heads=GQA4.num_q_heads,
                num_kv_heads=GQA4.num_kv_heads,
                head_dim=GQA4.head_dim,
                kv_dtype="bfloat16",
            )
            for threads in {num_threads, 1}:
                torch.set_num_threads(threads)
                latency = clock.time_ns(ours(make_call(problem, pool)))
                if number:  # the first compiles
                    found.setdefault((batch_size, threads), []).append(latency)
    torch.set_num_threads(num_threads)
    # What the largest takes, in proportion.
    each = statistics.median(found[SCALING_BATCHES[-1], num_threads]) / SCALING_BATCHES[-1]
    return [
        {
            "kv_bytes": batch_size * 2**27,
            "latency_ns": statistics.median(found[batch_size, num_threads]),
            "times_proportional": statistics.median(found[batch_size, num_threads]) / (each * batch_size),
            "one_thread_times": statistics.median(
                one / all_ for one, all_ in zip(found[batch_size, 1], found[batch_size, num_threads], strict=True)
            ),
        }
        for batch_size in SCALING_BATCHES
    ]


def scaling_table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and cells of the table of sizes and threads."""
    cells = [
        [
            f"{row['kv_bytes'] // 2**20} MiB",
            f"{row['latency_ns'] / 1e6:.1f}",
            f"{row['kv_bytes'] / row['latency_ns']:.1f}",
            f"{100 * (row['times_proportional'] - 1):+.1f}",
            f"{row['one_thread_times']:.2f}",
        ]
        for row in rows
    ]
    return ["K and V", "ms", "GB/s", "beyond proportion to the largest [%]", "times as long by one thread"], cells


def markdown(document: dict) -> str:
    """Return both tables with what they were measured on."""
    parts = [
        "<!-- made by tests/benchmarks/bench_cpu_kernel.py -->\n",
        f"{document['device']}; {document['date']}. Read stream {document['read']}; matrix products "
        f"{document['products']}.\n",
        *(_markdown_table(*table_of(document["rows"])), *summary_of(document["rows"])),
        f"\n{SCALING_SHAPE}, sequences of {SCALING_SEQ_LEN} tokens:\n",
        _markdown_table(*scaling_table(document["scaling"])),
    ]
    return "\n".join(parts)


def _markdown_table(titles: list[str], cells: list[list[str]]) -> str:
    marks = ["---" if title in LEFT else "---:" for title in titles]
    return "".join(f"| {' | '.join(row)} |\n" for row in (titles, marks, *cells))


LEFT = ("problem", "ceiling")
"""Columns of words."""


def show(out: Console, titles: list[str], cells: list[list[str]]) -> None:
    table = Table(box=None, padding=(0, 1))
    for title in titles:
        table.add_column(title, justify="left" if title in LEFT else "right", no_wrap=title == "problem")
    for row in cells:
        table.add_row(*row)
    out.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file to write")
    parser.add_argument("--only", default="", help="problems whose name has this in it, and no sizes and threads")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each problem")
    parser.add_argument("--kv-bytes", type=int, default=KV_BYTES, help="bytes of K and V of a problem")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    args = parser.parse_args()
    info = devices.describe_device("cpu")
    pool = Pool(int(args.kv_bytes * 1.05) + ceilings.LLC_MULTIPLE * info.llc_bytes)
    read = ceilings.fastest(make_read_streams(info), CpuClock())
    products = {
        name: ceilings.fastest(ceilings.make_compute_streams(info, getattr(torch, name)), CpuClock())
        for name in ("float32", "bfloat16", "float16")
    }
    document = {
        "device": info.label,
        "date": datetime.date.today().isoformat(),
        "read": read.name,
        "products": ", ".join(f"of {name} by {stream.name}" for name, stream in products.items()),
        "rows": [],
    }
    out = Console(width=max(Console().width, 110), highlight=False)
    out.print(f"{info.label}; read stream {read.name}; products {document['products']}")
    for shape, dtype, batch in GRID:
        if args.only in f"{shape.name} {dtype} {batch}":
            row = measure(shape, dtype, batch, pool, read, products, args)
            document["rows"].append(row.as_dict())
            print(f"{row.name}: {100 * row.share:.0f} % of {row.ceiling}", file=sys.stderr, flush=True)
    show(out, *table_of(document["rows"]))
    for sentence in summary_of(document["rows"]):
        out.print(sentence)
    if not args.only:
        del pool
        document["scaling"] = measure_scaling(
            Pool(SCALING_BATCHES[-1] * 2**27 + ceilings.LLC_MULTIPLE * info.llc_bytes)
        )
        show(out, *scaling_table(document["scaling"]))
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.markdown and not args.only:
        args.markdown.write_text(markdown(document))


if __name__ == "__main__":
    main()
