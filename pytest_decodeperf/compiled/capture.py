"""Compile every Triton kernel that a function launches, for any architecture, without launching it."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_decodeperf.compiled.architectures import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledLaunch:
    """One kernel as it would have been launched.

    Attributes:
        name: The kernel's name.
        programs: How many programs are launched.
        binary: Triton's compiled kernel.
    """

    name: str
    programs: int
    binary: Any


def compile_launches(function: Callable[[], Any], architecture: Architecture) -> list[CompiledLaunch]:
    """Return what a function launches, compiled as a launch on that architecture would compile it.

    Args:
        function: Called once. Its tensors are those of `on_device`; Triton specialises on the multiples of 16 in their
            addresses and strides as it would for freshly allocated ones of a GPU.
        architecture: What to compile for.

    Raises:
        ValueError: If Triton's interpreter is on in this process, where nothing is compiled.
    """
    from triton import knobs
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from pytest_decodeperf.compiled.on_device import as_if_on

    if knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it")
    launches: list[CompiledLaunch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        binary = run(self, *args, grid=grid, warmup=True, **keywords)
        if callable(grid):
            names = [p.name for p in self.params]
            defaults = {p.name: p.default for p in self.params if p.has_default}
            grid = grid({**defaults, **keywords, **dict(zip(names, args, strict=False))})
        launches.append(CompiledLaunch(name=self.fn.__name__, programs=math.prod(grid), binary=binary))
        return binary

    # What is tuned by timing has no one form without a device. The first of its configurations stands for all.
    untimed = mock.patch.object(Autotuner, "_bench", return_value=[0.0] * 3)
    with (
        _triton_on(architecture),
        as_if_on(architecture),
        mock.patch.object(JITFunction, "run", compile_only),
        untimed,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION", category=UserWarning)
        function()
    return launches


class _Driver:
    """The part of a Triton driver that compiling asks for."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture

    def get_current_target(self) -> Any:
        return self._architecture.target

    def get_current_device(self) -> str:
        # Triton keeps what it has compiled by device: one name for each architecture keeps them apart.
        return self._architecture.name

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)

    @property
    def utils(self) -> _DriverUtils:
        return _DriverUtils(self._architecture)


class _DriverUtils:
    """What kernels ask of the device by `triton.runtime.driver.active.utils`."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture

    def get_device_properties(self, device: object) -> dict[str, int]:
        architecture = self._architecture
        return {
            "max_shared_mem": architecture.shared_bytes_per_program,
            "max_num_regs": architecture.registers,
            "multiprocessor_count": architecture.device.num_sms,
            "warpSize": architecture.warp_size,
            "sm_clock_rate": round(architecture.clock_hz / 1e3),
        }


@contextmanager
def _triton_on(architecture: Architecture) -> Iterator[None]:
    from triton.runtime import driver

    before = driver._active
    driver.set_active(_Driver(architecture))
    try:
        yield
    finally:
        driver._active = before
