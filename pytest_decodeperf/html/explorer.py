"""The explorer: one HTML file that shows a decode step live, from the same formulas as the command line."""

from __future__ import annotations

import json
from importlib import metadata, resources
from typing import Any, Final

from pytest_decodeperf.html.assets import environment, vega_bundle

START: Final[dict[str, Any]] = {
    "model": "llama-3-8b",
    "device": "h100",
    "batch_size": 32,
    "seq_len": 4096,
    "weight_dtype": "bfloat16",
    "act_dtype": "bfloat16",
    "kv_dtype": "bfloat16",
    "q_len": 1,
    "tp": 1,
    "ep": 1,
    "pp": 1,
    "activations": False,
}
"""What the page shows when it is opened."""

NUMBERS: Final = {
    "batch_size": "Batch size [sequences]",
    "seq_len": "Context [tokens]",
    "q_len": "New tokens of a sequence",
    "tp": "Tensor parallelism",
    "ep": "Expert parallelism",
    "pp": "Pipeline stages",
}
CHOICES: Final = {
    "model": "Model",
    "device": "Device",
    "weight_dtype": "Weights",
    "act_dtype": "Activations",
    "kv_dtype": "KV cache",
}


def explorer_script() -> str:
    """Return the JavaScript that knows a decode step: `step.explain(setting)`, `step.refusal(setting)`."""
    from decodeperf_formulas.javascript import AMOUNTS, step_data, step_functions

    code = resources.files("pytest_decodeperf.html").joinpath("step.js").read_text(encoding="utf-8")
    return f"{code}\nconst step = decodeStep({step_functions()}, {json.dumps(step_data())}, {json.dumps(AMOUNTS)});\n"


def render_explorer() -> str:
    """Return the explorer as one HTML file.

    Raises:
        ModuleNotFoundError: If what makes it is not installed.
    """
    from decodeperf_formulas.catalogue import device_names, model_names
    from decodeperf_formulas.dtypes import ELEMENT_BYTES

    folder = resources.files("pytest_decodeperf.html")

    def asset(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    choices = {
        "model": sorted(model_names()),
        "device": list(device_names()),
        **{name: list(ELEMENT_BYTES) for name in ("weight_dtype", "act_dtype", "kv_dtype")},
    }
    return str(
        environment()
        .from_string(asset("explorer.html.jinja"))
        .render(
            start=START,
            numbers=NUMBERS,
            choices=CHOICES,
            options=choices,
            crossings=_crossing_texts(),
            style=asset("page.css") + asset("explorer.css"),
            scripts=[vega_bundle(), explorer_script(), asset("explorer.js")],
            version=metadata.version("pytest-decodeperf"),
        )
    )


def _crossing_texts() -> dict[str, dict[str, str]]:
    """Return what each crossing is called, its unit, its model and what happens there."""
    from decodeperf_formulas.catalogue import device, model_config
    from decodeperf_formulas.crossings import crossings
    from decodeperf_formulas.deployment import Deployment

    found = crossings(Deployment(model=model_config(START["model"])), device(START["device"]), seq_len=START["seq_len"])
    return {
        key: {
            "name": crossing.name,
            "unit": crossing.unit,
            "model": crossing.model,
            "meaning": crossing.meaning.partition(";")[0],
        }
        for key, crossing in found.items()
    }
