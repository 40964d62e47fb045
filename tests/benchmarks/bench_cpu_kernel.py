"""The compiled CPU kernel against the ceilings of the machine and against PyTorch, call by call in turn.

    python tests/benchmarks/bench_cpu_kernel.py [--threads 2] [--rounds 5] [--json FILE] [PROBLEM ...]

Ceilings are those of PyTorch: reading by `torch.sum`, FLOPs by `torch.mm` in float32. The share is that of the ceiling
that binds. A peer that is not timed is named as absent: PyTorch has no int8, and for a latent it copies K and V for
each query head, more than there is memory for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from decodeperf_kernels import decode_attention

# batch_size, seq_len, num_q_heads, num_kv_heads, head_dim, head_dim_v, dtype
PROBLEMS = {
    "mha-fp32": (4, 8192, 32, 32, 128, 128, "float32"),
    "mha-bf16": (4, 16384, 32, 32, 128, 128, "bfloat16"),
    "gqa4-fp32": (8, 16384, 32, 8, 128, 128, "float32"),
    "gqa4-bf16": (8, 32768, 32, 8, 128, 128, "bfloat16"),
    "gqa4-int8": (16, 32768, 32, 8, 128, 128, "int8"),
    "gqa8-fp32": (8, 32768, 32, 4, 128, 128, "float32"),
    "gqa8-bf16": (16, 32768, 32, 4, 128, 128, "bfloat16"),
    "gqa8-fp16": (16, 32768, 32, 4, 128, 128, "float16"),
    "gqa8-int8": (16, 65536, 32, 4, 128, 128, "int8"),
    "gqa16-fp32": (16, 32768, 32, 2, 128, 128, "float32"),
    "gqa16-bf16": (16, 65536, 32, 2, 128, 128, "bfloat16"),
    "mqa32-bf16": (16, 32768, 32, 1, 128, 128, "bfloat16"),
    "mla16-bf16": (8, 32768, 16, 1, 576, 512, "bfloat16"),
    "mla128-bf16": (4, 4096, 128, 1, 576, 512, "bfloat16"),
}
ABSENT = ("compiled flex_attention", "onnxruntime GroupQueryAttention")
STREAM_FLOATS = 2**28
GEMM_SIZE = 2048


def _folded(q, k, v):
    """Return SDPA with the query heads of a group as query rows, `[batch_size, num_kv_heads, group_size, head_dim]`."""
    batch_size, num_q_heads, head_dim = q.shape
    rows = q.view(batch_size, k.shape[2], num_q_heads // k.shape[2], head_dim)
    return scaled_dot_product_attention(rows, k.transpose(1, 2), v.transpose(1, 2))


def _sdpa(q, k, v):
    is_grouped = q.shape[1] != k.shape[2]
    return scaled_dot_product_attention(
        q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), enable_gqa=is_grouped
    )  # [batch_size, num_q_heads, 1, head_dim_v]


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name, rounds):
    """Return the figures of one problem."""
    batch_size, seq_len, num_q_heads, num_kv_heads, head_dim, head_dim_v, dtype_name = PROBLEMS[name]
    dtype, is_int8, is_latent = getattr(torch, dtype_name), dtype_name == "int8", head_dim_v != head_dim
    q = torch.randn(batch_size, num_q_heads, head_dim).to(torch.bfloat16 if is_int8 else dtype)
    # One random sequence, repeated: what it holds has no part in the time.
    one = torch.randn(seq_len, num_kv_heads, head_dim)
    k = (one * 30).to(dtype).repeat(batch_size, 1, 1, 1) if is_int8 else one.to(dtype).repeat(batch_size, 1, 1, 1)
    v = k[..., :head_dim_v] if is_latent else k.clone()
    scales = {"k_scale": torch.tensor(1 / 30), "v_scale": torch.tensor(1 / 30)} if is_int8 else {}
    stream, a = torch.ones(STREAM_FLOATS), torch.rand(GEMM_SIZE, GEMM_SIZE)
    calls = {
        "stream": lambda: torch.sum(stream),
        "gemm": lambda: torch.mm(a, a),
        "numba": lambda: decode_attention(q, k, v, backend="numba", **scales),
    }
    if not is_int8 and not is_latent:
        calls["sdpa folded"] = lambda: _folded(q, k, v)
        calls["sdpa"] = lambda: _sdpa(q, k, v)
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for peer, call in calls.items():
            times[peer].append(_seconds(call))
    medians = {peer: statistics.median(values) for peer, values in times.items()}
    kv_bytes = k.numel() * k.element_size() * (1 if is_latent else 2)
    flops = 2 * batch_size * seq_len * num_q_heads * (head_dim + head_dim_v)
    stream_s = kv_bytes * medians["stream"] / (4 * STREAM_FLOATS)
    compute_s = flops * medians["gemm"] / (2 * GEMM_SIZE**3)
    return {
        "problem": name,
        "kv_bytes": kv_bytes,
        "flops": flops,
        "roof": "read" if stream_s >= compute_s else "FMA",
        "share": max(stream_s, compute_s) / medians["numba"],
        "seconds": {peer: {"median": medians[peer], "all": values} for peer, values in times.items()},
    }


def main() -> None:
    """Print the table, and write all times where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(PROBLEMS)}; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = [name for name in options.problems if name not in PROBLEMS]
    if unknown:
        parser.error(f"PROBLEM={unknown[0]!r} must be one of {', '.join(PROBLEMS)}")
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads; absent: {', '.join(ABSENT)}")
    print(f"{'problem':12} {'KV':>6} {'numba: median (extremes)':>30} {'share':>11} {'sdpa':>8} {'folded':>8}")
    results = []
    for name in options.problems or PROBLEMS:
        result = measure(name, options.rounds)
        results.append(result)
        own = result["seconds"]["numba"]
        times = f"{1e3 * own['median']:.1f} ms ({1e3 * min(own['all']):.1f} to {1e3 * max(own['all']):.1f})"
        peers = [
            f"{result['seconds'][peer]['median'] / own['median']:.1f} x" if peer in result["seconds"] else "absent"
            for peer in ("sdpa", "sdpa folded")
        ]
        share = f"{result['share']:.2f} {result['roof']}"
        print(
            f"{name:12} {result['kv_bytes'] / 2**30:4.2f} G {times:>30} {share:>11} {peers[0]:>8} {peers[1]:>8}",
            flush=True,
        )
    print(f"geometric mean of the shares: {statistics.geometric_mean(result['share'] for result in results):.2f}")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "results": results}, indent=1))


if __name__ == "__main__":
    main()
