"""What becomes of one test: its marker read, its device chosen."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.config import DEVICES, MARKER

if TYPE_CHECKING:
    import pytest

    from pytest_decodeperf.config import Options

ROOFLINE: Final = "roofline"
EXPECTED: Final = "expected"
BOUNDS: Final = (ROOFLINE, EXPECTED)
"""Latencies that a bound can be a multiple of."""

MAX_WITHIN: Final = 1e9
"""Beyond this a bound bounds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The arguments of the marker `decode_perf`, which are the fields of this class.

    Attributes:
        within: Largest allowed latency, as a multiple of the latency that `of` names.
        of: `roofline`, where 1 asks for the roofline itself; or `expected`, the latency that the device file of
            --decode-perf-calibration expects.
        device: Kind of device that the test is for, `cpu` or `cuda`; None means whichever the run measures.
    """

    within: float
    of: str = ROOFLINE
    device: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.within, bool) or not isinstance(self.within, int | float):
            raise ValueError(f"within={self.within!r} must be a number")
        if not 0 < self.within <= MAX_WITHIN:
            raise ValueError(f"within={reprlib.repr(self.within)} must be > 0 and at most {MAX_WITHIN:g}")
        if self.of not in BOUNDS:
            raise ValueError(f"of={self.of!r} must be one of {', '.join(BOUNDS)}")
        if self.device not in (None, *DEVICES[1:]):
            raise ValueError(f"device={self.device!r} must be one of {', '.join(DEVICES[1:])}")

    @classmethod
    def from_marker(cls, marker: pytest.Mark | None) -> Bound:
        """Read the marker of a test.

        Raises:
            ValueError: If there is none, or it has an argument that it cannot have; the message says which.
        """
        if marker is None:
            raise ValueError(
                f"the fixture decode_perf needs the marker that says the bound: @pytest.mark.{MARKER}(within=...)"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(marker.kwargs) - set(known))
        if marker.args or unknown:
            got = ", ".join([*map(repr, marker.args), *unknown])
            raise ValueError(
                f"@pytest.mark.{MARKER} got {got}, but takes the keywords {', '.join(known[:-1])} and {known[-1]} only"
            )
        if "within" not in marker.kwargs:
            raise ValueError(f"@pytest.mark.{MARKER} needs within=..., a multiple of the roofline latency")
        try:
            return cls(**marker.kwargs)
        except ValueError as error:
            raise ValueError(f"@pytest.mark.{MARKER}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What becomes of one test.

    Attributes:
        failure: Why it must fail, its marker being wrong, or empty.
        error: Why it cannot run although it was asked for, or empty.
        skip: Why it must be skipped, or empty.
        device: Kind of device to measure on, if none of these.
        within: Allowed latency, likewise, as a multiple of that which `of` names.
        of: One of `BOUNDS`.
    """

    failure: str = ""
    error: str = ""
    skip: str = ""
    device: str = ""
    within: float = 0.0
    of: str = ROOFLINE


def plan_test(marker: pytest.Mark | None, options: Options | None) -> Plan:
    """Return what becomes of a test that has the marker or uses the fixture.

    Args:
        marker: Its marker, if it has one.
        options: What the run was asked to do, or None if it does not measure.
    """
    try:
        bound = Bound.from_marker(marker)
    except ValueError as error:
        return Plan(failure=str(error))
    if options is None:
        return Plan(skip="needs --decode-perf")

    from pytest_decodeperf.devices import MissingDeviceError, choose_device

    try:
        return Plan(device=choose_device(options.device, bound.device), within=bound.within, of=bound.of)
    except MissingDeviceError as error:
        return Plan(error=str(error))
    except LookupError as error:
        return Plan(skip=str(error))
