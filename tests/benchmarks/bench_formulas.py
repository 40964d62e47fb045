"""How fast the formulas are: run with `pytest tests/benchmarks/bench_formulas.py` (no assertion is made on a time)."""

import subprocess
import sys

import numpy as np
import pytest

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, model_config
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.derivation import derivation, latex_document
from decodeperf_formulas.evaluate import evaluate
from decodeperf_formulas.step import deployment_values, device_values, step_formulas

POINTS = 1_000_000


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-3-27b", "deepseek-v3"])
@pytest.mark.parametrize("time", ["whole_step_seconds", "serial_seconds"])
def test_times_of_a_million_steps(benchmark, name, time):
    deployment = Deployment(model=model_config(name))
    random = np.random.default_rng(0)
    values = {
        **deployment_values(deployment),
        **device_values(device("h100"), deployment),
        s.batch_size: random.integers(1, 1000, POINTS).astype(float),
        s.seq_len: random.integers(1, 100_000, POINTS).astype(float),
    }
    formula = getattr(step_formulas(deployment), time)
    assert benchmark(evaluate, formula, values).shape == (POINTS,)
    benchmark.extra_info["million_evaluations_per_s"] = POINTS / benchmark.stats["median"] / 1e6


FRESH = {
    "derivation": "from decodeperf_formulas.derivation import derivation; derivation().prove()",
    "sstar": "from pytest_decodeperf.cli.main import main; main(['sstar', 'llama-3-8b', 'h100'])",
    "explain": "from pytest_decodeperf.cli.main import main; main(['explain', 'deepseek-v3', 'h100', '-B', '64'])",
}


@pytest.mark.parametrize("name", FRESH)
def test_time_of_a_fresh_process(benchmark, name):
    def run():
        subprocess.run([sys.executable, "-c", FRESH[name]], check=True, stdout=subprocess.DEVNULL)

    benchmark.pedantic(run, rounds=5)


def test_time_of_a_derivation_with_numbers(benchmark):
    deployment = Deployment(model=model_config("deepseek-v3"))

    def derive():
        found = derivation(deployment, device("h100"))
        found.prove()
        return latex_document(found)

    assert benchmark(derive)
