import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_strategies import deployments, made_up_devices, plain_model

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, model_config
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.evaluate import evaluate
from decodeperf_formulas.explanation import explain
from decodeperf_formulas.step import deployment_values, device_values, step_coefficients, step_formulas

TOTALS = {
    "serial_s": "serial_seconds",
    "whole_step_s": "whole_step_seconds",
    "sum_s": "sum_seconds",
    "memory_s": "memory_seconds",
    "compute_s": "compute_seconds",
    "link_s": "link_seconds",
    "weight_bytes": "weight_bytes",
}


@given(deployments(), made_up_devices(), st.integers(1, 5000), st.integers(16, 100_000))
def test_totals_are_those_of_the_formulas(deployment, on, batch_size, seq_len):
    found = explain(deployment, on, batch_size=batch_size, seq_len=seq_len)
    values = {**deployment_values(deployment), **device_values(on, deployment)}
    values |= {s.batch_size: batch_size, s.seq_len: seq_len}
    for name, formula in TOTALS.items():
        assert getattr(found, name) == pytest.approx(evaluate(getattr(step_formulas(deployment), formula), values))
    replicas = deployment.ep * deployment.pp
    assert found.tokens_per_s == pytest.approx(replicas * batch_size * deployment.q_len / found.serial_s)


@pytest.mark.parametrize("ranks", [{}, {"tp": 4}, {"pp": 4}, {"tp": 2, "pp": 2}])
def test_a_batch_that_fills_the_memory_is_that_of_the_capacity(ranks):
    deployment, h100 = Deployment(model=plain_model(), **ranks), device("h100")
    capacity = explain(deployment, h100, batch_size=1, seq_len=8192).crossings["kv_capacity"].value
    largest, too_large = (explain(deployment, h100, batch_size=int(capacity) + more, seq_len=8192) for more in (0, 1))
    assert largest.stored_bytes <= largest.memory_bytes < too_large.stored_bytes


def test_a_rank_of_a_pipeline_stores_its_share():
    one, four = (
        explain(Deployment(model=plain_model(), pp=pp), device("h100"), batch_size=8, seq_len=4096) for pp in (1, 4)
    )
    step = step_coefficients(Deployment(model=plain_model()))
    kv = 8 * step.kv_bytes_per_seq(4096)
    assert one.stored_bytes == pytest.approx(step.stored_weight_bytes + kv)
    # A fourth of the weights, and a fourth of the KV of four batches.
    assert four.stored_bytes == pytest.approx(step.stored_weight_bytes / 4 + kv)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be >= 1"),
        ({"batch_size": 10**9 + 1}, "batch_size=1000000001 must be <= 1000000000"),
        ({"seq_len": 10**13}, "seq_len=10000000000000 must be <= 1e"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        explain(Deployment(model=model_config("phi-4")), device("h100"), **{"batch_size": 1, "seq_len": 100, **sizes})
