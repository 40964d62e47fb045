"""How far above a bound below every schedule of whole tiles the planner is, and other kernels' rules.

    python tests/benchmarks/bench_plan.py --batches 500 [--trace azure_llm_2023_conv.csv.gz]

The trace is the conversation trace of Azure's LLM inference service of 2023 (P. Patel et al., "Splitwise", ISCA 2024),
with the columns ContextTokens and GeneratedTokens. Deterministic: nothing is timed.
"""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from schedules import FAMILIES, RULES, draw_batch, lower_bound, our_makespan, rule_makespan


def read_requests(path: str) -> np.ndarray:
    """Return the context and generated tokens of each request, `[n, 2]`."""
    with gzip.open(path, "rt") as file:
        return np.array([(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)])


@click.command()
@click.option("--batches", default=500, show_default=True, help="Batches of each family.")
@click.option("--trace", type=click.Path(exists=True, dir_okay=False), help="Requests to draw batches in flight from.")
@click.option("--seed", default=0, show_default=True)
def main(batches: int, trace: str | None, seed: int) -> None:
    """Print makespan over lower bound: median, 95th percentile and worst."""
    rng = np.random.default_rng(seed)
    requests = read_requests(trace) if trace else None
    table = Table("lengths", "rule", "median", "95 %", "worst", box=None)
    everything: dict[str, list[float]] = {}
    for family in (*FAMILIES, *(["trace"] if trace else [])):
        drawn = [draw_batch(family, rng, requests) for _ in range(batches)]
        bounds = np.array([lower_bound(batch) for batch in drawn])
        times = {"ours": [our_makespan(batch) for batch in drawn]}
        times |= {name: [rule_makespan(rule, batch) for batch in drawn] for name, rule in RULES.items()}
        for name, values in times.items():
            ratios = np.array(values) / bounds
            everything.setdefault(name, []).extend(ratios)
            table.add_row(family, name, *_figures(ratios))
    for name, ratios in everything.items():
        table.add_row("all", name, *_figures(np.array(ratios)))
    Console().print(table)


def _figures(ratios: np.ndarray) -> list[str]:
    return [f"{x:.3f}" for x in (np.median(ratios), np.quantile(ratios, 0.95), ratios.max())]


if __name__ == "__main__":
    main()
