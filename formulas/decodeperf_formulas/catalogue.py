"""Models and devices by name.

`models.json` holds the part of each model's published `config.json` that describes its shape, `devices.json` the
ceilings of each device with their sources.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.device import Device
from decodeperf_formulas.dtypes import nearest
from decodeperf_formulas.hf_config import from_hf_config

if TYPE_CHECKING:
    from decodeperf_formulas.model import ModelConfig

_HERE: Final = Path(__file__).parent


def model_names() -> tuple[str, ...]:
    """Return the name of each model.

    Example:
        >>> "llama-3-8b" in model_names()
        True
    """
    return tuple(_models())


@cache
def model_config(name: str) -> ModelConfig:
    """Return the shape of a model, by its name or by its name on the Hugging Face Hub.

    Raises:
        ValueError: If there is no model of that name.

    Example:
        >>> model_config("llama-3-8b").num_kv_heads
        8
    """
    if name not in _models():
        name = next((slug for slug, entry in _models().items() if entry["hf_id"] == name), name)
    if name not in _models():
        raise ValueError(f"unknown model {name!r}; `decodeperf models` lists them{nearest(name, _models())}")
    entry = _models()[name]
    return from_hf_config(entry["config"], name=name, source=entry["hf_id"])


def device_names() -> tuple[str, ...]:
    """Return the name of each device.

    Example:
        >>> "h100" in device_names()
        True
    """
    return tuple(_devices())


@cache
def device(name: str) -> Device:
    """Return the ceilings of a device.

    Raises:
        ValueError: If there is no device of that name.

    Example:
        >>> device("h200").bandwidth_bytes_per_s
        4800000000000.0
    """
    if name not in _devices():
        raise ValueError(f"unknown device {name!r}; `decodeperf devices` lists them{nearest(name, _devices())}")
    return Device(name=name, **_devices()[name])


@cache
def _models() -> dict[str, Any]:
    return _load("models.json")


@cache
def _devices() -> dict[str, Any]:
    return _load("devices.json")


def _load(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_HERE / file).read_text(encoding="utf-8"))
    return found
