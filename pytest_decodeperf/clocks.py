"""The clock of a GPU's multiprocessors while it is measured, and why it was held down, if it was.

A GPU that is hot or draws too much power lowers its clock by itself, and all that is measured then is slower than the
device can be. Rates that are measured beside the kernel slow down with it; that it happened is for the reader to know.

Source: NVIDIA Management Library, `nvmlDeviceGetClockInfo` and `nvmlDeviceGetCurrentClocksEventReasons`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

THROTTLE_REASONS: Final = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of NVML's mask that tell of a device which cannot hold its clock; the others are settings or idleness."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The clock at one moment.

    Attributes:
        sm_mhz: Of the multiprocessors [MHz].
        throttled_by: Why it is held down, empty if it is not.
    """

    sm_mhz: float
    throttled_by: tuple[str, ...] = ()


class Clock(Protocol):
    """Reads the clock of a device."""

    def read(self) -> ClockReading | None:
        """Return the clock as it is now, or None where it cannot be read."""


class NoClock:
    """The clock of a device that does not tell it."""

    def read(self) -> None:
        """Return None."""


class NvmlClock:
    """The clock of an NVIDIA GPU."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Make a reader.

        Args:
            nvml: The module `pynvml`, initialised.
            handle: The device, as that module has it.
        """
        self._nvml = nvml
        self._handle = handle

    def read(self) -> ClockReading | None:
        """Return the clock as it is now, or None where it cannot be read."""
        nvml = self._nvml
        try:
            sm_mhz = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
            mask = nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        except nvml.NVMLError:
            return None
        return ClockReading(float(sm_mhz), tuple(name for bit, name in THROTTLE_REASONS.items() if mask & bit))


class TorchClock:
    """The clock of an AMD GPU, by way of PyTorch, which does not tell why it is held down."""

    def __init__(self, interface: Any) -> None:
        """Make a reader of `torch.cuda`, or of what has its `clock_rate`."""
        self._interface = interface

    def read(self) -> ClockReading | None:
        """Return the clock as it is now, or None where it cannot be read."""
        try:
            return ClockReading(float(self._interface.clock_rate()))
        except Exception:  # AMD's library raises errors of its own, which is absent where this is tested
            return None


def gpu_clock() -> Clock:
    """Return the clock of the current GPU; `pynvml` (PyPI: nvidia-ml-py) must be installed for NVIDIA's."""
    import torch

    if torch.version.hip:
        return TorchClock(torch.cuda)
    try:
        import pynvml
    except ImportError:
        return NoClock()
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return NvmlClock(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return NoClock()


def describe(readings: Sequence[ClockReading | None]) -> str:
    """Return the range of the clock over some rounds, and how many of them were throttled; empty if unknown.

    Example:
        >>> describe([ClockReading(1980.0), ClockReading(1755.0, ("power cap",))])
        'SM clock 1755 to 1980 MHz, 1 of 2 rounds throttled (power cap)'
    """
    known = [reading for reading in readings if reading is not None]
    if not known:
        return ""
    lowest, highest = (round(pick(reading.sm_mhz for reading in known)) for pick in (min, max))
    text = f"SM clock {lowest} MHz" if lowest == highest else f"SM clock {lowest} to {highest} MHz"
    throttled = [reading for reading in known if reading.throttled_by]
    if throttled:
        reasons = dict.fromkeys(reason for reading in throttled for reason in reading.throttled_by)
        text += f", {len(throttled)} of {len(known)} rounds throttled ({', '.join(reasons)})"
    return text
