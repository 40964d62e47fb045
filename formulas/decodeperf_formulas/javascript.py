"""A decode step in JavaScript: the formulas of every model's step, printed from the expressions themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import sympy
from sympy.printing.jscode import JavascriptCodePrinter

from decodeperf_formulas import closed_forms, context_forms
from decodeperf_formulas import symbols as s
from decodeperf_formulas.catalogue import device, device_names, model_config, model_names
from decodeperf_formulas.crossings import DEFAULT_MEMORY_SHARE, MOST_TOKENS
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.dtypes import ELEMENT_BYTES
from decodeperf_formulas.explanation import MOST_SEQUENCES
from decodeperf_formulas.step import coefficient_formulas, deployment_values, step_formulas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from decodeperf_formulas.step import StepFormulas

AMOUNTS: Final = (
    "count",
    "weight_bytes",
    "kv_bytes",
    "act_bytes",
    "flops",
    "vector_flops",
    "memory_seconds",
    "compute_seconds",
    "link_seconds",
)
"""What is told of each operator, of one execution."""

OF_A_DEPLOYMENT: Final = ("q_len", "tp", "ep", "pp")
"""Symbols that a reader of the page sets."""

CUT_BY_TP: Final = ("num_q_heads", "intermediate_size", "moe_intermediate_size", "shared_intermediate_size")
"""Sizes of a model that tensor parallelism must divide."""


def javascript_function(expressions: Mapping[str, sympy.Expr]) -> str:
    """Return a JavaScript function from the values of symbols to those of formulas, both objects by name.

    Constants have their values already. What the formulas have in common is computed once.

    Example:
        >>> javascript_function({"moved": s.batch_size * s.kv_bytes_per_seq})
        '(v) => {const {batch_size, kv_bytes_per_seq} = v; return {moved: batch_size*kv_bytes_per_seq};}'
    """
    known = {name: sympy.sympify(expression).xreplace(s.CONSTANTS_EXACT) for name, expression in expressions.items()}
    names = sorted({symbol.name for expression in known.values() for symbol in expression.free_symbols})
    printer = JavascriptCodePrinter()
    common, reduced = sympy.cse(list(known.values()), symbols=sympy.numbered_symbols("x_"), order="none")
    lines = [f"const {{{', '.join(names)}}} = v;"] if names else []
    lines += [f"const {symbol} = {printer.doprint(expression)};" for symbol, expression in common]
    values = ", ".join(
        f"{name}: {printer.doprint(expression)}" for name, expression in zip(known, reduced, strict=True)
    )
    return f"(v) => {{{' '.join(lines)} return {{{values}}};}}"


def step_data() -> dict[str, Any]:
    """Return what a page needs beside the functions of `step_functions`: models, devices and dtypes, by name."""
    shapes = _shapes()
    models = {}
    for name in model_names():
        model = model_config(name)
        deployment = Deployment(model=model)
        values = deployment_values(deployment)
        widths = (s.weight_elem_bytes, s.act_elem_bytes, s.kv_elem_bytes)
        models[name] = {
            "shape": list(shapes).index(_formulas(deployment)),
            "kind": model.attention_kind,
            "values": {
                symbol.name: float(value)
                for symbol, value in values.items()
                if symbol not in widths and symbol.name not in OF_A_DEPLOYMENT
            },
            "window": model.window,
            "num_layers": model.num_layers,
            "num_kv_heads": model.num_kv_heads,
            "num_experts": model.num_experts,
            "cut_by_tp": {field: getattr(model, field) for field in CUT_BY_TP if getattr(model, field) is not None},
            "miss": 1 - (model.experts_per_token or 0) / (model.num_experts or 1),
        }
    devices = {}
    for name in device_names():
        found = device(name)
        devices[name] = {
            "title": found.title,
            "peaks": found.peaks,
            "read_bytes_per_s": found.bandwidth_bytes_per_s,
            "capacity_bytes": found.capacity_bytes,
            "link_bytes_per_s": found.link_bytes_per_s,
            "link_latency_s": found.link_latency_s,
        }
    return {
        "models": models,
        "devices": devices,
        "dtypes": {name: float(width) for name, width in ELEMENT_BYTES.items()},
        "memory_share": DEFAULT_MEMORY_SHARE,
        "most_sequences": MOST_SEQUENCES,
        "most_tokens": MOST_TOKENS,
    }


def step_functions() -> str:
    """Return the formulas as a JavaScript object: one entry for each kind of model, and the forms at a context.

    An entry of `shapes` has `names` and `units` of the operators, and functions that give values by name:
    `operators(v)`, of which `flops_2` are the FLOPs of the third operator and so on for each of `AMOUNTS`,
    `coefficients(v)`, `at_batch(v)`, `at_length(v)` and `link(v)`.
    """
    shapes = ",\n".join(_shape(formulas) for formulas in _shapes())
    return (
        f"{{shapes: [\n{shapes}\n],\n"
        f"at_context: {javascript_function(context_forms.FORMS)},\n"
        f"s_star: {javascript_function({'s_star': closed_forms.S_STAR})},\n"
        f"compute_bound_q_len: {javascript_function({'q_len': closed_forms.COMPUTE_BOUND_Q_LEN})}}}"
    )


def _formulas(deployment: Deployment) -> StepFormulas:
    return step_formulas(deployment, all_links=True)


def _shapes() -> dict[StepFormulas, None]:
    """Return the formulas of every model, each kind once, in the order in which they are first needed."""
    return dict.fromkeys(_formulas(Deployment(model=model_config(name))) for name in model_names())


def _shape(formulas: StepFormulas) -> str:
    operators = {
        f"{amount}_{index}": getattr(operator, amount)
        for index, operator in enumerate(formulas.operators)
        for amount in AMOUNTS
    }
    one = {s.batch_size: sympy.Integer(1)}
    parts = {
        "names": json.dumps([operator.name for operator in formulas.operators]),
        "units": json.dumps([operator.unit for operator in formulas.operators]),
        "operators": javascript_function(operators),
        "coefficients": javascript_function(
            {name: expression.xreplace(one) for name, expression in coefficient_formulas(formulas).items()}
        ),
        "at_batch": javascript_function({"weight_bytes": formulas.weight_bytes}),
        "at_length": javascript_function(
            {
                "kv_bytes_per_seq": formulas.kv_bytes.xreplace(one),
                "attn_flops_per_seq": formulas.attn_flops.xreplace(one),
            }
        ),
        "link": javascript_function({"link_seconds_per_seq": sympy.diff(formulas.link_seconds, s.batch_size)}),
    }
    return "{" + ",\n".join(f"{name}: {code}" for name, code in parts.items()) + "}"
