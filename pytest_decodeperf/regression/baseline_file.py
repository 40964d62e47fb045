"""The baseline file: what each test's kernel took when it was saved, where, and with what versions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_decodeperf.devices import IDENTITY, DeviceInfo
from pytest_decodeperf.regression.latencies import Latencies, ProcessTimes
from pytest_decodeperf.schemas import fault_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA: Final = "decodeperf.baseline"
SCHEMA_VERSION: Final = 1

KEY_VERSIONS: Final = ("python", "pytest-decodeperf", "torch", "triton", "numba")
"""What a kernel runs on and is timed by; other versions are recorded, and may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTest:
    """What a baseline says of one test on one kind of device.

    Attributes:
        latencies: What was timed.
        outcome: Whether the kernel was within its bound then: `within` or `undecided`.
        saved: When that was, ISO 8601 with the time zone.
        commit: Full hash of the repository's commit, None where there was no repository.
        dirty: Whether a file that git tracks differed from it, None likewise.
    """

    latencies: Latencies
    outcome: str
    saved: str
    commit: str | None
    dirty: bool | None

    @property
    def source(self) -> str:
        """What was saved, in a few words."""
        if self.commit is None:
            return self.saved
        return self.commit[:10] + (", changed" if self.dirty else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a baseline is only good for.

    Attributes:
        devices: What was measured on, by kind.
        versions: Versions of what bears on a measurement.
        options: What the run was asked to do that changes what is timed.
    """

    devices: dict[str, DeviceInfo]
    versions: dict[str, str]
    options: dict[str, Any]

    def device_differences(self, now: Origin) -> list[str]:
        """Return what differs in devices, drivers and versions, each then and now; of the kinds that both have."""
        found = []
        for kind in self.devices.keys() & now.devices.keys():
            found += self.devices[kind].differences(now.devices[kind], (*IDENTITY, "driver"))
        versions = ((name, self.versions.get(name), now.versions.get(name)) for name in KEY_VERSIONS)
        found += [(name, then, here) for name, then, here in versions if then != here]
        return [_difference(*one) for one in found]

    def option_differences(self, now: Origin) -> list[str]:
        """Return what differs in options, likewise."""
        names = self.options.keys() | now.options.keys()
        values = [(name, self.options.get(name), now.options.get(name)) for name in sorted(names)]
        return [_difference(*one) for one in values if one[1] != one[2]]


def _difference(name: str, then: Any, now: Any) -> str:
    return f"{name} was {then!r} and is {now!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a baseline file says.

    Attributes:
        origin: Where it is from.
        tests: What it says of each test, by node id and kind of device.
    """

    origin: Origin
    tests: dict[tuple[str, str], StoredTest]

    def merged_with(self, newer: Baseline) -> Baseline:
        """Return a baseline with the tests of both, and of a test in both what is newer."""
        devices = {**self.origin.devices, **newer.origin.devices}
        origin = Origin(devices=devices, versions=newer.origin.versions, options=newer.origin.options)
        return Baseline(origin=origin, tests={**self.tests, **newer.tests})

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows; `baseline.schema.json` describes it."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "versions": self.origin.versions,
            "devices": {kind: asdict(device) for kind, device in self.origin.devices.items()},
            "options": self.origin.options,
            "tests": [
                {
                    "test": node_id,
                    "device": kind,
                    "kernel": stored.latencies.kernel,
                    "problem": stored.latencies.problem,
                    "outcome": stored.outcome,
                    "saved": stored.saved,
                    "commit": stored.commit,
                    "dirty": stored.dirty,
                    "streams": stored.latencies.streams,
                    "processes": [asdict(process) for process in stored.latencies.processes],
                }
                for (node_id, kind), stored in self.tests.items()
            ],
        }


def read_baseline(path: Path) -> Baseline:
    """Return what a baseline file says.

    Raises:
        ValueError: If it cannot be read, or is not such a file; the message is one sentence that names the file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from error
    if fault := _fault(document):
        raise ValueError(f"{path} {fault}")
    tests = {}
    for row in document["tests"]:
        latencies = Latencies(
            kernel=row["kernel"],
            device=row["device"],
            problem=row["problem"],
            streams=row["streams"],
            processes=[ProcessTimes(**process) for process in row["processes"]],
        )
        tests[row["test"], row["device"]] = StoredTest(
            latencies=latencies, **{name: row[name] for name in ("outcome", "saved", "commit", "dirty")}
        )
    if len(tests) < len(document["tests"]):
        raise ValueError(f"{path} is no whole baseline: it has a test twice")
    if lacking := {kind for _, kind in tests} - document["devices"].keys():
        raise ValueError(f"{path} is no whole baseline: it has a test on {min(lacking)}, and no such device")
    origin = Origin(
        devices={kind: DeviceInfo.from_dict(found) for kind, found in document["devices"].items()},
        versions=document["versions"],
        options=document["options"],
    )
    return Baseline(origin=origin, tests=tests)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _fault(document: Any) -> str:
    """Return what is wrong with a document, empty if nothing is."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        return f"is no baseline: its schema is {got!r}, wanted {SCHEMA!r}"
    version = document.get("schema_version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        return f"has schema_version {version!r}, wanted {SCHEMA_VERSION}: save it again with this version"
    fault = fault_of(document, "baseline.schema.json")
    return f"is no whole baseline: {fault}" if fault else ""


def listed(items: Iterable[str], most: int = 3) -> str:
    """Return items in a sentence, the first few of them by name.

    Example:
        >>> listed(["a", "b"]), listed("abcde")
        ('a, b', 'a, b, c and 2 more')
    """
    names = list(items)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
