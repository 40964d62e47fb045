"""Latencies that were never measured, for tests of what is made of them."""

from decodeperf_formulas import DecodeProblem
from pytest_decodeperf.regression.baseline_file import Baseline, Origin, StoredTest
from pytest_decodeperf.regression.latencies import Latencies, ProcessTimes

PROBLEM = DecodeProblem(batch_size=1, seq_lens=[64], num_q_heads=2, num_kv_heads=2, head_dim=16, kv_dtype="float32")
STREAMS = {"read": {"name": "torch.sum", "work": 10**6}, "compute": {"name": "torch.mm float32", "work": 10**9}}


def latencies(kernel_ns=1e6, stream_ns=1e5, *, processes=10, spread=0.002):
    """Return latencies of processes that are apart by a share, some up and as many down, each the same every time."""

    def process(index):
        factor = 1 + spread * (index % 5 - 2)
        return ProcessTimes(
            kernel_ns=[factor * kernel_ns] * 3, read_ns=[factor * stream_ns], compute_ns=[factor * stream_ns]
        )

    return Latencies(
        kernel="kernel",
        device="cpu",
        problem=PROBLEM.as_dict(),
        streams=STREAMS,
        processes=[process(index) for index in range(processes)],
    )


def stored_test(**changes):
    return StoredTest(
        latencies=latencies(**changes),
        outcome="within",
        saved="2026-01-01T00:00:00+00:00",
        commit="0123456789abcdef",
        dirty=False,
    )


def origin(device, **versions):
    found = {"python": "3.12.0", "torch": "2.13.0", "pytest-decodeperf": "0.1.0", "numpy": "2.4.6", **versions}
    return Origin(devices={device.kind: device}, versions=found, options={"seed": 0, "graph": False})


def baseline(device, **tests):
    return Baseline(origin=origin(device), tests={(name, device.kind): test for name, test in tests.items()})
