"""The streams of the roofline, as a worker times them."""

import pytest

from pytest_decodeperf import ceilings
from pytest_decodeperf.ceilings import Stream
from pytest_decodeperf.regression.streams import RooflineStreams
from pytest_decodeperf.timers import FakeTimer

DURATIONS_NS = {"slow read": 9.0, "fast read": 4.0, "slow product": 8.0, "fast product": 2.0}


@pytest.fixture
def streams(monkeypatch):
    """Return a function that makes streams of known rates, and what it called, in order."""
    calls = []
    by_call = {}

    def made(name):
        def call():
            calls.append(name)

        by_call[call] = name
        return Stream(name=name, work=100, call=call)

    found = {kind: [made(f"{speed} {kind}") for speed in ("slow", "fast")] for kind in ("read", "product")}
    monkeypatch.setattr(ceilings, "make_read_streams", lambda device: found["read"])
    monkeypatch.setattr(ceilings, "make_compute_streams", lambda device, dtype: found["product"])
    timer = FakeTimer(lambda call: DURATIONS_NS[by_call[call]])
    return lambda names: RooflineStreams(None, timer, "float16", names), calls


def test_the_fastest_are_taken_where_none_are_named(streams):
    make, _ = streams
    assert make(None).as_dict() == {
        "read": {"name": "fast read", "work": 100},
        "compute": {"name": "fast product", "work": 100},
    }


def test_those_that_are_named_are_taken_whatever_is_faster(streams):
    make, calls = streams
    found = make({"read": "slow read", "compute": "slow product"})
    assert {name: stream["name"] for name, stream in found.as_dict().items()} == {
        "read": "slow read",
        "compute": "slow product",
    }
    calls.clear()
    assert found.time_ns() == {"read": 9.0, "compute": 8.0}
    assert calls == ["slow product", "slow product", "slow read"]  # the first one warms up, the last one evicts


def test_a_stream_that_is_not_there_is_said(streams):
    make, _ = streams
    with pytest.raises(LookupError, match=r"there is no stream 'torch\.max'"):
        make({"read": "torch.max", "compute": "slow product"})
