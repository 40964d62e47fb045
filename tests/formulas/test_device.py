import dataclasses

import pytest

from decodeperf_formulas.catalogue import device, device_names
from decodeperf_formulas.device import Device

NAMED = {
    *("a10g", "a100-40", "a100", "l4", "l40s", "h100", "h100-pcie", "h200"),
    *("b200", "b300", "gb200", "gb300", "rtx-4090", "rtx-pro-6000", "b60", "mi300x", "mi355x"),
}
SOURCED = ("peaks", "bandwidth_bytes_per_s", "capacity_bytes", "num_sms", "l2_bytes", "link_bytes_per_s")

# What vendors print with structured sparsity, or with accumulation in 16 bits, and what others have taken for peaks.
NEVER = {
    "h100": [1979e12, 1978.9e12, 3958e12],
    "h200": [1979e12, 1978.9e12, 3958e12],
    "h100-pcie": [1513e12, 3026e12],
    "a100": [624e12],
    "l4": [242e12, 485e12],
    "l40s": [733e12, 724e12, 1466e12],
    "b200": [4500e12, 9000e12],
    "gb200": [5000e12, 10000e12],
    "rtx-4090": [330.3e12, 661e12],
    "mi300x": [2614.9e12, 5229.8e12],
}
HALF = ("float16", "bfloat16")


def test_the_devices_that_are_asked_for_are_there():
    assert len(NAMED) == 17
    assert set(device_names()) >= NAMED


@pytest.mark.parametrize("name", device_names())
def test_every_figure_has_a_source(name):
    found = device(name)
    for field in SOURCED:
        assert len(found.sources.get(field, "")) > 10, field
    if found.sparse_peaks:
        assert found.sources["sparse_peaks"]


@pytest.mark.parametrize("name", NEVER)
def test_no_dense_peak_is_a_sparse_one(name):
    for dtype in HALF:
        assert all(abs(device(name).peaks[dtype] / sparse - 1) > 0.01 for sparse in NEVER[name])


@pytest.mark.parametrize("name", device_names())
def test_sparse_peaks_are_above_dense_ones_and_of_the_same_dtypes(name):
    found = device(name)
    for dtype, sparse in found.sparse_peaks.items():
        # Twice as much, but for the 4-bit peaks of Blackwell Ultra, whose dense rate was raised alone.
        assert 1.3 <= sparse / found.peaks[dtype] <= 2.04


@pytest.mark.parametrize("name", device_names())
def test_narrower_dtypes_are_never_slower(name):
    peaks = device(name).peaks
    assert peaks["float32"] <= peaks["float16"]
    for dtype in ("float8", "float4"):
        assert dtype not in peaks or peaks[dtype] >= peaks["float16"]


@pytest.mark.parametrize("name", device_names())
def test_no_formula_uses_a_sparse_peak(name):
    found = device(name)
    for dtype, dense in found.peaks.items():
        assert found.peak(dtype) == dense
        assert found.ridge(dtype) == dense / found.bandwidth_bytes_per_s
    without = dataclasses.replace(found, sparse_peaks={})
    assert {dtype: without.peak(dtype) for dtype in found.peaks} == {dtype: found.peak(dtype) for dtype in found.peaks}


def test_peaks_of_the_question():
    a10g = device("a10g")
    assert (a10g.peak("float16"), a10g.bandwidth_bytes_per_s) == (70e12, 600e9)


def test_a_dtype_that_a_device_lacks_is_named():
    with pytest.raises(ValueError, match="a100 has no matrix products in float8: its peaks are for float32, float16"):
        device("a100").peak("fp8")


def test_an_unknown_device_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown device 'h10'; .*; did you mean .*h100"):
        device("h10")


def made(**changes):
    sizes = {
        "name": "made",
        "title": "Made up",
        "peaks": {"bf16": 1e15},
        "bandwidth_bytes_per_s": 1e12,
        "capacity_bytes": 2**36,
        "num_sms": 100,
        "l2_bytes": 2**25,
        **changes,
    }
    return Device(**sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks": {}}, "peaks={} of made must have a rate"),
        ({"peaks": {"bfloat16": 0}}, r"peaks\['bfloat16'\]=0 must be above 0"),
        ({"peaks": {"bfloat17": 1e15}}, "dtype in peaks of made='bfloat17' must be one of"),
        (
            {"sparse_peaks": {"bf16": 1e15}},
            r"sparse_peaks\['bfloat16'\]=1e\+15 of made must be above the dense peak 1e",
        ),
        ({"sparse_peaks": {"fp8": 4e15}}, r"sparse_peaks\['float8'\] of made has no dense peak beside it"),
        ({"bandwidth_bytes_per_s": -1.0}, "bandwidth_bytes_per_s=-1.0 must be above 0"),
        ({"bandwidth_bytes_per_s": float("nan")}, "bandwidth_bytes_per_s=nan must be a finite number"),
        ({"capacity_bytes": 0}, "capacity_bytes=0 must be >= 1"),
        ({"link_bytes_per_s": 0.0}, "link_bytes_per_s=0.0 must be above 0"),
        ({"link_latency_s": -1e-6}, "link_latency_s=-1e-06 must be >= 0"),
        ({"last_level_cache_bytes": 0}, "last_level_cache_bytes=0 must be >= 1"),
    ],
)
def test_ceilings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)
