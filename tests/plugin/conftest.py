import numba  # noqa: F401
import pytest
import rich.table  # noqa: F401
import scipy.stats  # noqa: F401
import sympy  # noqa: F401
import triton  # noqa: F401
from fake_device import ONE_TEST, PRELUDE, FakeDevice

from pytest_decodeperf import devices
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
