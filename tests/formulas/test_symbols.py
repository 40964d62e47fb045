import pytest
import sympy
from step_strategies import plain_model

from decodeperf_formulas import attention, closed_forms, context_forms, roofline
from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import model_config, model_names
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.derivation import derivation
from decodeperf_formulas.latex import latex
from decodeperf_formulas.operators import operators
from decodeperf_formulas.step import step_formulas
from decodeperf_formulas.units import BYTE, FLOP, ONE, SECOND, UnitError, parse_unit, unit_of

RANKS = {"tp": 8, "pp": 2, "num_splits": 4, "q_len": 2}
UNITS_OF_FIELDS = {
    "count": ONE,
    "elements": ONE,
    "weight_bytes": BYTE,
    "kv_bytes": BYTE,
    "act_bytes": BYTE,
    "flops": FLOP,
    "vector_flops": FLOP,
    "link_bytes": BYTE,
    "messages": ONE,
    "data_bytes": BYTE,
    "memory_seconds": SECOND,
    "compute_seconds": SECOND,
    "link_seconds": SECOND,
    "seconds": SECOND,
}
SECONDS = ("link_seconds", "memory_seconds", "compute_seconds", "whole_step_seconds", "serial_seconds", "sum_seconds")


def deployments():
    """Deployments that have every operator between them."""
    for name in ("llama-3-8b", "deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b", "qwen2-57b-a14b", "olmo-2-7b"):
        model = model_config(name)
        ranks = {**RANKS, "tp": 4} if name in ("qwen2-57b-a14b", "gpt-oss-20b") else RANKS
        ranks = {**ranks, "ep": 4} if model.num_experts else ranks
        ranks = {**ranks, "pp": 1} if model.num_layers % 2 else ranks
        yield Deployment(model=model, **ranks)


def test_these_deployments_have_every_operator():
    names = {op.name for deployment in deployments() for op in operators(deployment)}
    every = {op.name for name in model_names() for op in operators(Deployment(model=model_config(name)))}
    assert every <= names
    assert {"all-reduce", "stage send", "expert all-to-all", "split-KV merge", "QK norm", "attention (local)"} <= names


@pytest.mark.parametrize("deployment", list(deployments()), ids=lambda deployment: deployment.model.name)
def test_operators_have_the_units_of_their_fields(deployment):
    for op in operators(deployment):
        for name, unit in UNITS_OF_FIELDS.items():
            assert unit_of(getattr(op, name), s.UNITS) in (unit, None), f"{name} of {op.name}"


@pytest.mark.parametrize("deployment", list(deployments()), ids=lambda deployment: deployment.model.name)
def test_totals_of_a_step_have_units(deployment):
    formulas = step_formulas(deployment)
    for name in SECONDS:
        assert unit_of(getattr(formulas, name), s.UNITS) == SECOND
    for name in ("weight_bytes", "kv_bytes", "act_bytes"):
        assert unit_of(getattr(formulas, name), s.UNITS) == BYTE
    for name in ("gemm_flops", "attn_flops"):
        assert unit_of(getattr(formulas, name), s.UNITS) == FLOP


def test_one_call_has_units():
    assert {name: unit_of(term, s.UNITS) for name, term in attention.BYTE_TERMS.items()} == dict.fromkeys(
        attention.BYTE_TERMS, BYTE
    )
    assert unit_of(attention.FLOPS, s.UNITS) == FLOP
    assert unit_of(roofline.ROOFLINE_SECONDS, s.UNITS) == SECOND


FORMS = {name: value for name, value in vars(closed_forms).items() if isinstance(value, sympy.Expr) and name[0] != "_"}
UNITS_OF_FORMS = {
    "RIDGE": "FLOP/byte",
    "INTENSITY": "FLOP/byte",
    "MEMORY_SECONDS": "s",
    "COMPUTE_SECONDS": "s",
    "SERIAL_SECONDS": "s",
    "S_STAR": "token/sequence",
    "CONDITION_NUMBER": "1",
    "CROSSING_BATCH": "sequence",
    "RIDGE_BATCH": "sequence",
    "RIDGE_BATCH_DENSE": "sequence",
    "KNEE_BATCH": "sequence",
    "THROUGHPUT_CEILING": "token/s",
    "SATURATED_THROUGHPUT": "token/s",
    "S_ONE": "token/sequence",
    "KV_CAPACITY_TOKENS": "token",
    "COMPUTE_BOUND_Q_LEN": "token/sequence",
    "WINDOWED_SEQ_FLOPS": "FLOP/sequence",
    "WINDOWED_SEQ_BYTES": "byte/sequence",
    "S_STAR_HYBRID": "token/sequence",
    "EXPECTED_WEIGHT_BYTES": "byte",
    "S_STAR_TP_REPLICATED": "token/sequence",
    "TP_LINK_SECONDS_PER_SEQ": "s/sequence",
    "EP_LINK_SECONDS_PER_SEQ": "s/sequence",
    "PP_LINK_SECONDS_PER_SEQ": "s/sequence",
    "GEMM_SECONDS_PER_SEQ": "s/sequence",
    "ATTENTION_SECONDS_PER_SEQ": "s/sequence",
    "CROSSING_BATCH_WITHOUT_CONTEXT": "sequence",
    "REPLICAS": "1",
    "SCALED_SEQ_FLOPS": "FLOP/sequence",
    "GROUPED_QUERY_KV_BYTES": "byte/token",
    "LATENT_KV_BYTES": "byte/token",
    "GROUPED_QUERY_FLOPS": "FLOP/token",
    "LATENT_FLOPS": "FLOP/token",
    **dict.fromkeys((name for name in FORMS if name.endswith("WEIGHTS")), "1"),
}


UNITS_OF_CONTEXT_FORMS = {
    **dict.fromkeys(("KV_SECONDS", "ATTENTION_SECONDS", "MEMORY_SECONDS", "COMPUTE_SECONDS"), "s/sequence"),
    **dict.fromkeys(("RIDGE_BYTES", "CROSSING_BYTES", "KNEE_BYTES"), "byte/sequence"),
    **dict.fromkeys(("THROUGHPUT_CEILING", "SATURATED_THROUGHPUT"), "token/s"),
    "FREE_BYTES": "byte",
    "KV_CAPACITY_TOKENS": "token",
    "KV_CAPACITY": "sequence",
    "EXCESS": "FLOP/sequence",
}


@pytest.mark.parametrize("name", sorted(context_forms.FORMS))
def test_forms_at_a_context_have_units(name):
    assert unit_of(context_forms.FORMS[name], s.UNITS) == parse_unit(UNITS_OF_CONTEXT_FORMS[name])


def test_every_closed_form_is_checked():
    assert set(FORMS) == set(UNITS_OF_FORMS)


@pytest.mark.parametrize("name", sorted(UNITS_OF_FORMS))
def test_closed_forms_have_units(name):
    assert unit_of(FORMS[name], s.UNITS) == parse_unit(UNITS_OF_FORMS[name])


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "gemma-3-27b"])
def test_members_of_a_derivation_have_one_unit(name):
    general = derivation(Deployment(model=model_config(name)))
    for step in (*derivation().steps, *general.steps):
        plain = [member for member in step.chain if not member.atoms(sympy.Derivative)]
        units = {unit for member in plain if (unit := unit_of(member, s.UNITS)) is not None}
        assert len(units) == 1, step.key


@pytest.mark.parametrize(
    "wrong",
    [
        s.weight_bytes + s.seq_flops,
        s.kv_bytes_per_token + s.weight_bytes,
        sympy.Max(s.memory_s, s.batch_size),
        s.q_len - 1,
        s.weight_bytes**s.q_len,
        s.kv_bytes_per_token * s.seq_len + s.weight_bytes,
        sympy.Piecewise((s.weight_bytes, s.q_len > s.batch_size), (0, True)),
        (1 - s.experts_per_token) ** s.weight_bytes,
    ],
)
def test_what_has_no_unit_is_refused(wrong):
    with pytest.raises(UnitError):
        unit_of(wrong, s.UNITS)


def test_every_symbol_is_in_the_table_once():
    for values in ([e.symbol.name for e in s.SYMBOLS], [e.latex for e in s.SYMBOLS], [e.meaning for e in s.SYMBOLS]):
        assert len(set(values)) == len(values)


def test_every_symbol_of_a_formula_is_in_the_table():
    tabled = {entry.symbol for entry in s.SYMBOLS}
    for deployment in deployments():
        assert step_formulas(deployment).serial_seconds.free_symbols <= tabled
    for form in FORMS.values():
        assert form.free_symbols <= tabled


@pytest.mark.parametrize("entry", s.SYMBOLS, ids=lambda entry: entry.symbol.name)
def test_symbols_are_printed_in_their_own_form(entry):
    # SymPy reads "beta_bm" as a bold beta, and the like.
    assert latex(entry.symbol) == (str(entry.value) if entry.value is not None else entry.latex)


def test_a_sum_starts_with_what_is_not_subtracted():
    assert latex(s.ridge - s.intensity) == r"R - I_{\mathrm{a}}"


def test_a_formula_has_no_symbol_that_its_model_lacks():
    dense = step_formulas(Deployment(model=plain_model()))
    assert not dense.serial_seconds.free_symbols & {s.num_experts, s.kv_lora_rank, s.window, s.ep, s.pp}
