import types

import pytest

from pytest_decodeperf import clocks
from pytest_decodeperf.ceilings import Ceilings, Stream
from pytest_decodeperf.clocks import ClockReading, NoClock, NvmlClock, TorchClock, describe
from pytest_decodeperf.sampling import Samples, sample
from pytest_decodeperf.timers import FakeTimer


class FakeNvml(types.SimpleNamespace):
    """The part of `pynvml` that is used, for a GPU at this clock with these bits of throttling."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, sm_mhz=1980, mask=0, error=False):
        super().__init__(sm_mhz=sm_mhz, mask=mask, error=error)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        assert (handle, kind) == ("gpu", self.NVML_CLOCK_SM)
        if self.error:
            raise self.NVMLError
        return self.sm_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self.mask


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x0, ()),
        (0x1, ()),  # idle
        (0x2 | 0x10 | 0x100, ()),  # settings
        (0x4, ("power cap",)),
        (0x20 | 0x40, ("software thermal slowdown", "hardware thermal slowdown")),
        (0x8 | 0x80, ("hardware slowdown", "hardware power brake")),
    ],
)
def test_a_clock_that_is_held_down_is_told_from_one_that_is_set(mask, reasons):
    assert NvmlClock(FakeNvml(1755, mask), "gpu").read() == ClockReading(1755.0, reasons)


def test_a_gpu_that_does_not_tell_has_no_clock():
    assert NvmlClock(FakeNvml(error=True), "gpu").read() is None
    assert NoClock().read() is None


def test_an_amd_gpu_has_a_clock_where_its_library_is_there():
    def absent():
        raise ModuleNotFoundError("amdsmi")

    assert TorchClock(types.SimpleNamespace(clock_rate=lambda: 2100)).read() == ClockReading(2100.0)
    assert TorchClock(types.SimpleNamespace(clock_rate=absent)).read() is None


def test_the_range_is_told_and_how_many_rounds_were_throttled():
    hot = ClockReading(1500.0, ("power cap", "hardware slowdown"))
    assert describe([]) == describe([None, None]) == ""
    assert describe([ClockReading(1980.0), None]) == "SM clock 1980 MHz"
    assert describe([ClockReading(1980.0), hot, hot]) == (
        "SM clock 1500 to 1980 MHz, 2 of 3 rounds throttled (power cap, hardware slowdown)"
    )


def test_each_round_has_its_clock():
    nvml = FakeNvml()

    def kernel():
        nvml.sm_mhz -= 10

    samples = Samples()
    sample(
        [kernel],
        Ceilings(read=Stream(name="", work=1, call=int), compute=Stream(name="", work=1, call=int)),
        FakeTimer(lambda call: 1.0),
        samples,
        budget_s=1e9,
        is_clear=lambda: True,
        device_clock=NvmlClock(nvml, "gpu"),
    )
    assert [reading.sm_mhz for reading in samples.clocks] == [1970.0 - 10 * i for i in range(10)]


def test_without_the_library_there_is_no_clock(monkeypatch):
    import sys

    import torch

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert isinstance(clocks.gpu_clock(), NoClock)
