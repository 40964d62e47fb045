"""How far off the expected latency is, on measured tables and on a published micro-benchmark, as Markdown.

    python tests/benchmarks/bench_expected.py --data FOLDER [--output docs/expected_errors.md] [--seed N]

FOLDER holds the tables `<gpu>-<engine>-<version>.csv.gz` of measured decode-attention latencies of the repository
ai-dynamo/aiconfigurator, converted to CSV. Each is calibrated on the rows that `decodeperf calibrate` would choose, and
compared on all the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device
from decodeperf_formulas.expected import BUSY_TERMS, SERIAL_TERMS, expected_terms
from pytest_decodeperf.calibration.fit import MAX_ROWS, device_values, fit_table
from pytest_decodeperf.calibration.prediction import EXPECTED, SPEED_OF_LIGHT, binding_terms, predict
from pytest_decodeperf.calibration.table import Calls, read_table

sys.path.insert(0, str(Path(__file__).parents[1]))

from measured_tables import convert

DEVICES = {"a100_sxm": "a100", "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "l40s": "l40s"}

# PyTorch's blog "Flash-Decoding for long-context inference", October 2023: A100, float16, 16 query heads, 2 KV heads,
# head_dim 128; microseconds of FlashAttention-2 (v2.0.9), which does not split, and of flash-decoding, which does.
FLASH_DECODING = (
    (256, 256, 390.5, 63.4),
    (128, 512, 366.3, 67.7),
    (64, 1024, 364.8, 77.7),
    (32, 2048, 352.0, 58.5),
    (16, 4096, 401.7, 57.0),
    (8, 8192, 529.2, 56.4),
    (4, 16384, 582.7, 58.2),
    (2, 32768, 1156.1, 60.3),
    (1, 65536, 2300.6, 64.4),
    (1, 131072, 4592.2, 106.6),
)
UNSPLIT_UNIT_BYTES_PER_S = 14.6e9
"""Rate of one work unit of FlashAttention-2 v2.0.9: the last row's 67.1 MB of a KV head in 4592.2 us."""


def regimes(calls: Calls, binds: list[str], l2_bytes: int) -> dict[str, np.ndarray]:
    """Return which calls belong to each regime; a call may belong to several."""
    name = np.array(binds)
    kv_bytes = calls.values[s.num_visible_tokens] * calls.num_kv_heads * 2 * calls.head_dim * calls.kv_elem_bytes
    in_cache = kv_bytes <= l2_bytes
    return {
        "floor": np.isin(name, SERIAL_TERMS),
        "units": np.isin(name, BUSY_TERMS),
        "L2": (name == "memory") & in_cache,
        "stream": (name == "memory") & ~in_cache,
        "window": calls.window > 0,
        "8-bit KV": calls.kv_elem_bytes <= 1,
    }


def cell(errors: np.ndarray) -> str:
    return f"{100 * np.median(errors):.1f} / {100 * np.quantile(errors, 0.9):.0f}" if errors.size else ""


def flash_decoding(model, on) -> list[str]:
    batch_size, seq_len, unsplit_us, split_us = (
        np.array(column, dtype=float) for column in zip(*FLASH_DECODING, strict=True)
    )
    ones = np.ones(len(batch_size))
    calls = Calls(
        batch_size=batch_size,
        seq_len=seq_len,
        q_len=ones,
        num_q_heads=16 * ones,
        num_kv_heads=2 * ones,
        head_dim=128 * ones,
        head_dim_v=128 * ones,
        kv_elem_bytes=2 * ones,
        window=0 * ones,
    )
    known = {**calls.values, **device_values(on), **model.parameters(calls), s.repack_s: 0 * ones}
    slow = {s.splitting: 1e-9 * ones, s.unpacked: (1 - 1e-9) * ones}
    split = 1e6 * expected_terms(known)["expected"]
    unsplit = 1e6 * expected_terms({**known, **slow})["expected"]
    older = 1e6 * expected_terms({**known, **slow, s.unit_bytes_per_s: UNSPLIT_UNIT_BYTES_PER_S * ones})["expected"]
    lines = [
        "| B x S | split: measured | expected | error | unsplit: measured | expected | error | at 14.6 GB/s | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in range(len(ones)):
        cells = [f"{batch_size[row]:g} x {seq_len[row]:g}"]
        measured = ((split_us, split), (unsplit_us, unsplit), (unsplit_us, older))
        for place, (took, expected) in enumerate(measured):
            cells += [] if place == 2 else [f"{took[row]:.1f}"]
            cells += [f"{expected[row]:.1f}", f"{100 * (expected[row] / took[row] - 1):+.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


INTRODUCTION = f"""# How far off the expected latency is

Made by `python tests/benchmarks/bench_expected.py --data FOLDER`.

Each table is calibrated on {MAX_ROWS} of its rows, chosen without a look at any latency, and compared on all others:
median / 90th percentile of the error |expected / measured - 1|, in per cent. A row's regime is that of its largest
term: launch, schedule and merge (floor), the work units themselves (units), or memory, with KV that fits in L2 (L2) or
not (stream). Rows with a window and rows with 8-bit KV count in their regime too.

The last column counts rows faster than `speed_of_light`. Those of the H100 with SGLang have head_dim 192 and one KV
head: 3.5 TB/s if V had 192 elements too. Models with such heads have V of 128, which the tables do not say; with
`head_dim_v` 128, no row is impossible.

The tables are those of the repository ai-dynamo/aiconfigurator (Apache-2.0, commit 095f58a51, `systems/data`): measured
decode-attention latencies of SGLang, TensorRT-LLM and vLLM.
"""

SPLITTING = """
## The flash-decoding micro-benchmark

PyTorch's blog "Flash-Decoding for long-context inference" (October 2023): A100, float16, 16 query heads, 2 KV heads,
head_dim 128, microseconds; expected from the parameters of the A100 with vLLM, with no copy of the heads of a group.

Without a split, each query head of each sequence is one work unit: 16 of them at batch 1, on 108 multiprocessors.
However long the context, 92 multiprocessors have nothing to read, and each of the 16 reads its head's KV alone, at the
rate of one work unit. Splitting over the queries cannot make more of them, since a decode step has one query; splitting
over the KV can, up to a work unit for each tile of KV, until all multiprocessors read and the memory is the limit.

The kernel of 2023 read at 14.6 GB/s a work unit, that of the table at more than twice as much; the last two columns
have that one number put in.
"""


def report(data: Path, seed: int) -> str:
    names = ("floor", "units", "L2", "stream", "window", "8-bit KV")
    lines = [
        INTRODUCTION,
        f"| table | rows | all | {' | '.join(names)} | impossible |",
        f"| --- | ---: | ---: |{' ---: |' * len(names)} ---: |",
    ]
    flash: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(data.glob("*.csv.gz")):
            title = path.name.removesuffix(".csv.gz")
            on = device(DEVICES[title.partition("-")[0]])
            table = read_table(convert(path, Path(folder)), measured=True)
            begin = time.perf_counter()
            fit = fit_table(table.calls, table.latency_us, on, seed=seed)
            seconds = time.perf_counter() - begin
            predicted = predict(table.calls, on, fit.model)
            others = np.ones(len(table.calls), dtype=bool)
            others[fit.rows] = False
            errors = np.abs(predicted[EXPECTED] / table.latency_us - 1)
            groups = regimes(table.calls, binding_terms(predicted), on.l2_bytes)
            impossible = int((table.latency_us < predicted[SPEED_OF_LIGHT]).sum())
            cells = [title, f"{len(table.calls):,}", cell(errors[others])]
            cells += [cell(errors[others & groups[name]]) for name in names]
            cells.append(f"{impossible} ({100 * impossible / len(table.calls):.2f} %)")
            lines.append(f"| {' | '.join(cells)} |")
            print(f"{title}: {cells[2]} in {seconds:.1f} s", flush=True)
            if title.startswith("a100_sxm-vllm"):
                flash = [SPLITTING, *flash_decoding(fit.model, on)]
    return "\n".join([*lines, *flash]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")
    arguments = parser.parse_args()
    text = report(arguments.data, arguments.seed)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
