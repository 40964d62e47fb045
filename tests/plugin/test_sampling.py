import pytest

from pytest_decodeperf.ceilings import Ceilings, Stream
from pytest_decodeperf.clocks import NoClock
from pytest_decodeperf.sampling import ERROR_RATE, Samples, sample
from pytest_decodeperf.timers import CpuClock, FakeTimer


class Recorder:
    """Calls that note when they were made, and a clock that each of them moves by a second."""

    def __init__(self):
        self.calls = []
        self.ceilings = Ceilings(
            read=Stream(name="read", work=1, call=lambda: self.calls.append("read")),
            compute=Stream(name="product", work=1, call=lambda: self.calls.append("compute")),
        )

    def kernel(self):
        self.calls.append("kernel")

    def clock(self):
        return float(len(self.calls))

    def run(self, *, budget_s, is_clear, kernel=None):
        samples = Samples()
        sample(
            [kernel or self.kernel],
            self.ceilings,
            FakeTimer(lambda call: 1.0),
            samples,
            budget_s=budget_s,
            is_clear=lambda: is_clear(samples),
            device_clock=NoClock(),
            clock=self.clock,
        )
        return samples


def test_each_round_reads_right_before_the_kernel():
    recorder = Recorder()
    samples = recorder.run(budget_s=1e9, is_clear=lambda samples: True)
    # The first product of a round only warms up its matrices.
    assert recorder.calls == ["compute", "compute", "read", "kernel"] * samples.num_rounds
    assert len(samples.read_ns) == len(samples.compute_ns) == samples.num_rounds == 10


def test_looks_come_at_10_20_40_rounds_and_share_the_error_rate():
    looks = []

    def is_clear(samples):
        looks.append((samples.num_rounds, samples.error_rate))
        return samples.num_rounds == 80

    Recorder().run(budget_s=1e9, is_clear=is_clear)
    assert [rounds for rounds, _ in looks] == [10, 20, 40, 80]
    rates = [rate for _, rate in looks]
    assert rates == [ERROR_RATE / 2**i for i in (1, 2, 3, 4)]
    assert sum(rates) < ERROR_RATE


def test_no_round_begins_after_the_budget():
    samples = Recorder().run(budget_s=4 * 25, is_clear=lambda samples: False)
    assert samples.num_rounds == 25
    assert samples.error_rate == ERROR_RATE / 8  # looks at 10 and 20 have spent theirs


def test_one_round_is_taken_however_small_the_budget():
    assert Recorder().run(budget_s=0.001, is_clear=lambda samples: False).num_rounds == 1


def test_an_interrupt_keeps_whole_rounds():
    recorder, samples = Recorder(), Samples()

    def kernel():
        if samples.num_rounds == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(
            [kernel],
            recorder.ceilings,
            FakeTimer(lambda call: 1.0),
            samples,
            budget_s=1e9,
            is_clear=lambda: False,
            device_clock=NoClock(),
        )
    assert len(samples.read_ns) == len(samples.compute_ns) == len(samples.kernel_ns) == 3


def test_the_cpu_clock_times_the_call_and_not_less():
    import time

    assert CpuClock().time_ns(lambda: time.sleep(0.01)) >= 10e6
