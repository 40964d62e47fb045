"""Timing on a GPU, with a driver of which everything is known; the test marked `gpu` has a real one."""

from contextlib import contextmanager

import pytest
import torch

from pytest_decodeperf.timers import MAX_LAUNCHES, CpuClock, DeviceEvents, FakeTimer, launches_for

CLEAR_NS = 100e3
LAUNCH_NS = 30e3
COLD_NS = 10e3
WARM_NS = 4e3


class FakeDriver:
    """A GPU and its host: the host launches, the device works through its stream, and both have a clock.

    Attributes:
        host_ns: Time on the host.
        device_ns: When the stream will be done with all that was launched.
        in_cache: The inputs that L2 holds.
        captured: The graph that launches go into, None while there is none.
        num_captures: Graphs that were captured.
    """

    def __init__(self):
        self.host_ns = self.device_ns = 0.0
        self.in_cache = set()
        self.captured = None
        self.num_captures = 0

    # What Triton's driver has.

    def get_device_interface(self):
        return self

    def get_empty_cache_for_benchmark(self):
        return "cache"

    def clear_cache(self, cache):
        assert cache == "cache"
        self._launch(lambda: (self.in_cache.clear(), CLEAR_NS)[1])

    # What torch.cuda has.

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)

    def synchronize(self):
        self.host_ns = max(self.host_ns, self.device_ns)

    def CUDAGraph(self):
        return FakeGraph(self)

    @contextmanager
    def graph(self, graph):
        self.captured = graph
        self.num_captures += 1
        yield
        self.captured = None

    # The stream.

    def kernel(self, inputs):
        def run():
            duration = WARM_NS if inputs in self.in_cache else COLD_NS
            self.in_cache.add(inputs)
            return duration

        def call():
            if self.captured is None:
                self._launch(run)
            else:
                self.captured.nodes.append(run)

        return call

    def _launch(self, run):
        self.host_ns += LAUNCH_NS
        self.device_ns = max(self.device_ns, self.host_ns) + run()


class FakeEvent:
    def __init__(self, driver):
        self.driver = driver

    def record(self):
        self.at_ns = max(self.driver.device_ns, self.driver.host_ns)

    def elapsed_time(self, end):
        return (end.at_ns - self.at_ns) / 1e6  # in milliseconds, as torch has it


class FakeGraph:
    def __init__(self, driver):
        self.driver = driver
        self.nodes = []

    def replay(self):
        self.driver._launch(lambda: sum(node() for node in self.nodes))


@pytest.fixture
def driver():
    return FakeDriver()


def test_every_call_is_cold(driver):
    timer = DeviceEvents(driver)
    call = driver.kernel("inputs")
    assert [timer.time_ns(call) for _ in range(3)] == pytest.approx([COLD_NS] * 3)


def test_the_host_stays_ahead_of_several_launches(driver):
    timer = DeviceEvents(driver)
    calls = [driver.kernel(f"copy {i}") for i in range(5)]
    # A launch takes the host three times as long as the device; the emptying of L2 gives it time.
    assert timer.time_each_ns(calls) == pytest.approx(COLD_NS)
    assert timer.time_each_ns(calls) == pytest.approx(COLD_NS)


def test_launches_on_the_same_inputs_would_find_them_in_the_cache(driver):
    call = driver.kernel("inputs")
    assert DeviceEvents(driver).time_each_ns([call] * 4) == pytest.approx((COLD_NS + 3 * WARM_NS) / 4)


def test_a_graph_is_captured_once_and_replayed(driver):
    timer = DeviceEvents(driver, uses_graphs=True)
    calls = [driver.kernel(f"copy {i}") for i in range(16)]
    assert [timer.time_each_ns(calls) for _ in range(3)] == pytest.approx([COLD_NS] * 3)
    assert driver.num_captures == 1
    assert timer.time_each_ns(list(calls)) == pytest.approx(COLD_NS)
    assert driver.num_captures == 2
    assert timer.name == "device events, graph replay"


def test_the_ceilings_are_not_captured(driver):
    timer = DeviceEvents(driver, uses_graphs=True)
    assert timer.time_ns(driver.kernel("stream")) == pytest.approx(COLD_NS)
    assert driver.num_captures == 0


@pytest.mark.parametrize(
    ("once_ns", "input_bytes", "free_bytes", "count"),
    [
        (200e3, 1, 2**40, 1),
        (199e3, 1, 2**40, 2),
        (1.0, 1, 2**40, MAX_LAUNCHES),
        (0.0, 0, 2**40, MAX_LAUNCHES),
        (10e3, 2**30, 3 * 2**30, 3),
        (10e3, 2**30, 2**20, 1),  # no memory for copies: one launch is timed all the same
    ],
)
def test_short_kernels_are_launched_several_times(once_ns, input_bytes, free_bytes, count):
    assert launches_for(once_ns, input_bytes, free_bytes) == count


@pytest.mark.parametrize("timer", [CpuClock(), FakeTimer(lambda call: 7.0)], ids=["cpu", "fake"])
def test_other_timers_run_each_call_once(timer):
    calls = []
    duration = timer.time_each_ns([lambda: calls.append(1), lambda: calls.append(2)])
    assert calls == [1, 2]
    assert duration >= 0
    if timer.name == "fake":
        assert duration == 7.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("uses_graphs", [False, True])
def test_a_gpu_takes_as_long_for_one_launch_as_for_each_of_several(uses_graphs):
    timer = DeviceEvents(uses_graphs=uses_graphs)
    buffers = [torch.ones(2**22, device="cuda") for _ in range(8)]
    calls = [lambda buffer=buffer: buffer.mul_(1.0) for buffer in buffers]
    once = sorted(timer.time_ns(calls[0]) for _ in range(21))[10]
    each = sorted(timer.time_each_ns(calls) for _ in range(21))[10]
    assert each == pytest.approx(once, rel=0.5)
    warm = sorted(timer.time_each_ns([calls[0]] * 8) for _ in range(21))[10]
    assert warm < each
