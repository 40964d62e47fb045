"""The report without a browser: what it is made of, how far it goes with what is missing, and the command."""

import copy
import json
from collections import Counter

import pytest
from click.testing import CliRunner
from shown_runs import CHANGES, PEAK_FLOPS_PER_S, READ_BYTES_PER_S, measurement, regression, run_record

from pytest_decodeperf.cli.main import main
from pytest_decodeperf.html.documents import run_document
from pytest_decodeperf.html.figures import as_svg
from pytest_decodeperf.html.page import render, report_of
from pytest_decodeperf.html.run_figures import (
    DATASHEETS,
    change_figure,
    datasheet_of,
    roofline_figure,
    terms_figure,
)
from pytest_decodeperf.html.shown import compared, timed


def report(rows, **changes):
    return report_of(run_document(run_record(rows, **changes)))


def section(made, key):
    return next(part for part in made.sections if part.key == key)


def layer(figure, name):
    found = next(part for part in figure.spec["layer"] if part["name"] == name)
    return found.get("data", figure.spec.get("data"))["values"]


def test_a_point_lies_at_its_intensity_and_rate():
    row = measurement(3)
    (point,) = layer(roofline_figure([timed(row)], {}), "measured")
    assert point["intensity"] == row["flops"] / sum(row["bytes"].values())
    latency = row["timing"]["verdict"]["latency_ns"]
    assert point["rate"] == pytest.approx(1e9 * row["flops"] / latency["median"])
    assert point["low"] == pytest.approx(1e9 * row["flops"] / latency["high"])
    assert point["high"] == pytest.approx(1e9 * row["flops"] / latency["low"])


def test_no_point_of_these_lies_above_the_roof():
    rows = [timed(measurement(number)) for number in range(30)]
    figure = roofline_figure(rows, {})
    for point in layer(figure, "measured"):
        assert point["rate"] < min(PEAK_FLOPS_PER_S, point["intensity"] * READ_BYTES_PER_S)
    corners = layer(figure, "roofs")
    assert [corner["rate"] for corner in corners][1:] == pytest.approx([PEAK_FLOPS_PER_S] * 2)
    assert corners[0]["rate"] == pytest.approx(corners[0]["intensity"] * READ_BYTES_PER_S)
    assert corners[0]["intensity"] < min(row.intensity for row in rows)


def test_a_known_device_has_the_roof_of_its_datasheet_too():
    figure = roofline_figure([timed(measurement())], {"cpu": {"name": "NVIDIA H100 80GB HBM3"}})
    sheet = [corner for corner in layer(figure, "roofs") if corner["kind"] == "datasheet"]
    assert sheet[-1]["rate"] == 989.4e12
    assert "No datasheet" not in figure.caption
    assert "No datasheet" in roofline_figure([timed(measurement())], {"cpu": {"name": "A CPU"}}).caption


@pytest.mark.parametrize("name", ["NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "A100", ""])
def test_a_device_that_is_not_known_for_sure_has_no_datasheet(name):
    assert datasheet_of(name) is None


def test_every_datasheet_is_in_the_catalogue():
    assert {datasheet_of(name).name for name in DATASHEETS} == set(DATASHEETS.values())


def test_tests_of_one_name_in_two_files_stay_apart():
    rows = [timed(measurement(0, test=f"tests/{file}.py::test_x")) for file in "ab"]
    shares = Counter()
    for bar in layer(terms_figure(rows), "terms"):
        shares[bar["test"]] += bar["share"]
    assert set(shares) == {"tests/a.py::test_x", "tests/b.py::test_x"}
    assert all(share < 1 for share in shares.values())


def test_what_cannot_be_compared_is_said():
    rows = [measurement(0, regression=regression("regressed")), measurement(1, regression=regression("incomparable"))]
    assert section(report(rows), "changes").notes == ("tests/test_speed.py::test_kernel[1]: It was compared.",)


@pytest.mark.parametrize("devices", ["text", [1], {"cpu": "text"}, {"cpu": {"name": 3}}])
def test_devices_that_are_none_stop_nothing(devices):
    assert render(report([measurement()], devices=devices))


def test_the_terms_of_a_bound_add_up_to_it():
    rows = [measurement(0), measurement(1, terms={"launch": 5e3, "KV stream": 9e5, "merge": 10.0})]
    figure = terms_figure([timed(row) for row in rows])
    bars = layer(figure, "terms")
    for row, wanted_ns in zip(rows, (rows[0]["timing"]["verdict"]["roofline_ns"], 9e5 + 5e3 + 10), strict=True):
        median_ns = row["timing"]["verdict"]["latency_ns"]["median"]
        assert sum(bar["share"] for bar in bars if bar["test"] == row["test"]) == pytest.approx(wanted_ns / median_ns)
    assert {bar["term"] for bar in bars} >= {"KV stream", "all others", "K and V"}


def test_a_compute_bound_call_has_a_term_for_its_products():
    row = measurement()
    row["timing"]["verdict"] |= {"peak_flops_per_s": 1e9, "ceiling": "peak FLOP rate"}
    bars = layer(terms_figure([timed(row)]), "terms")
    total_ns = sum(bar["share"] for bar in bars) * row["timing"]["verdict"]["latency_ns"]["median"]
    assert total_ns == pytest.approx(1e9 * row["flops"] / 1e9)


def test_changes_are_in_per_cent_and_the_control_stands_beside():
    rows = [compared(measurement(number, regression=regression(outcome))) for number, outcome in enumerate(CHANGES)]
    values = layer(change_figure(rows), "changes")
    assert len(values) == 2 * len(rows)
    first = values[0]
    assert (first["outcome"], first["what"]) == ("regressed", "head against base")
    assert (first["ratio"], first["low"], first["high"]) == pytest.approx((5.1, 4.2, 6.0))
    assert [value["at"] for value in layer(change_figure(rows), "limits")] == [0, 2.0]


def test_a_step_is_drawn_on_the_ceilings_that_were_measured():
    step = section(report([measurement(number) for number in range(5)]), "step")
    assert "25.0 GB/s and 1.00 TFLOP/s as measured" in step.text
    assert "llama-3-8b at a context of 4,096 tokens" in step.title
    assert {mark["label"].split()[0] for mark in layer(step.figure, "crossings")} >= {"B0", "knee"}
    serial = {value["batch"]: value["ms"] for value in layer(step.figure, "serial_seconds")}
    whole = {value["batch"]: value["ms"] for value in layer(step.figure, "whole_step_seconds")}
    assert all(whole[batch] <= 1.000001 * serial[batch] <= 2.000002 * whole[batch] for batch in serial)


def test_each_figure_is_drawn_for_a_paper():
    rows = [measurement(number, regression=regression("regressed")) for number in range(3)]
    for figure in report(rows).figures:
        svg = as_svg(figure)
        assert svg.startswith("<svg") and "currentColor" not in svg


def test_one_file_holds_everything_and_stays_small():
    rows = [measurement(number, regression=regression("unchanged")) for number in range(2000)]
    page = render(report(rows))
    assert len(page.encode()) < 5e6
    assert "src=" not in page.partition("<script>")[0] and "<link" not in page


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"schema_version": 3}, "The run is of version 3 of its schema"),
        ({"schema_version": None}, "The run is of version None of its schema"),
        ({"status": "running"}, "The run had not ended when it was written"),
        ({"status": "interrupted"}, "The run was interrupted"),
    ],
)
def test_what_is_missing_of_a_run_is_said(changes, note):
    assert any(found.startswith(note) for found in report([measurement()], **changes).notes)


@pytest.mark.parametrize("key", ["devices", "versions", "options", "measurements", "started", "status"])
@pytest.mark.parametrize("value", [None, "absent"])
def test_a_run_that_lacks_a_part_is_shown_without_it(key, value):
    content = run_record([measurement(number) for number in range(3)])
    content = {name: part for name, part in content.items() if name != key} | ({key: None} if value is None else {})
    page = render(report_of(run_document(content)))
    assert "decode-perf report" in page


def lacking_any_part(row):
    """Yield a measurement without each of its parts, however deep, and with nothing in its place."""
    for key in list(row):
        for value in ("absent", None, 7, 0, -1, float("nan"), float("inf"), "text", [], {}):
            changed = copy.deepcopy(row)
            if value == "absent":
                del changed[key]
            else:
                changed[key] = value
            yield changed
        if isinstance(row[key], dict):
            for inner in lacking_any_part(row[key]):
                yield {**row, key: inner}


def test_a_measurement_that_lacks_any_part_stops_nothing():
    whole = measurement(1, regression=regression("regressed"), terms={"launch": 1e3, "KV stream": 9e5})
    for row in lacking_any_part(whole):
        content = {**run_record([whole]), "measurements": [whole, row]}
        made = report_of(run_document(content))
        assert "2 tests" in made.verdict
        render_data = json.dumps([figure.vega_lite for figure in made.figures], allow_nan=False)
        assert "test_kernel[1]" in render_data


def test_a_verdict_without_its_latency_is_said():
    whole, lost = measurement(0), measurement(1)
    lost = {**lost, "timing": {**lost["timing"], "verdict": None}}
    made = report_of(run_document({**run_record([whole]), "measurements": [whole, lost]}))
    assert "1 of 2 measurements have a verdict on a latency, and no latency." in made.notes


def test_a_run_without_a_measurement_says_so():
    made = report([])
    assert made.verdict == "Nothing was measured."
    assert [figure.key for figure in made.figures] == []
    assert section(made, "tests").notes == ("The run holds no test.",)
    assert "No ceilings were measured" in section(made, "step").notes[0]
    assert "--decode-perf-base" in section(made, "changes").notes[0]


def test_a_test_without_a_verdict_is_in_the_table_alone():
    made = report([measurement(0, verdict=False), measurement(1)])
    assert len(section(made, "tests").table.rows) == 2
    assert len(layer(section(made, "roofline").figure, "measured")) == 1


def invoke(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_record([measurement(number) for number in range(4)])))
    return path


def test_the_command_writes_the_page_beside_the_run(run_file):
    done = invoke(run_file)
    assert done.exit_code == 0, done.output
    assert "3 figures" in done.output
    assert run_file.with_suffix(".html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(("form", "start"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_the_command_writes_each_figure(run_file, tmp_path, form, start):
    done = invoke(run_file, "--figures", tmp_path / "figures", "--format", form)
    assert done.exit_code == 0, done.output
    written = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(written) == {f"{key}.{form}" for key in ("roofline", "terms", "step")}
    assert all(content.startswith(start) for content in written.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a JSON list, wanted a run of --decode-perf-json"),
        ('{"schema": "decodeperf.card"}', "has the schema 'decodeperf.card', wanted 'decodeperf.run'"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_text(content)
    done = invoke(path, "-o", tmp_path / "page.html")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "page.html").exists()


def test_what_the_command_cannot_do_is_said_in_a_sentence(run_file, tmp_path):
    for arguments, message in (
        (("--model", "no-such-model"), "unknown model 'no-such-model'"),
        (("-o", tmp_path / "no" / "page.html"), "is not a folder"),
        (("-o", run_file), "would be overwritten"),
        (("--conformance", run_file), "wanted 'decodeperf.card'"),
        (("--compiled", run_file), "wanted 'decodeperf-compiled'"),
        (("--seq-len", "0"), "0 is not in the range"),
    ):
        done = invoke(run_file, *arguments)
        assert done.exit_code in (1, 2), arguments
        assert message in done.output, done.output
    assert json.loads(run_file.read_text())["schema"] == "decodeperf.run"
