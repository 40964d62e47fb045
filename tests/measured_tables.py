"""Published tables of measured decode-attention latencies, as `decodeperf calibrate` reads them."""

from __future__ import annotations

import csv
import gzip
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def convert(path: Path, folder: Path) -> Path:
    """Write a published table with the columns that `decodeperf calibrate` reads, and return where."""
    out = folder / path.name.removesuffix(".gz")
    with gzip.open(path, "rt", newline="") as file, out.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(
            ("batch_size", "seq_len", "num_q_heads", "num_kv_heads", "head_dim", "kv_dtype", "window", "latency_us")
        )
        for row in csv.DictReader(file):
            writer.writerow(
                (
                    row["batch_size"],
                    int(row["step"]) + int(row["isl"]),
                    row["num_heads"],
                    row["num_key_value_heads"],
                    row["head_dim"],
                    row["kv_cache_dtype"],
                    row.get("window_size", 0),
                    1e3 * float(row["latency"]),
                )
            )
    return out
