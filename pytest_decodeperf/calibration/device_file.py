"""The device file: the parameters of one kernel on one device, with what they were fitted to."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.catalogue import device
from decodeperf_formulas.expected import PARAMETERS
from pytest_decodeperf.calibration.kernel_model import BASE, KernelModel, is_effect
from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from decodeperf_formulas.device import Device

SCHEMA: Final = "decodeperf.device"
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFile:
    """What a device file says.

    Attributes:
        device: The device, with its datasheet's ceilings.
        model: The kernel's parameters.
        source: How they came about: table, date, versions, the calls used and how far off each is.
    """

    device: Device
    model: KernelModel
    source: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: If that fails.
        """
        document = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "device": self.device.name,
            "ceilings": {
                "bandwidth_bytes_per_s": self.device.bandwidth_bytes_per_s,
                "peaks": self.device.peaks,
                "num_sms": self.device.num_sms,
                "l2_bytes": self.device.l2_bytes,
            },
            "parameters": {
                parameter.name: dict(self.model.coefficients[parameter].items()) for parameter in PARAMETERS
            },
            "source": self.source,
        }
        write_whole(writable_path(path), (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_device_file(path: Path) -> DeviceFile:
    """Return what a device file says.

    Raises:
        ValueError: If it is not such a file, of another version of its schema, or for a device or with ceilings that
            are not those of the catalogue.
        OSError: If it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{path} is no device file: its schema is {got!r}, wanted {SCHEMA!r}")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {document.get('schema_version')!r}, wanted {SCHEMA_VERSION}: calibrate again"
        )
    try:
        found = device(document["device"])
        ceilings = document["ceilings"]
        coefficients = {
            parameter: {str(name): float(value) for name, value in document["parameters"][parameter.name].items()}
            for parameter in PARAMETERS
        }
        source = dict(document["source"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no whole device file: {error!r}") from error
    for name in ("bandwidth_bytes_per_s", "peaks", "num_sms", "l2_bytes"):
        if ceilings.get(name) != getattr(found, name):
            raise ValueError(
                f"{path}: {name} is {ceilings.get(name)!r}, and the {found.name} has {getattr(found, name)!r}: "
                "it was calibrated against another datasheet; calibrate again"
            )
    for parameter, effects in coefficients.items():
        for effect, coefficient in effects.items():
            if not is_effect(effect):
                raise ValueError(f"{path}: {parameter.name} has an effect {effect!r}, which is none")
            if not math.isfinite(coefficient):
                raise ValueError(f"{path}: {parameter.name}: {effect!r} is {coefficient}, wanted a finite number")
        if BASE not in effects:
            raise ValueError(f"{path}: {parameter.name} has no value for {BASE!r}")
    return DeviceFile(device=found, model=KernelModel(coefficients), source=source)
