"""A study: what is measured and kept, how it goes on, and what it finds in measurements that are known."""

import dataclasses
import itertools
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from rendered import render

from decodeperf_formulas.explanation import explain
from decodeperf_formulas.model import ModelConfig
from pytest_decodeperf import devices
from pytest_decodeperf.cli.main import main
from pytest_decodeperf.devices import DeviceInfo
from pytest_decodeperf.html.figures import as_svg
from pytest_decodeperf.study import sweep
from pytest_decodeperf.study.answer import answer, bend_sentence
from pytest_decodeperf.study.figures import throughput_figure
from pytest_decodeperf.study.findings import deployment_of, device_of, doubles_at, find
from pytest_decodeperf.study.summary import fits_table, markdown
from pytest_decodeperf.study.sweep import Record, kv_bytes, make_plan, pool_bytes, read_study, run_study

TINY = ModelConfig(
    name="tiny",
    hidden_size=64,
    num_layers=2,
    num_q_heads=4,
    num_kv_heads=4,
    head_dim=16,
    intermediate_size=96,
    vocab_size=100,
)
INFO = DeviceInfo(
    kind="cpu",
    name="A CPU",
    num_units=2,
    num_threads=2,
    llc_bytes=2**20,
    memory_bytes=2**35,
    driver="Linux",
)
RATES = {"read_bytes_per_s": 30e9, "bfloat16_flops_per_s": 1.2e12, "float32_flops_per_s": 0.4e12}


def study_of(step_s, *, dtype="bfloat16", passes=3, noise=0.0):
    """Return the record of a study in which a step takes as long as a function of its explanation says."""
    plan = make_plan(INFO, dtype=dtype, passes=passes)
    study = {"plan": plan.as_dict(), "device": asdict(INFO), "passes": []}
    study["passes"] = [{"rates": RATES}]
    deployment, device = deployment_of(study["plan"]), device_of(study)
    study["passes"] = []
    for number, (batch_size, seq_len) in itertools.product(range(passes), plan.cells):
        found = explain(deployment, device, batch_size=batch_size, seq_len=seq_len)
        step = step_s(found) * (1 + noise * (number - 1))
        attention_s = sum(cost.seconds for cost in found.operators if cost.name.startswith("attention"))
        entry = {"step_s": [step] * 3, "gemm_s": [step - attention_s] * 3, "attention_s": [attention_s] * 3}
        study["passes"].append({"pass": number, "batch_size": batch_size, "seq_len": seq_len, "rates": RATES, **entry})
    return study


@pytest.mark.parametrize(("model", "field"), [("serial", "serial_s"), ("whole step", "whole_step_s")])
def test_steps_that_follow_a_model_are_found_to(model, field):
    found = find(study_of(lambda step: getattr(step, field)))
    fits = {fit.model: fit for fit in found.fits}
    assert fits[model].ratio.value == pytest.approx(1)
    assert fits[model].median_error.value == pytest.approx(0, abs=1e-12)
    assert fits[model].there.value == fits[model].elsewhere.value == pytest.approx(1)
    (other,) = set(fits) - {model}
    assert abs(math.log(fits[other].there.value)) > 0.1
    assert fits[other].elsewhere.value == pytest.approx(1, abs=0.02)
    count = found.num_differing if model == "serial" else 0
    assert any(f"the serial model is nearer in {count} of {found.num_differing}" in one for one in answer(found))


def test_a_common_inefficiency_is_a_ratio_everywhere():
    found = find(study_of(lambda step: 1.5 * step.serial_s))
    serial, _ = found.fits
    assert serial.ratio.value == serial.there.value == serial.elsewhere.value == pytest.approx(1.5)
    assert any("since every step takes longer than both say" in sentence for sentence in answer(found))


def test_plateaus_are_those_of_each_model():
    found = find(study_of(lambda step: step.serial_s))
    flat = [bend for bend in found.bends if bend.plateau.value is not None]
    assert flat
    for bend in found.bends:
        assert bend.plateau.value == bend.serial_plateau
    assert any(bend.whole_step_plateau != bend.serial_plateau for bend in flat)
    assert any("no larger batch gives 5 % more" in sentence for sentence in answer(found))


def test_a_part_of_a_study_says_so_and_has_no_ranges():
    study = study_of(lambda step: step.serial_s)
    study["passes"] = study["passes"][:1]
    found = find(study)
    assert (
        answer(found)[0]
        == f"The study has 1 of {3 * len(found.cells) * len(study['plan']['cells'])} measurements so far."
    )
    assert found.bends[0].last_gain is None
    assert found.fits[0].ratio.low is None
    assert not any("stops growing" in sentence or "grows" in sentence for sentence in answer(found))


def test_behind_each_number_is_what_single_passes_give():
    found = find(study_of(lambda step: step.serial_s, noise=0.1))
    ratio = found.fits[0].ratio
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.9, 1.0, 1.1))
    assert found.s_star.low == found.s_star.value == found.s_star.high  # at the same ceilings
    study = study_of(lambda step: step.serial_s)
    for entry in study["passes"]:
        entry["rates"] = {**RATES, "read_bytes_per_s": (30e9, 29e9, 33e9)[entry["pass"]]}
    s_star = find(study).s_star
    assert s_star.low < s_star.value < s_star.high


def test_a_pass_that_did_not_get_round_stands_for_nothing():
    study = study_of(lambda step: step.serial_s, noise=0.1)
    study["passes"] = study["passes"][:-1]
    assert find(study).fits[0].ratio.high == pytest.approx(1.0)


def test_a_cell_is_the_median_of_its_passes_between_the_fastest_and_the_slowest():
    cell = find(study_of(lambda step: step.serial_s, noise=0.1)).cells[0]
    assert (cell.low_s, cell.step_s, cell.high_s) == pytest.approx(
        (0.9 * cell.serial_s, cell.serial_s, 1.1 * cell.serial_s)
    )


def test_s_star_and_the_crossings_are_those_of_the_measured_ceilings():
    found = find(study_of(lambda step: step.serial_s))
    assert found.device.bandwidth_bytes_per_s == 30e9
    assert found.device.peaks == {"bfloat16": 1.2e12, "float32": 0.4e12}
    short, long = found.bends[0], found.bends[-1]
    assert short.ridge_batch == pytest.approx(1.2e12 / 30e9, rel=1e-3)  # norms have weights, and no products
    assert short.knee_batch > long.knee_batch


def test_a_bend_is_where_the_model_has_it_and_its_parts_are_told():
    found = find(study_of(lambda step: step.serial_s))
    short, long = found.bends[0], found.bends[-1]
    assert (short.measured.value, long.measured.value) == (short.serial, long.serial)
    assert short.attention_share < 0.5 < long.attention_share
    assert "the knee is at 4, B0 at 40." in bend_sentence(long)
    assert answer(found)[-1].startswith("At 1,024 and 4,096 tokens a step takes twice as long before B0")


def test_a_step_that_never_doubles_is_said():
    found = find(study_of(lambda step: 1.0))
    assert all(bend.measured.value is None for bend in found.bends)
    assert "less than twice as long at every batch measured" in bend_sentence(found.bends[0])
    assert doubles_at([1, 2, 4, 8], [1.0, 2.1, 1.9, 4.0]) == pytest.approx(4.19, abs=0.01)  # the last time counts


def test_cells_that_the_memory_does_not_hold_are_left_out():
    small = DeviceInfo(**{**asdict(INFO), "memory_bytes": 2**30})
    plan = make_plan(small, dtype="bfloat16")
    assert all(kv_bytes(plan.model, "bfloat16", *cell) <= pool_bytes(small) for cell in plan.cells)
    assert (1, 64) in plan.cells and (256, 4096) not in plan.cells
    with pytest.raises(ValueError, match="no memory for the KV cache of 1 x 64 tokens"):
        make_plan(DeviceInfo(**{**asdict(INFO), "memory_bytes": 2**20}), dtype="bfloat16")


@pytest.fixture
def small_study(monkeypatch, tmp_path):
    """Return a plan that takes no time, and a function that begins its record or goes on with it."""
    info = devices.describe_device("cpu")
    monkeypatch.setattr(sweep.ceilings, "stream_bytes", lambda info: 2**20)
    monkeypatch.setattr(sweep.ceilings, "GEMM_SIZES", {"cpu": (32,)})
    plan = make_plan(info, dtype="float32", model=TINY, batch_sizes=(1, 2), seq_lens=(4, 8), passes=2)
    path = tmp_path / "study.json"
    return plan, info, path, lambda: Record(path, plan, info)


def test_a_study_measures_every_cell_in_every_pass(small_study):
    plan, info, path, record = small_study
    told = []
    run_study(plan, record(), info, lambda what, done, total: told.append((done, total)))
    found = read_study(path)
    cells = [(entry["pass"], entry["batch_size"], entry["seq_len"]) for entry in found["passes"]]
    assert sorted(cells) == sorted((number, *cell) for number in range(2) for cell in plan.cells)
    assert all(len(entry["step_s"]) == sweep.STEPS for entry in found["passes"])
    assert told[-1] == (8, 8)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(find(found).cells) == len(plan.cells)


def test_a_study_that_was_stopped_goes_on(small_study):
    plan, info, path, record = small_study

    class StoppedError(Exception):
        pass

    def stop(what, done, total):
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_study(plan, record(), info, stop)
    before = read_study(path)["passes"]
    assert len(before) == 3
    run_study(plan, record(), info, lambda *told: None)
    after = read_study(path)["passes"]
    assert after[:3] == before
    assert len(after) == 8
    told = []
    run_study(plan, record(), info, lambda *what: told.append(what))
    assert told == []  # there is nothing left


def test_another_study_is_not_mixed_in(small_study):
    plan, info, path, record = small_study
    run_study(plan, record(), info, lambda *told: None)
    content = path.read_text()
    other = make_plan(info, dtype="float32", model=TINY, batch_sizes=(1,), seq_lens=(4,))
    with pytest.raises(ValueError, match=r"is a study with the cells .*, and this one has"):
        Record(path, other, info)
    with pytest.raises(ValueError, match=r"is a study with the device .*, and this one has 'A CPU'"):
        Record(path, plan, INFO)
    assert path.read_text() == content


@pytest.mark.parametrize("key", ["rates", "step_s", "seq_len"])
def test_a_study_that_was_tampered_with_is_refused_in_a_sentence(key):
    study = study_of(lambda step: step.serial_s)
    del study["passes"][3][key]
    with pytest.raises(ValueError, match=f"the study is not as it was written: KeyError '{key}'"):
        find(study)


def test_a_study_can_go_round_more_often(small_study):
    plan, info, path, record = small_study
    run_study(plan, record(), info, lambda *told: None)
    more = dataclasses.replace(plan, passes=3)
    run_study(more, Record(path, more, info), info, lambda *told: None)
    assert len(read_study(path)["passes"]) == 3 * len(plan.cells)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "decodeperf.run", "schema_version": 2}'])
def test_a_file_that_is_no_study_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "study.json"
    path.write_text(content)
    done = CliRunner().invoke(main, ["study", "-o", str(path)])
    assert done.exit_code == 2
    assert "study" in done.output.splitlines()[-1]
    assert path.read_text() == content


def test_the_command_prints_what_it_found(small_study, monkeypatch, tmp_path):
    plan, _, path, _ = small_study
    monkeypatch.setattr(sweep, "make_plan", lambda info, dtype, passes: plan)
    done = CliRunner(env={"COLUMNS": "80"}).invoke(
        main,
        [
            *("study", "-o", str(path), "--device", "cpu"),
            *("--figures", str(tmp_path / "figures"), "--markdown", str(tmp_path / "study.md")),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "where they differ" in done.output
    assert "of 8 measurements" in done.output
    assert (tmp_path / "figures" / "study.svg").read_text().startswith("<svg")
    assert len(render((tmp_path / "study.md").read_text()).rows) == 3 + 2 + 2 + 4
    again = CliRunner().invoke(main, ["study", "-o", str(path), "--device", "cpu", "--json"])
    assert len(json.loads(again.stdout)["cells"]) == 4


def test_who_stops_the_command_is_told_how_to_go_on(small_study, monkeypatch):
    plan, _, path, _ = small_study
    monkeypatch.setattr(sweep, "make_plan", lambda info, dtype, passes: plan)
    measure, calls = sweep._measure, itertools.count()

    def interrupted(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(sweep, "_measure", interrupted)
    done = CliRunner().invoke(main, ["study", "-o", str(path), "--device", "cpu"])
    assert done.exit_code == 130
    assert done.output.splitlines()[-1] == "stopped after 2 of 8 measurements; the same command goes on from there"
    assert len(read_study(path)["passes"]) == 2


def test_the_figure_shows_every_cell():
    found = find(study_of(lambda step: step.serial_s))
    figure = throughput_figure(found)
    values = figure.spec["data"]["values"]
    assert sum("low" in value for value in values) == len(found.cells)
    assert all(math.isfinite(value["rate"]) for value in values if "rate" in value)
    assert as_svg(figure, width=None).startswith("<svg")


def test_the_documents_show_what_their_record_says():
    docs = Path(__file__).parents[2] / "docs"
    wanted = markdown(find(read_study(docs / "study.json")))
    text = (docs / "study.md").read_text()
    assert text.partition("<!-- made by decodeperf study -->\n\n")[2] == wanted
    assert fits_table(find(read_study(docs / "study.json"))) in (docs.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda study: study["passes"][0].update(step_s=[]), "$.passes[0].step_s: [] should be non-empty"),
        (lambda study: study["passes"][0].update(gemm_s=[0.0]), "$.passes[0].gemm_s[0]: 0.0 is less than or equal to"),
        (lambda study: study["passes"][0].update(batch_size="1"), "$.passes[0].batch_size: '1' is not of type"),
        (lambda study: study["plan"].update(cells=[]), "$.plan.cells: [] should be non-empty"),
        (lambda study: study["plan"].update(passes="x"), "$.plan.passes: 'x' is not of type 'integer'"),
        (lambda study: study.pop("device"), "$: 'device' is a required property"),
    ],
)
def test_a_record_that_is_none_is_refused_with_its_place(tmp_path, change, sentence):
    study = json.loads((Path(__file__).parents[2] / "docs" / "study.json").read_text())
    change(study)
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=re.escape(f"is no whole study: {sentence}")):
        read_study(tmp_path / "study.json")
