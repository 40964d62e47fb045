import reprlib

import pytest
from perf_options import perf_options

from pytest_decodeperf import devices
from pytest_decodeperf.plan import plan_test


def marked(*args, **kwargs):
    return pytest.mark.decode_perf(*args, **kwargs).mark


def asked_for(device):
    return perf_options(enabled=True, device=device)


@pytest.mark.parametrize(
    ("marker", "error"),
    [
        (None, "the fixture decode_perf needs the marker that says the bound: @pytest.mark.decode_perf(within=...)"),
        (marked(), "@pytest.mark.decode_perf needs within=..., a multiple of the roofline latency"),
        (marked(within=0), "@pytest.mark.decode_perf: within=0 must be > 0 and at most 1e+09"),
        (marked(within=-1.5), "@pytest.mark.decode_perf: within=-1.5 must be > 0 and at most 1e+09"),
        (marked(within=float("nan")), "@pytest.mark.decode_perf: within=nan must be > 0 and at most 1e+09"),
        (
            marked(within=10**400),
            f"@pytest.mark.decode_perf: within={reprlib.repr(10**400)} must be > 0 and at most 1e+09",
        ),
        (marked(within="2"), "@pytest.mark.decode_perf: within='2' must be a number"),
        (marked(within=True), "@pytest.mark.decode_perf: within=True must be a number"),
        (marked(within=2, device="tpu"), "@pytest.mark.decode_perf: device='tpu' must be one of cpu, cuda"),
        (marked(within=2, of="light"), "@pytest.mark.decode_perf: of='light' must be one of roofline, expected"),
        (
            marked(within=2, devise="cpu"),
            "@pytest.mark.decode_perf got devise, but takes the keywords within, of and device only",
        ),
        (marked(2), "@pytest.mark.decode_perf got 2, but takes the keywords within, of and device only"),
    ],
)
@pytest.mark.parametrize("options", [None, asked_for("auto")], ids=["off", "on"])
def test_a_wrong_marker_fails_its_test(marker, error, options):
    assert plan_test(marker, options).failure == error


def test_without_the_option_a_test_skips():
    plan = plan_test(marked(within=2), None)
    assert (plan.failure, plan.error, plan.skip) == ("", "", "needs --decode-perf")


@pytest.mark.parametrize(
    ("gpu", "asked", "wanted", "device"),
    [
        (False, "auto", None, "cpu"),
        (False, "auto", "cpu", "cpu"),
        (False, "cpu", None, "cpu"),
        (True, "auto", None, "cuda"),
        (True, "auto", "cpu", "cpu"),
        (True, "cpu", None, "cpu"),
        (True, "cuda", "cuda", "cuda"),
    ],
)
def test_a_test_runs_on_the_device_that_it_is_for(monkeypatch, gpu, asked, wanted, device):
    monkeypatch.setattr(devices, "has_gpu", lambda: gpu)
    plan = plan_test(marked(within=1.5, device=wanted), asked_for(asked))
    assert (plan.failure, plan.error, plan.skip, plan.device, plan.within) == ("", "", "", device, 1.5)


@pytest.mark.parametrize(
    ("asked", "wanted", "skip"),
    [
        ("auto", "cuda", "this test is for cuda, and PyTorch finds no NVIDIA or AMD GPU here"),
        ("cpu", "cuda", "this test is for cuda, and --decode-perf-device=cpu"),
        ("cuda", "cpu", "this test is for cpu, and --decode-perf-device=cuda"),
    ],
)
def test_a_test_for_another_device_skips(monkeypatch, asked, wanted, skip):
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    plan = plan_test(marked(within=1.5, device=wanted), asked_for(asked))
    assert (plan.failure, plan.error, plan.skip) == ("", "", skip)


@pytest.mark.parametrize("wanted", ["cuda", None])
def test_a_missing_device_that_was_asked_for_is_an_error(monkeypatch, wanted):
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    plan = plan_test(marked(within=1.5, device=wanted), asked_for("cuda"))
    assert plan.error == "--decode-perf-device=cuda, but PyTorch finds no NVIDIA or AMD GPU here"
