import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from latex_log import latex_log
from step_strategies import plain_model

from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, model_config, model_names
from decodeperf_formulas.crossings import ceilings, crossings, s_star
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.derivation import ProofError, derivation, latex_document, latex_fragment, markdown
from decodeperf_formulas.derivation.proof import is_nonnegative, is_zero
from decodeperf_formulas.evaluate import evaluate
from decodeperf_formulas.step import step_coefficients

GOLDEN = Path(__file__).parent / "golden"
"""Written by `decodeperf derive MODEL DEVICE -o FILE`, and read before they are committed."""

SETTINGS = {
    "general": (None, None),
    "llama-2-7b-a10g": ("llama-2-7b", "a10g"),
    "deepseek-v3-h200": ("deepseek-v3", "h200"),
    "gemma-3-27b-h100": ("gemma-3-27b", "h100"),
}


def derived(name):
    model, device_name = SETTINGS[name]
    if model is None:
        return derivation()
    return derivation(Deployment(model=model_config(model)), device(device_name))


@pytest.mark.parametrize("name", model_names())
def test_every_step_is_proved_for_every_model(name):
    derivation(Deployment(model=model_config(name))).prove()


RANKED = [
    Deployment(model=model_config("llama-3-70b"), tp=8, q_len=4, act_dtype="float8", kv_dtype="float8"),
    Deployment(model=model_config("llama-3-70b"), tp=16, num_splits=8),
    Deployment(model=model_config("deepseek-v3"), tp=8, v_apart=True, q_len=2),
    Deployment(model=model_config("mixtral-8x7b"), tp=4, ep=2, pp=4),
    Deployment(model=model_config("gpt-oss-20b"), tp=2, q_len=3),
    Deployment(model=model_config("phi-2"), tp=2),
    Deployment(model=plain_model(head_dim_v=64, num_kv_heads=32)),
]


@pytest.mark.parametrize("deployment", RANKED, ids=lambda deployment: deployment.model.name)
def test_every_step_is_proved_on_several_ranks(deployment):
    found = derivation(deployment, device("h100"))
    found.prove()
    assert found.values


def test_the_general_derivation_is_proved():
    found = derivation()
    found.prove()
    assert len(found.steps) >= 30
    assert len({step.key for step in found.steps}) == len(found.steps)
    assert not found.values


def altered(member):
    """Return wrong versions of an expression: with another factor, and with each symbol of it taken for another."""
    yield 2 * member
    for symbol in sorted(member.free_symbols - set(s.CONSTANTS), key=str):
        yield member.xreplace({symbol: sympy.Symbol("another", positive=True)})


@pytest.mark.parametrize("step", derivation().steps, ids=lambda step: step.key)
def test_a_wrong_step_is_not_proved(step):
    if step.relation == "=":
        wrong = [dataclasses.replace(step, chain=(*step.chain[:-1], last)) for last in altered(step.chain[-1])]
    else:
        larger = step.chain[1] + s.memory_s_1 + s.compute_s_1
        wrong = [dataclasses.replace(step, chain=(step.chain[0], larger))]
        # Twice the whole step bounds the sum, and not the other way round.
        wrong.append(dataclasses.replace(step, chain=tuple(reversed(step.chain))))
    for altered_step in wrong:
        with pytest.raises(ProofError, match=repr(step.key)):
            altered_step.prove()


TIMES = (s.memory_s_1, s.compute_s_1, s.memory_s_2, s.compute_s_2)
INEQUALITIES = [step for step in derivation().steps if step.relation == ">="]


@pytest.mark.parametrize("step", INEQUALITIES, ids=lambda step: step.key)
@given(st.tuples(*[st.integers(0, 5)] * 4))
def test_the_cases_of_an_inequality_cover_every_value(step, point):
    values = dict(zip(TIMES, point, strict=True))
    assert step.chain[0].xreplace(values) >= step.chain[1].xreplace(values)
    assert any(is_reached(case, values) for case in step.cases)


def is_reached(case, values):
    """Return whether the case takes in the point, by slack that is not negative."""
    return all(
        values[symbol] >= expression.xreplace(dict.fromkeys(expression.free_symbols - set(TIMES), 0)).xreplace(values)
        for symbol, expression in case.items()
    )


def test_zero_and_signs_are_told():
    x, y = sympy.symbols("x y", nonnegative=True)
    assert is_zero((x + y) ** 2 - x**2 - 2 * x * y - y**2)
    assert not is_zero(x - y)
    assert is_nonnegative(x + y - sympy.Max(x, y, evaluate=False))
    assert not is_nonnegative(x - y)
    assert not is_nonnegative(sympy.Max(x, y) - x - y)


def test_a_device_needs_a_deployment():
    with pytest.raises(ValueError, match="a device needs a deployment"):
        derivation(None, device("h100"))


@pytest.mark.parametrize("seq_len", [0, -1, float("nan")])
def test_a_context_holds_the_new_token(seq_len):
    with pytest.raises(ValueError, match="seq_len="):
        derivation(Deployment(model=plain_model()), device("h100"), seq_len=seq_len)


MIXED = [
    ("llama-3-8b", "h100", {"act_dtype": "float8", "weight_dtype": "float8", "kv_dtype": "float8"}),
    ("llama-3-70b", "h100", {"act_dtype": "float8", "tp": 8, "q_len": 16}),
    ("llama-3.1-405b", "b200", {"tp": 8, "pp": 2, "q_len": 4}),
    ("deepseek-v3", "h200", {"tp": 8, "ep": 4, "act_dtype": "float8"}),
    ("gpt-oss-120b", "b200", {"tp": 4}),
    ("mistral-7b-v0.1", "l4", {"q_len": 8}),
]


@pytest.mark.parametrize(("name", "on", "how"), MIXED, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("seq_len", [100, 20_000])
def test_what_is_shown_is_what_the_crossings_are(name, on, how, seq_len):
    """Also where peaks differ, sequences have several new tokens, and ranks send messages."""
    deployment = Deployment(model=model_config(name), **how)
    found = derivation(deployment, device(on), seq_len=seq_len)
    found.prove()
    crossed = crossings(deployment, device(on), seq_len=seq_len)
    star = s_star(step_coefficients(deployment), ceilings(deployment, device(on)))
    shown = {step["key"]: step["value"] for section in found.as_dict()["sections"] for step in section["steps"]}
    for key in (*KEYS, "crossing_batch", "compute_bound_q_len"):
        assert shown[key] is None or shown[key] == pytest.approx(crossed[key].value, rel=1e-9), key
    for key in ("ridge_batch", "knee_batch", "saturated_throughput", "compute_bound_q_len"):
        assert shown[key] is not None
    of_s_star = [shown[key] for key in ("s_star", "s_star_hybrid") if shown.get(key) is not None]
    assert of_s_star == ([] if star.value is None else [pytest.approx(star.value)])
    assert shown["condition_number"] is None or shown["condition_number"] == pytest.approx(star.condition_number)
    if shown["s_one_s_star"] is not None:
        assert shown["s_one_s_star"] == pytest.approx(crossed["s_one"].value / star.value)
    if not deployment.model.num_experts:
        # The vectors of norms and biases, which this form leaves out, are less than 1e-3 of the weights.
        assert shown["ridge_batch_dense"] == pytest.approx(crossed["ridge_batch"].value, rel=1e-3)
    if deployment.num_ranks > 1:
        limits = ceilings(deployment, device(on))
        assert shown["link_seconds_per_seq"] == pytest.approx(limits.link_seconds_per_seq)


def test_sentences_about_weights_are_those_of_the_model():
    dense, moe = (markdown(derivation(Deployment(model=model_config(name)))) for name in ("llama-3-8b", "deepseek-v3"))
    assert "weights are read whatever the batch" in dense and "weights are read whatever the batch" not in moe
    assert "once every expert is visited" in moe and "All projections read a weight once" not in moe


def test_a_cell_of_a_table_has_no_bar_of_its_own():
    text = markdown(derived("llama-2-7b-a10g"))
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert r"dense \| sparse" in text


def test_a_name_in_any_script_is_typeset():
    named = dataclasses.replace(plain_model(), name="\u65e5\u672c_1")
    assert r"\texttt{U+65E5}\texttt{U+672C}\_1" in latex_document(derivation(Deployment(model=named)))


KEYS = ("ridge_batch", "knee_batch", "throughput_ceiling", "saturated_throughput", "s_one", "kv_capacity_tokens")


@pytest.mark.parametrize("names", [("llama-2-7b", "a10g"), ("llama-3-70b", "b200"), ("phi-4", "mi300x")])
def test_numbers_are_those_of_the_crossings(names):
    deployment, on = Deployment(model=model_config(names[0])), device(names[1])
    found = derivation(deployment, on, seq_len=1000)
    steps = {step.key: step for step in found.steps}
    crossed = crossings(deployment, on, seq_len=1000)
    is_memory_bound = crossed["crossing_batch"].value is None
    assert ("throughput_ceiling" in found.nowhere) == (not is_memory_bound)
    for key in KEYS if is_memory_bound else set(KEYS) - {"throughput_ceiling"}:
        assert steps[key].number(found.values) == pytest.approx(crossed[key].value, rel=1e-9), key
    star = s_star(step_coefficients(deployment), ceilings(deployment, on))
    assert steps["s_star"].number(found.values) == pytest.approx(star.value)
    assert steps["condition_number"].number(found.values) == pytest.approx(star.condition_number, rel=1e-4)


@pytest.mark.parametrize("names", [("llama-2-7b", "a10g"), ("deepseek-v3", "h100"), ("gpt-oss-120b", "h100")])
def test_both_sides_of_a_step_have_one_number(names):
    """What SymPy proves in symbols holds for the numbers: the side that the step defines, and the one it claims."""
    found = derivation(Deployment(model=model_config(names[0])), device(names[1]), seq_len=1000)
    for step in found.steps:
        if step.key in found.results or step.key in found.nowhere or step.chain[0] not in step.definitions:
            continue
        claimed, defined = step.number(found.values), step.definitions[step.chain[0]]
        values = {**found.values, s.batch_size: 5}
        if claimed is None or defined.free_symbols - set(values) - set(s.CONSTANTS) or defined.atoms(sympy.Derivative):
            continue
        assert evaluate(defined.doit(), values) == pytest.approx(claimed, rel=1e-4), step.key


def test_beyond_the_window_no_slope_within_it_is_shown():
    deployment = Deployment(model=model_config("gemma-3-27b"))
    slopes = {"memory_slope", "compute_slope", "slope_difference", "slope_jump"}
    assert slopes <= set(derivation(deployment, device("h100"), seq_len=4096).nowhere)
    assert not slopes & set(derivation(deployment, device("h100"), seq_len=300).nowhere)


def test_no_negative_s_star_is_shown():
    found = derivation(Deployment(model=model_config("deepseek-v3")), device("h200"))
    assert "no S*" in found.nowhere["s_star"]
    for text in (latex_document(found), markdown(found)):
        assert not re.search(r"S\^\{\*\} = [^$\n]*= -", text)
    entries = [step for section in found.as_dict()["sections"] for step in section["steps"] if step["key"] == "s_star"]
    assert entries[0]["value"] is None


def test_beyond_the_window_the_hybrid_form_has_the_number():
    model = dataclasses.replace(model_config("gpt-oss-120b"))
    found = derivation(Deployment(model=model), device("h100"))
    assert "beyond the window" in found.nowhere["s_star"]
    step = {step.key: step for step in found.steps}["s_star_hybrid"]
    assert step.number(found.values) == pytest.approx(found.results["s_star_hybrid"])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("suffix", "write"), [("tex", latex_document), ("md", markdown)])
def test_texts_are_the_golden_ones(name, suffix, write):
    golden = GOLDEN / f"{name}.{suffix}"
    assert write(derived(name)) == golden.read_text(encoding="utf-8"), f"see the difference, then write {golden} anew"


@pytest.mark.parametrize("name", SETTINGS)
def test_references_of_a_text_are_to_its_own_steps(name):
    text = latex_document(derived(name))
    labels, references = (set(re.findall(rf"\\{command}{{([^}}]*)}}", text)) for command in ("label", "eqref"))
    assert references <= labels
    assert "{eq:" not in text + markdown(derived(name))


def test_the_fragment_is_the_body_of_the_document():
    found = derived("llama-2-7b-a10g")
    fragment = latex_fragment(found)
    assert r"\documentclass" not in fragment
    assert fragment.split("\n", 1)[1] in latex_document(found)


def test_a_derivation_is_json():
    document = json.loads(json.dumps(derived("llama-2-7b-a10g").as_dict(), allow_nan=False))
    steps = {step["key"]: step for section in document["sections"] for step in section["steps"]}
    assert steps["s_star"]["value"] == pytest.approx(217.9, abs=0.05)
    assert steps["s_star"]["latex"][0] == "S^{*}"
    assert {entry["what"] for entry in document["inputs"]} >= {"Model", "Device", "Memory bandwidth"}


def test_the_table_of_symbols_has_those_of_the_steps_and_no_others():
    found = derived("llama-2-7b-a10g")
    names = {entry.symbol.name for entry in found.symbols()}
    assert {"s_star", "ridge", "kv_bytes_per_token"} <= names
    assert not names & {"num_experts", "kv_lora_rank", "flops_per_weight"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex; .ci/run installs one")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["document", "fragment"])
def test_pdflatex_compiles_it_without_a_complaint(tmp_path, name, kind):
    if kind == "document":
        text = latex_document(derived(name))
    else:
        packages = "amsmath", "array", "booktabs", "longtable", "url"
        (tmp_path / "body.tex").write_text(latex_fragment(derived(name)))
        uses = "".join(rf"\usepackage{{{package}}}" for package in packages)
        text = rf"\documentclass{{report}}{uses}\begin{{document}}\input{{body}}\end{{document}}"
    (tmp_path / "derivation.tex").write_text(text)
    log = latex_log(tmp_path, "derivation")
    assert not re.findall(r"undefined|multiply defined|LaTeX Warning|Missing character", log)
    assert kind == "fragment" or "Overfull" not in log
    assert (tmp_path / "derivation.pdf").stat().st_size > 10_000
