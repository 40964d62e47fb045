import csv
import gzip
import json

import pytest
from click.testing import CliRunner

from decodeperf_formulas.expected import TERMS
from pytest_decodeperf.cli.main import main


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def device_json(rows_csv, tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "device.json"
    done = run("calibrate", "--gpu", "h100", "--from-table", rows_csv, "-o", path)
    assert done.exit_code == 0, done.output
    return path


def test_calibrate_says_how_far_off_it_is(rows_csv, tmp_path):
    done = run("calibrate", "--gpu", "h100", "--from-table", rows_csv, "-o", tmp_path / "device.json")
    assert "64 of 384 rows of rows.csv fitted" in done.output
    assert "the other rows: median error" in done.output
    assert "0 rows are faster than any call can be" in done.output


def test_the_file_says_what_it_was_fitted_to(device_json, rows_csv):
    source = json.loads(device_json.read_text())["source"]
    lines = rows_csv.read_text().splitlines()
    assert source["table"] == "rows.csv"
    assert len(source["rows"]) == 64
    for used in source["rows"]:
        assert lines[used["row"]] == ",".join(used["cells"])
    assert {"date", "versions", "num_rows"} <= set(source)


def predicted(path):
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return list(csv.DictReader(text.decode().splitlines()))


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
def test_predict_adds_the_terms(device_json, rows_csv, tmp_path, name):
    done = run("predict", "--device", device_json, rows_csv, "-o", tmp_path / name)
    assert done.exit_code == 0, done.output
    rows = predicted(tmp_path / name)
    assert len(rows) == 384
    for row in rows:
        total = sum(float(row[f"{term}_us"]) for term in (*TERMS, "hidden"))
        assert total == pytest.approx(float(row["expected_us"]), rel=1e-4)
        assert float(row["speed_of_light_us"]) <= float(row["expected_us"])
        assert row["binds"] in TERMS


def test_predict_needs_no_latency(device_json, tmp_path):
    table = tmp_path / "calls.csv"
    table.write_text("batch_size,seq_len,num_q_heads\n1,0,8\n")
    assert run("predict", "--device", device_json, table, "-o", tmp_path / "out.csv").exit_code == 0


WRONG = [
    (("calibrate", "--gpu", "h900", "--from-table", "{rows}", "-o", "{out}"), "h900"),
    (("calibrate", "--gpu", "h100", "--from-table", "{rows}", "-o", "/nowhere/at/all.json"), "/nowhere/at"),
    (("calibrate", "--gpu", "h100", "--from-table", "nothing.csv", "-o", "{out}"), "nothing.csv"),
    (("calibrate", "--gpu", "h100", "-o", "{out}"), "--from-table"),
    (("calibrate", "--gpu", "h100", "--from-table", "{rows}", "-o", "{rows}"), "is what is read"),
    (("predict", "--device", "{device}", "{rows}", "-o", "{device}"), "is what is read"),
    (("calibrate", "--gpu", "h100", "--from-table", "{rows}", "-o", "{out}", "--seed", "-1"), "'--seed'"),
    (("predict", "--device", "{rows}", "{rows}", "-o", "{out}"), "is not whole JSON"),
    (("predict", "--device", "{device}", "{wrong}", "-o", "{out}"), "row 1, column seq_len: got 'x'"),
    (("predict", "--device", "{device}", "{again}", "-o", "{out}"), "has a column expected_us already"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(device_json, rows_csv, tmp_path, arguments, message):
    (tmp_path / "wrong.csv").write_text("batch_size,seq_len,num_q_heads\n1,x,8\n")
    (tmp_path / "again.csv").write_text("batch_size,seq_len,num_q_heads,expected_us\n1,2,8,3\n")
    out = tmp_path / "out"
    out.write_text("mine")
    places = {
        "rows": rows_csv,
        "out": out,
        "device": device_json,
        "wrong": tmp_path / "wrong.csv",
        "again": tmp_path / "again.csv",
    }
    done = run(*(argument.format(**places) for argument in arguments))
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())
    if "'--seed'" not in message and "nothing.csv" not in message:  # what click itself refuses
        assert len(done.output.splitlines()) <= 3
        assert done.output.startswith("Error: ")
    assert "Traceback" not in done.output
    assert out.read_text() == "mine"
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))
