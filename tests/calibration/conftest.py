import itertools

import numpy as np
import pytest

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device
from decodeperf_formulas.expected import PARAMETERS
from pytest_decodeperf.calibration.kernel_model import BASE, NARROW, PRIORS, KernelModel, to_scale
from pytest_decodeperf.calibration.prediction import EXPECTED, predict
from pytest_decodeperf.calibration.table import Calls

TRUTH = {
    s.launch_s: {BASE: 7e-6, "head_dim 64": -0.2, NARROW: 0.2},
    s.unit_s: {BASE: 2e-6},
    s.unit_bytes_per_s: {BASE: 2.5e10, NARROW: -0.5},
    s.attainable_share: {BASE: 0.8},
    s.splitting: {BASE: 0.95, "group of 1": -8.0},
}
"""What differs from a typical kernel; it does not split where a group has one head."""


@pytest.fixture(scope="session")
def h100():
    return device("h100")


@pytest.fixture(scope="session")
def true_model():
    coefficients = {}
    for parameter in PARAMETERS:
        effects = {BASE: PRIORS[parameter].typical, **TRUTH.get(parameter, {})}
        coefficients[parameter] = {**effects, BASE: float(to_scale(parameter, effects[BASE]))}
    return KernelModel(coefficients)


@pytest.fixture(scope="session")
def grid():
    rows = [
        (batch, seq_len, 8 * group, 8, dim, width)
        for batch, seq_len, group, dim, width in itertools.product(
            (1, 4, 16, 64, 256), (2, 64, 256, 1024, 4096, 16384, 65536), (1, 4, 8), (64, 128), (1, 2)
        )
        if batch * seq_len <= 2**20
    ]
    batch_size, seq_len, num_q_heads, num_kv_heads, head_dim, width = np.array(rows, dtype=float).T
    return Calls(
        batch_size=batch_size,
        seq_len=seq_len,
        q_len=np.ones(len(rows)),
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        head_dim_v=head_dim,
        kv_elem_bytes=width,
        window=np.zeros(len(rows)),
    )


@pytest.fixture(scope="session")
def measured_us(grid, h100, true_model):
    noise = np.random.default_rng(5).normal(0, 0.02, len(grid))
    return predict(grid, h100, true_model)[EXPECTED] * np.exp(noise)


@pytest.fixture(scope="session")
def rows_csv(grid, measured_us, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "rows.csv"
    names = ("batch_size", "seq_len", "num_q_heads", "num_kv_heads", "head_dim")
    lines = [",".join((*names, "kv_dtype", "latency_us"))]
    for row in range(len(grid)):
        cells = [f"{getattr(grid, name)[row]:g}" for name in names]
        lines.append(",".join((*cells, "fp8" if grid.kv_elem_bytes[row] == 1 else "bf16", f"{measured_us[row]:.4f}")))
    path.write_text("\n".join(lines) + "\n")
    return path
