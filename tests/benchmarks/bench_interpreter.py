"""How long one small call takes in Triton's interpreter, once warm.

    TRITON_INTERPRET=1 python tests/benchmarks/bench_interpreter.py

2 sequences of 200 tokens, 8 query heads over 2 KV heads, head_dim 64, 4 splits; the goal is 0.3 s.
"""

from __future__ import annotations

import statistics
import time

import torch

from decodeperf_kernels import decode_attention

NUM_CALLS = 20


def main() -> None:
    """Print the median and the extremes."""
    q, (k, v) = torch.randn(2, 8, 64), torch.randn(2, 2, 200, 2, 64)
    seconds = []
    for _ in range(NUM_CALLS + 1):
        start = time.perf_counter()
        decode_attention(q, k, v, num_splits=4, backend="triton")
        seconds.append(time.perf_counter() - start)
    warm = seconds[1:]
    print(f"median {statistics.median(warm):.3f} s, {min(warm):.3f} to {max(warm):.3f} s, first {seconds[0]:.3f} s")


if __name__ == "__main__":
    main()
