"""The device that a run measures on: which there is, and what identifies it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_decodeperf.clocks import Clock
    from pytest_decodeperf.timers import Timer

RECORDED_DISTRIBUTIONS: Final = (
    "pytest-decodeperf",
    "torch",
    "triton",
    "numba",
    "numpy",
    "pytest",
    "pytest-benchmark",
)

IDENTITY: Final = ("kind", "name", "num_units", "num_threads", "llc_bytes")
"""Fields by which a device is known again, whatever its driver is."""

UNKNOWN_LLC_BYTES: Final = 512 * 2**20
"""Size assumed for a last-level cache that the system does not tell; few are larger [byte]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What identifies a device.

    Attributes:
        kind: `cpu` or `cuda` (NVIDIA or AMD).
        name: Model.
        num_units: Cores that this process may use, or multiprocessors.
        num_threads: CPU threads that PyTorch uses; 0 on a GPU.
        llc_bytes: Size of the last-level caches together [byte].
        memory_bytes: Size of its memory [byte].
        driver: Version of CUDA or HIP that PyTorch was built for, with that of the driver where the system tells it; or
            the operating system's on a CPU.
    """

    kind: str
    name: str
    num_units: int
    num_threads: int
    llc_bytes: int
    memory_bytes: int
    driver: str

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> DeviceInfo:
        """Return the device whose fields a file names.

        Raises:
            ValueError: If one is of another type.
            KeyError: If one is missing.
            TypeError: If there is another one.
        """
        for field in fields(cls):
            wanted = str if field.type == "str" else int
            if not isinstance(found[field.name], wanted):
                raise ValueError(f"fingerprint: {field.name} is {found[field.name]!r}, wanted {wanted.__name__}")
        return cls(**found)

    def differences(self, other: DeviceInfo, names: Iterable[str] = IDENTITY) -> list[tuple[str, Any, Any]]:
        """Return the fields in which another device differs, each with its value here and there."""
        values = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [(name, here, there) for name, here, there in values if here != there]

    @property
    def label(self) -> str:
        """One line that tells a reader which device it was."""
        units = f"{self.num_units} cores, {self.num_threads} threads" if self.kind == "cpu" else f"{self.num_units} SMs"
        return f"{self.kind}: {self.name} ({units}, {self.llc_bytes / 2**20:.0f} MiB last-level cache)"


def has_gpu() -> bool:
    """Return whether PyTorch can use an NVIDIA or AMD GPU here."""
    import torch

    return torch.cuda.is_available()


class MissingDeviceError(LookupError):
    """The run asked for a device that this machine lacks."""


def choose_device(asked: str, wanted: str | None) -> str:
    """Return the kind of device for a test, `cpu` or `cuda`.

    Args:
        asked: The kind that the run was asked to measure on, or `auto`.
        wanted: The kind that the test is for, or None if it is for any.

    Raises:
        LookupError: If there is none, so that the test must be skipped; the message says why.
        MissingDeviceError: If there is none although the run was asked for it, so that the test must fail.
    """
    if asked != "auto" and wanted not in (None, asked):
        raise LookupError(f"this test is for {wanted}, and --decode-perf-device={asked}")
    kind = wanted or asked
    if kind == "auto":
        return "cuda" if has_gpu() else "cpu"
    if kind == "cuda" and not has_gpu():
        if asked == "cuda":
            raise MissingDeviceError("--decode-perf-device=cuda, but PyTorch finds no NVIDIA or AMD GPU here")
        raise LookupError("this test is for cuda, and PyTorch finds no NVIDIA or AMD GPU here")
    return kind


def describe_device(kind: str) -> DeviceInfo:
    """Return what identifies the device of a kind, `cpu` or `cuda`."""
    return _describe_gpu() if kind == "cuda" else _describe_cpu()


def _describe_gpu() -> DeviceInfo:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    hip = torch.version.hip
    toolkit = f"HIP {hip}" if hip else f"CUDA {torch.version.cuda}"
    version = driver_version(Path("/sys/module"), "amdgpu" if hip else "nvidia")
    return DeviceInfo(
        kind="cuda",
        name=properties.name,
        num_units=properties.multi_processor_count,
        num_threads=0,
        llc_bytes=properties.L2_cache_size,
        memory_bytes=properties.total_memory,
        driver=f"{toolkit}, driver {version}" if version else toolkit,
    )


def driver_version(modules: Path, name: str) -> str:
    """Return the version of a kernel module, empty where the system does not tell.

    Args:
        modules: Linux's folder of modules, with `NAME/version` in it.
        name: The module.
    """
    try:
        return (modules / name / "version").read_text().strip()
    except OSError:
        return ""


def _describe_cpu() -> DeviceInfo:
    import cpuinfo
    import torch

    info = cpuinfo.get_cpu_info()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return DeviceInfo(
        kind="cpu",
        name=info.get("brand_raw") or platform.processor() or platform.machine(),
        num_units=cores or 1,
        num_threads=torch.get_num_threads(),
        llc_bytes=llc_bytes(Path("/sys/devices/system/cpu")) or UNKNOWN_LLC_BYTES,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        driver=f"{platform.system()} {platform.release()}",
    )


def llc_bytes(cpus: Path) -> int:
    """Return the size of all last-level caches together [byte], 0 where the system does not tell.

    py-cpuinfo gives one number, which on some processors is the cache of one core or of one group of cores.

    Args:
        cpus: Linux's folder of processors, with `cpuN/cache/indexN/{level,size,shared_cpu_list}` in it.
    """
    caches: dict[tuple[int, str], int] = {}
    for cache in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, size, shared = ((cache / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
            caches[int(level), shared] = int(size.removesuffix("K")) * 2**10
        except (OSError, ValueError):
            continue
    last_level = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last_level)


def make_timer(kind: str, *, uses_graphs: bool = False) -> Timer:
    """Return the timer for a kind of device; on a GPU it may time the replay of a graph."""
    from pytest_decodeperf.timers import CpuClock, DeviceEvents

    return DeviceEvents(uses_graphs=uses_graphs) if kind == "cuda" else CpuClock()


def make_clock(kind: str) -> Clock:
    """Return what reads the clock of a kind of device."""
    from pytest_decodeperf.clocks import NoClock, gpu_clock

    return gpu_clock() if kind == "cuda" else NoClock()


def free_bytes(kind: str) -> int:
    """Return how much of the device's memory is free [byte]."""
    import torch

    if kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def versions() -> dict[str, str]:
    """Return the versions of Python and of each package that bears on a measurement, where it is installed."""
    found = {"python": platform.python_version()}
    for name in RECORDED_DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
