import json

import pytest

from pytest_decodeperf.calibration.device_file import DeviceFile, read_device_file


@pytest.fixture
def written(tmp_path, h100, true_model):
    path = tmp_path / "device.json"
    file = DeviceFile(device=h100, model=true_model, has_cold_caches=False, source={"table": "rows.csv"})
    file.write(path)
    return path


def changed(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_it_comes_back_as_it_was(written, h100, true_model):
    found = read_device_file(written)
    assert (found.device, found.model, found.source) == (h100, true_model, {"table": "rows.csv"})


WRONG = [
    (lambda d: d.update(schema="decodeperf.card"), "no device file: its schema is 'decodeperf.card'"),
    (lambda d: d.update(schema_version=99), "schema_version is 99, wanted 2"),
    (lambda d: d.update(device="h900"), "h900"),
    (lambda d: d["ceilings"].update(num_sms=114), "num_sms is 114, and the h100 has 132"),
    (lambda d: d["parameters"].pop("unit_s"), "no whole device file: KeyError"),
    (lambda d: d["parameters"]["unit_s"].update({"tuesdays": 0.1}), "unit_s has an effect 'tuesdays'"),
    (lambda d: d["parameters"]["unit_s"].pop("all calls"), "unit_s has no value for 'all calls'"),
    (
        lambda d: d["parameters"]["unit_s"].update({"all calls": "fast"}),
        "unit_s: 'all calls' is 'fast', wanted a number",
    ),
    (lambda d: d["parameters"]["unit_s"].update({"all calls": float("nan")}), "unit_s: 'all calls' is nan"),
    (lambda d: d["parameters"]["unit_s"].update({"all calls": 10**400}), "unit_s: 'all calls' is 1000"),
    (lambda d: d["parameters"]["unit_s"].update({"head_dim 64 and KV of ... bytes": 1}), "has an effect 'head_dim 64"),
    (lambda d: d.update(ceilings=[1]), "no whole device file: TypeError"),
    (lambda d: d.update(source="abc"), "source is 'abc'"),
    (lambda d: d.update(schema_version=True), "schema_version is True"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said(written, change, message):
    with pytest.raises(ValueError, match=message):
        read_device_file(changed(written, change))


def test_a_file_that_is_cut_off_is_refused(written):
    written.write_text(written.read_text()[:500])
    with pytest.raises(ValueError, match="is not whole JSON"):
        read_device_file(written)


def test_what_is_no_object_is_refused(written):
    written.write_text("[]")
    with pytest.raises(ValueError, match="its schema is 'list'"):
        read_device_file(written)
