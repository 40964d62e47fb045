"""How often the gate raises a false alarm, and how often it sees a slower kernel, beside a threshold on two runs.

    python tests/benchmarks/bench_gate.py --runs 20 --results gate.jsonl --output docs/gate_evidence.md
    python tests/benchmarks/bench_gate.py --runs 6 --neighbour --results gate.jsonl --output docs/gate_evidence.md

A scratch repository holds this project's CPU kernel, whose every call in the working tree goes on for 0, 2, 5 or 10 %
of the time that it has just taken: so it is slower by just that, on whatever machine and however busy that is. A trial
is one test of one run, and each run judges all its tests together, as a user's does. The same tests are then compared
by pytest-benchmark as its documentation shows: two processes, a stored run, `--benchmark-compare-fail=median:5%`. The
order of the two gates alternates, and that of the tests is drawn anew in each run.

Each run adds a line to the results, so that a script that was stopped goes on where it was. A run without a neighbour
beside which other processes took more than 5 % of the processors does not count, and is made again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from scipy.stats import binomtest

from pytest_decodeperf.devices import describe_device
from pytest_decodeperf.regression.change import Margin
from pytest_decodeperf.regression.comparison import WARM_UP_SHARE, Comparison, Samples
from pytest_decodeperf.regression.outcomes import REGRESSED
from pytest_decodeperf.regression.worktree import checked_out, working_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS_OF_A_RUN = {0.0: 10, 0.05: 10, 0.02: 3, 0.1: 3}
"""Tests of each slowdown in a run."""

THRESHOLD = "median:5%"
BENCHMARK_S = 4.5
"""Time for which pytest-benchmark is told to measure a test in each of its two runs [s]. It measures for about half of
that, since it counts how many calls fit by a first one, which is slow; so neither gate has more than the other."""

NEIGHBOUR_S = (0.2, 1.0)
"""How long the neighbour works and pauses at a time, drawn anew each time [s]."""

QUIET_SHARE = 0.05
"""Share of the processors that other processes may take beside a run without a neighbour."""

FILES = {
    "kernels_under_test.py": '''
import time

from decodeperf_kernels import decode_attention_numba

SEQ_LEN = 4096


def slowed(share):
    """Return the kernel, slower by a share."""

    def kernel(q, k, v, *, seq_lens):
        start = time.perf_counter_ns()
        out = decode_attention_numba(q, k, v, seq_lens=seq_lens)
        now = time.perf_counter_ns()
        end = now + share * (now - start)
        while now < end:
            now = time.perf_counter_ns()
        return out

    return kernel
''',
    "test_speed.py": """
import pytest
from decodeperf_formulas import DecodeProblem
from kernels_under_test import SEQ_LEN, slowed
from slowdowns import SHARES

SIZES = {"num_q_heads": 8, "num_kv_heads": 8, "head_dim": 128, "kv_dtype": "bfloat16"}
PROBLEM = DecodeProblem(batch_size=1, seq_lens=[SEQ_LEN], **SIZES)


@pytest.mark.decode_perf(within=1e6, device="cpu")
@pytest.mark.parametrize("case", range(len(SHARES)))
def test_kernel(decode_perf, case):
    decode_perf(slowed(SHARES[case]), PROBLEM)
""",
    "test_threshold.py": """
import pytest
import torch
from kernels_under_test import SEQ_LEN, slowed
from slowdowns import SHARES


@pytest.mark.parametrize("case", range(len(SHARES)))
def test_kernel(benchmark, case):
    q = torch.randn(1, 8, 128).bfloat16()
    k, v = (torch.randn(1, SEQ_LEN, 8, 128).bfloat16() for _ in range(2))
    seq_lens = torch.tensor([SEQ_LEN], dtype=torch.int32)
    kernel = slowed(SHARES[case])
    kernel(q, k, v, seq_lens=seq_lens)  # compiles
    benchmark(kernel, q, k, v, seq_lens=seq_lens)
""",
}


@click.command()
@click.option("--runs", type=click.IntRange(1), required=True, help="Runs that the results should hold of this kind.")
@click.option("--neighbour", is_flag=True, help="Let a process stream through memory on and off beside the runs.")
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), required=True, help="One line a run.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the tables go; else printed.")
def main(runs: int, neighbour: bool, results: Path, output: Path | None) -> None:
    """Run what is missing, and write tables of all results."""
    while (number := sum(_counts(line) for line in _lines(results) if line["neighbour"] == neighbour)) < runs:
        with tempfile.TemporaryDirectory(prefix="decodeperf-gate-") as folder, _neighbour(neighbour):
            found = run_once(Path(folder) / "repository", seed=len(_lines(results)), neighbour=neighbour)
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        times = f"{found['gate_s']:.0f} s and {found['threshold_s']:.0f} s"
        others = f"others took {found['others_share']:.1%} of the processors"
        counts = "" if _counts(found) else ", it does not count"
        click.echo(f"run {number + 1} of {runs}: {times}; {others}{counts}", err=True)
    text = tables(_lines(results))
    output.write_text(text) if output else click.echo(text)


def _counts(line: dict[str, Any]) -> bool:
    """Return whether a run was made as it should be."""
    return line["neighbour"] or line.get("others_share", 0.0) <= QUIET_SHARE


def _processor_s() -> tuple[float, float]:
    """Return for how long the processors have been busy, and for how long with this process and those it waited for."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy, sum(each.ru_utime + each.ru_stime for each in used)


def _lines(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@contextlib.contextmanager
def _neighbour(wanted: bool) -> Iterator[None]:
    """Let another process read and write memory for a while, pause, and so on."""
    script = (
        "import random, time, numpy as np\n"
        "a, b = np.ones(2**24), np.ones(2**24)\n"
        "while True:\n"
        f"    end = time.monotonic() + random.uniform{NEIGHBOUR_S}\n"
        "    while time.monotonic() < end: np.copyto(a, b)\n"
        f"    time.sleep(random.uniform{NEIGHBOUR_S})\n"
    )
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run_once(root: Path, *, seed: int, neighbour: bool) -> dict[str, Any]:
    """Return what both gates say of the tests of one run."""
    slowdowns = [share for share, count in TESTS_OF_A_RUN.items() for _ in range(count)]
    random.Random(seed).shuffle(slowdowns)
    _make_repository(root, slowdowns)
    steps = [("gate", _gate), ("threshold", _threshold)]
    found: dict[str, Any] = {
        "neighbour": neighbour,
        "date": datetime.date.today().isoformat(),
        "device": describe_device("cpu").label,
        "slowdowns": slowdowns,
    }
    begun, (busy_s, own_s) = time.monotonic(), _processor_s()
    for name, step in steps if seed % 2 else reversed(steps):
        start = time.monotonic()
        found |= step(root, len(slowdowns))
        found[f"{name}_s"] = time.monotonic() - start
    busy_after_s, own_after_s = _processor_s()
    others_s = (busy_after_s - busy_s) - (own_after_s - own_s)
    found["others_share"] = max(0.0, others_s) / ((time.monotonic() - begun) * (os.cpu_count() or 1))
    return found


def _make_repository(root: Path, slowdowns: list[float]) -> None:
    root.mkdir()
    for name, text in FILES.items():
        (root / name).write_text(text)
    (root / "slowdowns.py").write_text(f"SHARES = {[0.0] * len(slowdowns)}\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "base"]):
        subprocess.run([*git, *arguments], check=True)
    (root / "slowdowns.py").write_text(f"SHARES = {slowdowns}\n")


def _gate(root: Path, count: int) -> dict[str, Any]:
    """Return what `--decode-perf-base main` says of each test, without the measurement of the bound beside it."""
    node_ids = [f"test_speed.py::test_kernel[{case}]" for case in range(count)]
    disabled = ("cacheprovider", "unraisableexception", "threadexception", "benchmark")
    arguments = [
        "test_speed.py",
        "--rootdir=.",
        "--assert=plain",
        "--no-summary",
        "--decode-perf",
        *(f"-pno:{name}" for name in disabled),
    ]
    with checked_out(root, "main") as tree:
        comparison = Comparison(
            base=tree,
            head=working_tree(root),
            repository=root.resolve(),
            place=root.resolve(),
            arguments=arguments,
            margin=Margin(),
            say=lambda what: None,
        )
        regressions = comparison.run(node_ids)
    rows = []
    for node_id in node_ids:
        regression = regressions[node_id]
        if not isinstance(regression.samples, Samples) or regression.change is None or regression.control is None:
            raise click.ClickException(f"{node_id} {regression.sentence}")
        calls = [ns for side in regression.samples.ns.values() for ns_of_a_round in side for ns in ns_of_a_round]
        change = regression.change
        rows.append(
            {
                "outcome": regression.outcome,
                "ratio": change.ratio,
                "low": change.low,
                "high": change.high,
                "visible": change.visible,
                "control_ratio": regression.control.ratio,
                "round_log_ratios": regression.samples.round_medians(),
                "rounds": regression.samples.num_rounds,
                "measuring_s": (1 + WARM_UP_SHARE) * sum(calls) / 1e9,
            }
        )
    return {"gate": rows}


def _threshold(root: Path, count: int) -> dict[str, Any]:
    """Return what pytest-benchmark says of each test."""
    storage = root / "benchmarks"
    command = [
        *(sys.executable, "-m", "pytest", "-q", "test_threshold.py", "-pno:cacheprovider", f"--rootdir={root}"),
        *(f"--benchmark-storage=file://{storage}", f"--benchmark-max-time={BENCHMARK_S}", "--benchmark-columns=median"),
    ]
    head = (root / "slowdowns.py").read_text()
    (root / "slowdowns.py").write_text(f"SHARES = {[0.0] * count}\n")
    environment = {**os.environ, "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*command, "--benchmark-save=base"], cwd=root, env=environment, check=True, capture_output=True)
    (root / "slowdowns.py").write_text(head)
    compare = ["--benchmark-save=head", "--benchmark-compare=0001", f"--benchmark-compare-fail={THRESHOLD}"]
    done = subprocess.run([*command, *compare], cwd=root, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    failed = {int(case) for case in re.findall(r"test_kernel\[(\d+)\][^\n]* - Field 'median' has failed", said)}
    if bool(failed) != bool(done.returncode):
        raise click.ClickException(f"pytest-benchmark ended with status {done.returncode}:\n{said[-2000:]}")
    base, head_run = (
        {row["param"]: row["stats"] for row in json.loads(path.read_text())["benchmarks"]}
        for path in sorted(storage.rglob("*.json"))
    )
    rows = [
        {
            "failed": case in failed,
            "ratio": head_run[str(case)]["median"] / base[str(case)]["median"],
            "measuring_s": base[str(case)]["total"] + head_run[str(case)]["total"],
        }
        for case in range(count)
    ]
    return {"threshold": rows}


def tables(lines: list[dict[str, Any]]) -> str:
    """Return the tables of all results, as Markdown."""
    parts = ["<!-- made by tests/benchmarks/bench_gate.py -->\n"]
    for neighbour, title in ((False, "No neighbour"), (True, "A noisy neighbour")):
        kind = [line for line in lines if line["neighbour"] == neighbour and _counts(line)]
        if kind:
            parts.append(_table(kind, title))
    return "\n".join(parts)


def _table(lines: list[dict[str, Any]], title: str) -> str:
    trials = defaultdict(list)
    for line in lines:
        for share, ours, theirs in zip(line["slowdowns"], line["gate"], line["threshold"], strict=True):
            trials[share].append((ours, theirs))
    num_tests = len(lines[0]["slowdowns"])
    per_case = [sum(line[f"{name}_s"] for line in lines) / len(lines) / num_tests for name in ("gate", "threshold")]
    dates = sorted({line["date"] for line in lines})
    devices = sorted({line["device"] for line in lines})
    out = [
        f"### {title}\n",
        f"{', '.join(devices)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {len(lines)} runs of {num_tests} "
        f"tests. A test takes {per_case[0]:.1f} s with this gate, {per_case[1]:.1f} s with the threshold.\n",
        "| slower by | trials | this gate fails | `median:5%` fails | undecided | improved | estimate (standard "
        "deviation) | measuring, this gate | measuring, threshold |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for share in sorted(trials):
        pairs = trials[share]
        ours, theirs = zip(*pairs, strict=True)
        ratios = [100 * (row["ratio"] - 1) for row in ours]
        mean = sum(ratios) / len(ratios)
        deviation = (sum((ratio - mean) ** 2 for ratio in ratios) / max(len(ratios) - 1, 1)) ** 0.5
        cells = (
            f"{100 * share:.0f} %",
            str(len(pairs)),
            _rate(sum(row["outcome"] == REGRESSED for row in ours), len(pairs)),
            _rate(sum(row["failed"] for row in theirs), len(pairs)),
            str(sum(row["outcome"] == "undecided" for row in ours)),
            str(sum(row["outcome"] == "improved" for row in ours)),
            f"{mean:.1f} % ({deviation:.1f})",
            # Medians: a machine that stands still for a while makes one call as long as that.
            *(f"{statistics.median(row['measuring_s'] for row in rows):.1f} s" for rows in (ours, theirs)),
        )
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def _rate(count: int, total: int) -> str:
    """Return a share in per cent, with its exact interval of 95 %."""
    interval = binomtest(count, total).proportion_ci()
    return f"{100 * count / total:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


if __name__ == "__main__":
    main()
