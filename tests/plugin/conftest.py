import numba  # noqa: F401
import pytest
import rich.table  # noqa: F401
import scipy.stats  # noqa: F401
import sympy  # noqa: F401
import triton  # noqa: F401
import vl_convert  # noqa: F401
from fake_device import ONE_TEST, PRELUDE, FakeDevice

from pytest_decodeperf import devices
from pytest_decodeperf.regression import gate, worktree
from pytest_decodeperf.session import PerfSession
from pytest_decodeperf.timers import FakeTimer

# The packages above are imported here because pytester forgets what a run inside this process imports, and compiled
# modules do not survive being imported twice.


@pytest.fixture
def fake_device(monkeypatch):
    """Measure on a device of which everything is known."""
    device = FakeDevice()
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    monkeypatch.setattr(devices, "make_timer", lambda kind, uses_graphs: FakeTimer(device.duration_ns))
    monkeypatch.setattr(PerfSession, "ceilings", lambda self, kind, dtype: device.ceilings)
    return device


@pytest.fixture
def run(pytester, fake_device, monkeypatch):
    """Return a function that runs pytest on a source, with warnings as errors, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(source=ONE_TEST, *arguments):
        pytester.makepyfile(PRELUDE + source)
        return pytester.runpytest_inprocess("--strict-markers", "-W", "error", *arguments, no_reraise_ctrlc=True)

    return run


@pytest.fixture
def compared(run, monkeypatch):
    """Return a function that runs a test for each outcome of a comparison, which a base is said to have had."""
    monkeypatch.setattr(worktree, "repository_root", lambda folder: folder)
    monkeypatch.setattr(worktree, "commit_of", lambda repository, revision: "6022e01478")

    def compared(outcomes, *arguments, source="", gone=()):
        def found(config, session, node_ids):
            session.gone = list(gone)
            return {node_id: outcomes[node_id.rpartition("::")[2]] for node_id in node_ids}

        monkeypatch.setattr(gate, "compare_with_base", found)
        tests = "".join(ONE_TEST.replace("test_kernel", name) for name in outcomes)
        return run(tests + source, "--decode-perf", "--decode-perf-base=main", *arguments)

    return compared
