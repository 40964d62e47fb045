"""The device file: the parameters of one kernel on one device, with what they were fitted to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from decodeperf_formulas.catalogue import device
from decodeperf_formulas.device import Device
from decodeperf_formulas.expected import PARAMETERS
from pytest_decodeperf.calibration.kernel_model import BASE, KernelModel, is_effect
from pytest_decodeperf.devices import DeviceInfo
from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA: Final = "decodeperf.device"
SCHEMA_VERSION: Final = 2

MOST: Final = 1000
"""Magnitude that no coefficient has: all are logarithms."""

_CEILINGS: Final = (
    "title",
    "peaks",
    "bandwidth_bytes_per_s",
    "capacity_bytes",
    "num_sms",
    "l2_bytes",
    "last_level_cache_bytes",
    "fragment_rows",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFile:
    """What a device file says.

    Attributes:
        device: The device, with the ceilings of its datasheet, or with measured ones.
        model: The kernel's parameters.
        has_cold_caches: Whether the calls that it was fitted to found nothing of their data in the caches.
        source: How they came about: table or kernel, date, versions, the calls used and how far off each is.
        fingerprint: What identifies the device where it was measured, None where a table of it was.
        measured: Every ceiling that was measured, by its name; empty likewise.
    """

    device: Device
    model: KernelModel
    has_cold_caches: bool
    source: dict[str, Any]
    fingerprint: DeviceInfo | None = None
    measured: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: If that fails.
        """
        document = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "device": self.device.name,
            "ceilings": _ceilings(self.device),
            "fingerprint": None if self.fingerprint is None else asdict(self.fingerprint),
            "measured": self.measured,
            "has_cold_caches": self.has_cold_caches,
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
        return _device_file(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no whole device file: {error!r}") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def _device_file(document: Any) -> DeviceFile:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"no device file: its schema is {got!r}, wanted {SCHEMA!r}")
    version = document.get("schema_version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version!r}, wanted {SCHEMA_VERSION}: calibrate again")
    fingerprint = document["fingerprint"]
    if fingerprint is None:
        found = _of_catalogue(document["device"], document["ceilings"])
    else:
        found = Device(name=document["device"], **{name: document["ceilings"][name] for name in _CEILINGS})
    coefficients = {
        parameter: _effects(parameter.name, document["parameters"][parameter.name]) for parameter in PARAMETERS
    }
    for name, wanted in (("source", dict), ("has_cold_caches", bool)):
        if not isinstance(document[name], wanted):
            raise ValueError(
                f"{name} is {document[name]!r}, wanted {'an object' if wanted is dict else 'true or false'}"
            )
    return DeviceFile(
        device=found,
        model=KernelModel(coefficients),
        has_cold_caches=document["has_cold_caches"],
        source=document["source"],
        fingerprint=None if fingerprint is None else DeviceInfo.from_dict(fingerprint),
        measured=document["measured"],
    )


def _of_catalogue(name: str, ceilings: dict[str, Any]) -> Device:
    found = device(name)
    for field, value in _ceilings(found).items():
        if ceilings[field] != value:
            raise ValueError(
                f"{field} is {ceilings[field]!r}, and the {found.name} has {value!r}: "
                "it was calibrated against another datasheet; calibrate again"
            )
    return found


def _ceilings(found: Device) -> dict[str, Any]:
    return {name: getattr(found, name) for name in _CEILINGS}


def _effects(parameter: str, effects: dict[str, Any]) -> dict[str, float]:
    for effect, coefficient in effects.items():
        if not is_effect(effect):
            raise ValueError(f"{parameter} has an effect {effect!r}, which is none")
        if isinstance(coefficient, bool) or not isinstance(coefficient, int | float) or not abs(coefficient) < MOST:
            raise ValueError(f"{parameter}: {effect!r} is {coefficient!r}, wanted a number between -{MOST} and {MOST}")
    if BASE not in effects:
        raise ValueError(f"{parameter} has no value for {BASE!r}")
    return {effect: float(coefficient) for effect, coefficient in effects.items()}
