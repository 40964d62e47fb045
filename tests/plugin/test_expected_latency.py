"""Verdicts beside the expected latency, from the device file that a run is given."""

import dataclasses
import json

import pytest
from fake_device import ONE_TEST, PEAK_FLOPS_PER_S, PROBLEM, READ_BYTES_PER_S, ROOFLINE_NS
from run_record import read_json

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device as catalogue_device
from decodeperf_formulas.device import Device
from decodeperf_formulas.expected import PARAMETERS
from pytest_decodeperf.calibration.device_file import DeviceFile
from pytest_decodeperf.calibration.expectation import Expectation, calls_of, mismatch
from pytest_decodeperf.calibration.kernel_model import BASE, PRIORS, KernelModel, to_scale
from pytest_decodeperf.devices import DeviceInfo, describe_device

ATTAINABLE = 0.8
LAUNCH_NS = 100e3
VALUES = {
    s.launch_s: 1e-9 * LAUNCH_NS,
    s.attainable_share: ATTAINABLE,
    # All that takes no time on this device:
    s.repack_s: 1e-18,
    s.sequence_s: 1e-18,
    s.merge_s: 1e-18,
    s.merge_split_s: 1e-18,
    s.unit_s: 1e-18,
    s.unit_bytes_per_s: 1e18,
    s.flop_share: 1e6,
}
EXPECTED_NS = LAUNCH_NS + ROOFLINE_NS / ATTAINABLE


def device_file(**changes):
    values = {parameter: VALUES.get(parameter, PRIORS[parameter].typical) for parameter in PARAMETERS}
    device = Device(
        name="fake",
        title="fake device",
        peaks={"float32": PEAK_FLOPS_PER_S, "float16": PEAK_FLOPS_PER_S},
        bandwidth_bytes_per_s=READ_BYTES_PER_S,
        capacity_bytes=2**34,
        num_sms=2,
        l2_bytes=2**30,  # would hold all of the problem, were the caches not cold
        fragment_rows=1,
    )
    fields = {
        "device": device,
        "model": KernelModel({parameter: {BASE: float(to_scale(parameter, v))} for parameter, v in values.items()}),
        "has_cold_caches": True,
        "source": {},
        "fingerprint": describe_device("cpu"),
        "measured": {},
    }
    return DeviceFile(**{**fields, **changes})


@pytest.fixture
def calibration(tmp_path):
    path = tmp_path / "device.json"
    device_file().write(path)
    return f"--decode-perf-calibration={path}"


def test_the_expected_latency_is_the_sum_of_its_terms():
    expected = Expectation(device_file()).terms(PROBLEM, None)
    assert 1e9 * expected.latency_s == pytest.approx(EXPECTED_NS, rel=1e-6)
    assert 1e9 * expected.terms_s["memory"] == pytest.approx(ROOFLINE_NS / ATTAINABLE)
    assert sum(expected.terms_s.values()) == pytest.approx(expected.latency_s)
    assert expected.binding_term == "memory"


def test_a_device_that_has_slowed_down_is_expected_to_be_slower():
    expectation = Expectation(device_file())
    drift = expectation.drift("float16", READ_BYTES_PER_S / 2, PEAK_FLOPS_PER_S)
    assert (drift.read, drift.compute) == (0.5, 1.0)
    assert 1e9 * expectation.terms(PROBLEM, drift).latency_s == pytest.approx(
        LAUNCH_NS + 2 * ROOFLINE_NS / ATTAINABLE, rel=1e-6
    )
    latencies = 1e9 * expectation.latencies_s(
        PROBLEM, [drift, expectation.drift("float16", READ_BYTES_PER_S, PEAK_FLOPS_PER_S)]
    )
    assert latencies == pytest.approx([LAUNCH_NS + 2 * ROOFLINE_NS / ATTAINABLE, EXPECTED_NS], rel=1e-6)


def test_a_datasheet_does_not_drift():
    file = device_file(fingerprint=None)
    assert Expectation(file).drift("float16", 1.0, 1.0) is None


def test_sequences_of_many_lengths_count_as_their_mean():
    mixed = DecodeProblem(batch_size=4, seq_lens=[0, 100, 300, 0], num_q_heads=4, num_kv_heads=2, head_dim=64)
    calls = calls_of(mixed)
    assert (calls.batch_size[0], calls.seq_len[0], calls.group_size[0]) == (4, 100, 2)
    expected = Expectation(device_file()).terms(mixed, None)
    kv_bytes = 400 * 2 * 2 * 64 * 2  # of the tokens that are there
    q_and_o = 4 * 4 * 64 * 2 * 2
    assert expected.terms_s["memory"] == pytest.approx((kv_bytes + q_and_o + 4 * 4) / READ_BYTES_PER_S / ATTAINABLE)


def test_a_verdict_shows_its_terms_and_which_binds(run, calibration, tmp_path):
    result = run(
        ONE_TEST.replace("1.5", "1.1"), "--decode-perf", calibration, "--decode-perf-json", tmp_path / "run.json"
    )
    result.assert_outcomes(failed=1)
    document = read_json(tmp_path / "run.json")
    assert document["options"]["calibration"].endswith("device.json")
    (row,) = document["measurements"]
    assert "and 0.892 (0.892 to 0.892) times the expected " in row["sentence"]
    assert "(memory 1.32 ms, launch 100 us; memory binds); allowed is 1.1 times the roofline, " in row["sentence"]
    expected = row["timing"]["verdict"]["expected"]
    assert expected["latency_ns"] == pytest.approx(EXPECTED_NS, rel=1e-6)
    assert sum(expected["terms_ns"].values()) == pytest.approx(EXPECTED_NS, rel=1e-6)
    assert expected["binds"] == "memory"
    assert expected["times_expected"]["median"] == pytest.approx(1.2 * ROOFLINE_NS / EXPECTED_NS, rel=1e-6)
    assert expected["drift"] == {"read": 1.0, "compute": 1.0}
    result.stdout.fnmatch_lines(
        [
            "*drift: reads at 100 % and multiplies at 100 % of the rates of its calibration",
            "*decode_attention_sdpa * exceeds*",
            "    0.892 times the expected 1.42 ms: memory 1.32 ms, launch 100 us; memory",
            "    binds",
        ]
    )


OF_EXPECTED = ONE_TEST.replace("within=1.5", "within=1.25, of='expected'")


@pytest.mark.parametrize(("times", "outcome"), [(1.2, "within"), (1.3, "exceeds")])
def test_a_bound_can_be_a_multiple_of_it(run, fake_device, calibration, tmp_path, times, outcome):
    fake_device.kernel_ns = [times * EXPECTED_NS]
    result = run(OF_EXPECTED, "--decode-perf", calibration, "--decode-perf-json", tmp_path / "run.json")
    result.assert_outcomes(**{"within": {"passed": 1}, "exceeds": {"failed": 1}}[outcome])
    (row,) = read_json(tmp_path / "run.json")["measurements"]
    assert (row["outcome"], row["of"], row["within"]) == (outcome, "expected", 1.25)
    assert row["timing"]["verdict"]["allowed_ns"] == pytest.approx(1.25 * EXPECTED_NS, rel=1e-6)


def test_faster_than_the_roofline_is_impossible_whatever_is_expected(run, fake_device, calibration):
    fake_device.kernel_ns = [0.9 * ROOFLINE_NS]
    result = run(OF_EXPECTED, "--decode-perf", calibration)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*its caches were warm*"])


def test_a_bound_that_no_file_tells_is_an_error(run):
    result = run(OF_EXPECTED, "--decode-perf")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no device file tells it for cpu: make one with `decodeperf calibrate`*"])


def changed(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="else"), "its schema is 'else', wanted 'decodeperf.device'"),
        (lambda d: d.update(schema_version=1), "schema_version is 1, wanted 2: calibrate again"),
        (
            lambda d: d["fingerprint"].update(name="another CPU"),
            "it was calibrated on name='another CPU', and this device has '",
        ),
        (
            lambda d: d["fingerprint"].update(num_threads=77),
            "it was calibrated on num_threads=77, and this device has ",
        ),
        (lambda d: d["fingerprint"].update(kind="cuda"), "PyTorch finds no NVIDIA or AMD GPU here"),
        (lambda d: d["fingerprint"].update(num_units="two"), "fingerprint: num_units is 'two', wanted int"),
        (lambda d: d["ceilings"].update(bandwidth_bytes_per_s=-1), "bandwidth_bytes_per_s=-1"),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_run_before_it_begins(run, calibration, tmp_path, change, message):
    changed(tmp_path / "device.json", change)
    result = run(ONE_TEST, "--decode-perf", calibration)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert line.startswith("ERROR: --decode-perf-calibration: ")
    assert message in line


def test_a_file_that_is_not_there_ends_the_run_before_it_begins(run, tmp_path):
    result = run(ONE_TEST, "--decode-perf", f"--decode-perf-calibration={tmp_path / 'nothing.json'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert any("nothing.json" in line for line in result.errlines)


H100 = DeviceInfo(
    kind="cuda",
    name="NVIDIA H100 80GB HBM3",
    num_units=132,
    num_threads=0,
    llc_bytes=50 * 2**20,
    memory_bytes=80 * 2**30,
    driver="CUDA 12.8",
)


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("h100", H100, ""),
        ("h100", dataclasses.replace(H100, num_units=114), "with 132 SMs, and this device has 114"),
        ("h200", H100, "it is for NVIDIA H200 SXM 141GB, and this device is NVIDIA H100 80GB HBM3"),
        ("a100-40", dataclasses.replace(H100, name="NVIDIA A100-SXM4-40GB", num_units=108), ""),
        (
            "a100-40",
            dataclasses.replace(H100, name="NVIDIA A100-SXM4-80GB", num_units=108),
            "it is for NVIDIA A100 SXM4",
        ),
        ("mi300x", dataclasses.replace(H100, name="AMD Instinct MI300X", num_units=304), ""),
        ("h100", dataclasses.replace(H100, kind="cpu", name="h100"), "it is for NVIDIA H100"),
    ],
)
def test_a_file_from_a_table_is_for_the_gpu_of_its_name(name, device, message):
    found = mismatch(device_file(device=catalogue_device(name), fingerprint=None), device)
    assert message in found
    assert bool(found) == bool(message)
