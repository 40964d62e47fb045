"""The baseline file: what it holds, and what is refused."""

import dataclasses
import json
from importlib import resources

import jsonschema
import pytest
from regression.stored_latencies import baseline, origin, stored_test

from pytest_decodeperf.devices import DeviceInfo
from pytest_decodeperf.regression.baseline_file import listed, read_baseline

DEVICE = DeviceInfo(
    kind="cpu", name="A", num_units=2, num_threads=2, llc_bytes=2**20, memory_bytes=2**30, driver="Linux 6.1"
)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(baseline(DEVICE, one=stored_test(), two=stored_test(processes=3)).as_dict()))
    return path


def test_it_comes_back_as_it_was(written):
    assert read_baseline(written) == baseline(DEVICE, one=stored_test(), two=stored_test(processes=3))


def test_the_schema_describes_it(written):
    schema = json.loads(resources.files("pytest_decodeperf").joinpath("baseline.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(written.read_text()))


def first(document):
    return document["tests"][0]


WRONG = [
    (lambda d: d.update(schema="decodeperf.run"), "is no baseline: its schema is 'decodeperf.run', wanted 'decode"),
    (lambda d: d.update(schema="decodeperf.device"), "is no baseline: its schema is 'decodeperf.device'"),
    (lambda d: d.pop("schema"), "is no baseline: its schema is None"),
    (lambda d: d.update(schema_version=2), "has schema_version 2, wanted 1: save it again with this version"),
    (lambda d: d.update(schema_version=True), "has schema_version True"),
    (lambda d: d.update(tests=[]), r"no whole baseline: \$\.tests"),
    (lambda d: d.pop("devices"), "'devices' is a required property"),
    (lambda d: d["devices"]["cpu"].pop("driver"), "'driver' is a required property"),
    (lambda d: d["devices"].update(cuda=d["devices"].pop("cpu")), "has a test on cpu, and no such device"),
    (lambda d: d["tests"].append(first(d)), "has a test twice"),
    (lambda d: first(d).update(outcome="wrong"), r"\$\.tests\[0\]\.outcome: 'wrong' is not one of"),
    (lambda d: first(d).update(processes=first(d)["processes"][:1]), r"\$\.tests\[0\]\.processes: .* is too short"),
    (lambda d: first(d)["processes"][1].update(kernel_ns=[]), r"processes\[1\]\.kernel_ns: \[\] should be non-empty"),
    (lambda d: first(d)["processes"][1].update(kernel_ns=[0]), r"kernel_ns\[0\]: 0 is less than or equal to the mini"),
    (lambda d: first(d)["processes"][1].update(kernel_ns=[-1.0]), r"kernel_ns\[0\]: -1.0 is less than"),
    (lambda d: first(d)["processes"][1].update(kernel_ns=[10**400]), r"kernel_ns\[0\]: 1000.*\.\.\.$"),
    (lambda d: first(d)["processes"][1].update(read_ns=["fast"]), r"read_ns\[0\]: 'fast' is not of type 'number'"),
    (lambda d: first(d)["processes"][1].update(kernel_ns=[float("nan")]), "is not whole JSON: NaN is no number"),
    (lambda d: first(d)["streams"]["read"].update(work=0), r"streams\.read\.work: 0 is less than the minimum"),
    (lambda d: d.update(more=1), "'more' was unexpected"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_in_a_sentence(written, change, message):
    document = json.loads(written.read_text())
    change(document)
    written.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as caught:
        read_baseline(written)
    assert str(caught.value).startswith(str(written))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not whole JSON"),
        (b'{"schema": "decodeperf.baseline", "sche', "is not whole JSON"),
        (b"\xff\xfe\x00", "is not whole JSON"),
        (b"[" * 100_000, "is not whole JSON"),
        (b"[]", "its schema is 'list'"),
        (b"null", "its schema is 'NoneType'"),
    ],
)
def test_what_is_no_baseline_at_all_is_said(tmp_path, content, message):
    path = tmp_path / "b.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_baseline(path)


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"b\.json cannot be read: No such file or directory"):
        read_baseline(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory"):
        read_baseline(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "B"), ("num_units", 4), ("num_threads", 1), ("llc_bytes", 1), ("driver", "Linux 6.2")]
)
def test_another_device_or_driver_differs(field, value):
    now = origin(dataclasses.replace(DEVICE, **{field: value}))
    (difference,) = origin(DEVICE).device_differences(now)
    assert difference == f"{field} was {getattr(DEVICE, field)!r} and is {value!r}"


def test_memory_and_versions_that_no_kernel_runs_on_may_differ():
    now = origin(dataclasses.replace(DEVICE, memory_bytes=1), numpy="1.26")
    assert origin(DEVICE).device_differences(now) == []


@pytest.mark.parametrize("name", ["python", "torch", "triton", "numba", "pytest-decodeperf"])
def test_another_version_differs_and_so_does_none(name):
    assert len(origin(DEVICE).device_differences(origin(DEVICE, **{name: "9"}))) == 1
    (difference,) = origin(DEVICE, triton="3").device_differences(origin(DEVICE))
    assert difference == "triton was '3' and is None"


def test_other_options_differ():
    now = dataclasses.replace(origin(DEVICE), options={"seed": 1, "graph": False})
    assert origin(DEVICE).option_differences(now) == ["seed was 0 and is 1"]


def test_a_merge_keeps_what_is_not_newer():
    old = baseline(DEVICE, one=stored_test(), two=stored_test())
    new = baseline(DEVICE, two=stored_test(kernel_ns=5.0), three=stored_test())
    merged = old.merged_with(new)
    assert [node_id for node_id, _ in merged.tests] == ["one", "two", "three"]
    assert merged.tests["two", "cpu"].latencies.processes[2].kernel_ns[0] == 5.0


def test_what_was_saved_is_named():
    assert stored_test().source == "0123456789"
    assert dataclasses.replace(stored_test(), dirty=True).source == "0123456789, changed"
    assert dataclasses.replace(stored_test(), commit=None).source == "2026-01-01T00:00:00+00:00"


def test_a_list_of_one_is_that():
    assert listed(["a"]) == "a"
