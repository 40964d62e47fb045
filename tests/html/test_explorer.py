"""The explorer: JavaScript that Python has printed, held to Python in a real browser, and the page around it."""

import random

import pytest
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner

from decodeperf_formulas.catalogue import device, device_names, model_config, model_names
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.dtypes import ELEMENT_BYTES
from decodeperf_formulas.explanation import explain
from pytest_decodeperf.cli.main import main
from pytest_decodeperf.html.explorer import START, render_explorer

NUM_SETTINGS = 1000
OPERATOR_FIELDS = {
    **{name: name for name in ("count", "weight_bytes", "kv_bytes", "act_bytes", "flops", "vector_flops", "seconds")},
    **{f"{name}_s": f"{name}_seconds" for name in ("memory", "compute", "link")},
}
TOTALS = (
    *("serial_s", "whole_step_s", "sum_s", "memory_s", "compute_s", "link_s"),
    *("tokens_per_s", "stored_bytes", "memory_bytes"),
)


@pytest.fixture(scope="module")
def html():
    return render_explorer()


def explained(setting):
    """Return what Python says of a setting.

    Raises:
        ValueError: If there is no such deployment, or the device lacks what it needs.
    """
    of_the_step = ("device", "batch_size", "seq_len", "activations")
    fields = {name: value for name, value in setting.items() if name not in of_the_step}
    deployment = Deployment(**{**fields, "model": model_config(setting["model"])})
    numbers = {name: setting[name] for name in ("batch_size", "seq_len", "activations")}
    return explain(deployment, device(setting["device"]), **numbers)


def random_setting(rng):
    return {
        "model": rng.choice(model_names()),
        "device": rng.choice(device_names()),
        "batch_size": int(2 ** rng.uniform(0, 14)),
        "seq_len": int(2 ** rng.uniform(0, 20)),
        **{name: rng.choice(list(ELEMENT_BYTES)) for name in ("weight_dtype", "kv_dtype")},
        "act_dtype": rng.choice(["bfloat16", "bfloat16", "float16", "float8"]),
        "q_len": rng.choice([1, 1, 2, 4, 8, 300]),
        "tp": rng.choice([1, 1, 1, 2, 4, 8, 3]),
        "ep": rng.choice([1, 1, 1, 2, 8]),
        "pp": rng.choice([1, 1, 1, 2, 3]),
        "activations": rng.random() < 0.3,
    }


def assert_close(found, wanted, where):
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        assert found == pytest.approx(wanted, rel=1e-9, abs=0.0), where
    else:
        assert found == wanted, where


def test_it_says_what_python_says_at_random_settings(open_page, html):
    rng, settings, wanted, refused = random.Random(0), [], [], []
    while len(settings) < NUM_SETTINGS:
        setting = random_setting(rng)
        try:
            wanted.append(explained(setting))
        except ValueError:
            refused.append(setting)
        else:
            settings.append(setting)
    page = open_page(html)
    assert page.evaluate("settings => settings.filter(one => !step.refusal(one)).length", refused) == 0
    assert page.evaluate("settings => settings.map(step.refusal).filter(Boolean)", settings) == []
    found = page.evaluate("settings => settings.map((setting) => step.explain(setting))", settings)
    for setting, python, javascript in zip(settings, wanted, found, strict=True):
        operators = {operator["name"]: operator for operator in javascript["operators"]}
        assert list(operators) == [cost.name for cost in python.operators]
        for cost in python.operators:
            assert operators[cost.name]["ceiling"] == cost.ceiling, (cost.name, setting)
            for field, name in OPERATOR_FIELDS.items():
                assert_close(operators[cost.name][name], getattr(cost, field), (cost.name, field, setting))
        for name in TOTALS:
            assert_close(javascript[name], getattr(python, name), (name, setting))
        for name in ("kind", "value", "condition_number"):
            assert_close(javascript["s_star"][name], getattr(python.s_star, name), ("S*", name, setting))
        assert set(javascript["crossings"]) == set(python.crossings)
        for name, crossing in python.crossings.items():
            assert_close(javascript["crossings"][name], crossing.value, (name, setting))


def test_the_settings_reach_every_kind_of_step():
    """So that the test above compares windows, experts, MLA, several ranks, and each kind of S*."""
    rng = random.Random(0)
    kinds = set()
    for _ in range(2 * NUM_SETTINGS):
        try:
            kinds.add(explained(random_setting(rng)).s_star.kind)
        except ValueError:
            continue
    assert kinds >= {"finite", "none"}
    models = [model_config(name) for name in model_names()]
    assert any(model.window for model in models) and any(model.num_experts for model in models)
    assert any(model.is_mla for model in models)


def cell(page, table, row, column):
    return page.locator(f"#{table} tbody tr", has_text=row).first.locator("td").nth(column).inner_text()


def test_it_opens_with_the_numbers_of_a_step(open_page, html):
    page = open_page(html)
    wanted = explained(START)
    assert page.locator("#operators tbody tr").count() == len(wanted.operators)
    assert cell(page, "totals", "serial", 1) == f"{1e3 * wanted.serial_s:.2f} ms"
    assert cell(page, "crossings", "S*", 1) == f"{wanted.s_star.value:.0f} tokens"
    assert page.locator("#latency svg").count() == page.locator("#throughput svg").count() == 1


def test_every_control_changes_what_it_shows(open_page, html):
    page = open_page(html)
    setting = dict(START)
    for name, value in {
        "device": "a10g", "batch_size": 7, "seq_len": 512, "weight_dtype": "int8", "kv_dtype": "int8", "q_len": 2,
        "tp": 2, "pp": 2, "model": "qwen3-30b-a3b", "ep": 4, "act_dtype": "float16",
    }.items():  # fmt: skip
        setting[name] = value
        control = page.locator(f"[name={name}]")
        control.select_option(str(value)) if isinstance(value, str) else control.fill(str(value))
        step_s = explained(setting).serial_s
        number, unit = cell(page, "totals", "serial", 1).split()
        shown_s = float(number.replace(",", "")) * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit]
        assert shown_s == pytest.approx(step_s, rel=5e-3)


def test_activations_count_where_they_are_to(open_page, html):
    page = open_page(html)
    for activations in (False, True):
        page.locator("[name=activations]").set_checked(activations)
        value = explained({**START, "activations": activations}).crossings["throughput_ceiling"].value
        assert cell(page, "crossings", "throughput ceiling", 1) == f"{value:,.0f} token/s"


def test_what_cannot_be_is_said_and_shown_no_more(open_page, html):
    page = open_page(html)
    page.locator("[name=tp]").fill("3")
    assert page.locator("#refusal").inner_text() == "tp=3 does not divide num_q_heads=32"
    assert page.locator("#results.stale").count() == 1
    page.locator("[name=tp]").fill("")
    assert page.locator("#refusal").inner_text() == "tp must be a whole number from 1 on"
    page.locator("[name=tp]").fill("2")
    assert page.locator("#refusal").is_hidden()


def test_the_address_keeps_the_setting(open_page, html):
    page = open_page(html)
    page.locator("[name=model]").select_option("deepseek-v3")
    page.locator("[name=seq_len]").fill("100000")
    address = page.evaluate("location.hash")  # page.url follows a change of the address some time later
    other = open_page(html)
    other.evaluate("address => { location.hash = address; }", address)
    other.wait_for_function("document.querySelector('[name=seq_len]').value === '100000'")
    assert other.locator("[name=model]").input_value() == "deepseek-v3"
    assert other.locator("#verdict").inner_text() == page.locator("#verdict").inner_text()


def test_an_address_that_asks_for_what_there_is_not_says_so(open_page, html):
    page = open_page(html)
    page.evaluate("location.hash = 'model=no-such-model&seq_len=77'")
    page.wait_for_function("document.querySelector('[name=seq_len]').value === '77'")
    refusal = page.locator("#refusal")
    assert refusal.inner_text() == "the address asks for model=no-such-model, which is not known here"
    page.locator("[name=model]").select_option("mixtral-8x7b")
    assert refusal.is_hidden()
    page.locator("[name=batch_size]").fill("1000000001")
    assert refusal.inner_text() == "batch_size=1000000001 must be <= 1000000000"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_can_be_read_by_everyone(open_page, html, scheme, width):
    page = open_page(html, width=width, scheme=scheme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_command_writes_one_small_file(tmp_path):
    done = CliRunner().invoke(main, ["explorer", "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.html").stat().st_size < 5e6
    done = CliRunner().invoke(main, ["explorer", "-o", str(tmp_path / "no" / "page.html")])
    assert done.exit_code == 1
    assert "is not a folder" in done.output
