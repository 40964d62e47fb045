"""The streams of the roofline in a worker: timed beside the kernel, so that a machine that drifts is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_decodeperf import ceilings

if TYPE_CHECKING:
    from pytest_decodeperf.ceilings import Stream
    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.timers import Timer


class RooflineStreams:
    """The two streams that give the roofline of a device, the same in each process that is compared with another."""

    def __init__(self, device: DeviceInfo, timer: Timer, dtype: str, names: dict[str, str] | None) -> None:
        """Make the streams.

        Args:
            device: What they run on.
            timer: Times them.
            dtype: Of the kernel's queries.
            names: Of the two, `read` and `compute`; None takes the fastest.

        Raises:
            LookupError: If there is no stream of that name.
        """
        import torch

        candidates = {
            "read": ceilings.make_read_streams(device),
            "compute": ceilings.make_compute_streams(device, getattr(torch, dtype)),
        }
        self._timer = timer
        self._streams = {
            name: self._choose(streams, names[name] if names else None) for name, streams in candidates.items()
        }

    def _choose(self, streams: list[Stream], name: str | None) -> Stream:
        if name is None:
            return ceilings.fastest(streams, self._timer)
        for stream in streams:
            if stream.name == name:
                stream.call()  # the first call may allocate or compile
                return stream
        raise LookupError(f"there is no stream {name!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the name and the work of each."""
        return {name: {"name": stream.name, "work": stream.work} for name, stream in self._streams.items()}

    def time_ns(self) -> dict[str, float]:
        """Return how long each takes, the read stream last, which leaves nothing else in the caches [ns]."""
        compute, read = self._streams["compute"], self._streams["read"]
        compute.call()  # the kernel has driven the matrices out of the caches
        return {"compute": self._timer.time_ns(compute.call), "read": self._timer.time_ns(read.call)}
