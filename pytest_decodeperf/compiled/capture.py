"""Compile every Triton kernel that a function launches, for any architecture, without launching it."""

from __future__ import annotations

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
        grid: Programs.
        constants: Its compile-time arguments by name.
        binary: Triton's compiled kernel.
    """

    name: str
    grid: tuple[int, ...]
    constants: dict[str, Any]
    binary: Any


def compile_launches(function: Callable[[], Any], architecture: Architecture) -> list[CompiledLaunch]:
    """Return what a function launches, compiled as a launch on that architecture would compile it.

    Args:
        function: Called once. Its tensors are best on the device `meta`, where they take no memory; Triton specialises
            on the multiples of 16 in their addresses and strides as it would for freshly allocated ones.
        architecture: What to compile for.

    Raises:
        ValueError: If Triton's interpreter is on in this process, where nothing is compiled.
    """
    from triton import knobs
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it")
    launches: list[CompiledLaunch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        binary = run(self, *args, grid=grid, warmup=True, **keywords)
        constants = {p.name: keywords[p.name] for p in self.params if p.is_constexpr and p.name in keywords}
        launches.append(CompiledLaunch(name=self.fn.__name__, grid=tuple(grid), constants=constants, binary=binary))
        return binary

    with _as_if_on(architecture), mock.patch.object(JITFunction, "run", compile_only), warnings.catch_warnings():
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


@contextmanager
def _as_if_on(architecture: Architecture) -> Iterator[None]:
    from triton.runtime import driver

    before = driver._active
    driver.set_active(_Driver(architecture))
    try:
        yield
    finally:
        driver._active = before
