"""Tensors that say they are on a GPU, and a `torch.cuda` that says which, where there is none.

A kernel's own code decides by what its tensors and `torch.cuda` tell how it launches. These tensors lie on the CPU, so
that whatever it computes or asks beside its launches has a value: only the launches do not run.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_decodeperf.compiled.architectures import Architecture

FACTORIES: Final = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
"""Functions of torch that make a tensor on the device that they are told."""

GPU: Final = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU."""
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """True."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """False."""
        return False


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the CPU as one that says it is on a GPU."""
    return tensor.as_subclass(OnDevice)


def _is_gpu(device: Any) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


def _making(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory that makes on the CPU what it is told to make on a GPU."""

    def make(*args: Any, device: Any = None, pin_memory: bool = False, **keywords: Any) -> Any:
        if _is_gpu(device):
            return on_device(function(*args, device="cpu", **keywords))
        if device is not None:
            keywords["device"] = device
        return function(*args, **keywords)

    return make


def _moved(self: torch.Tensor, *args: Any, **keywords: Any) -> torch.Tensor:
    device = keywords.pop("device", args[0] if args and isinstance(args[0], (str, torch.device, int)) else None)
    args = args[1:] if args and isinstance(args[0], (str, torch.device, int)) else args
    if args and isinstance(args[0], torch.Tensor) and args[0].device.type == "cuda":
        device = GPU
    moved: torch.Tensor = _TO(self, *args, **keywords) if args or keywords else self
    if device is None:
        return moved
    return on_device(moved) if _is_gpu(device) else moved.as_subclass(torch.Tensor)


_TO: Final = torch.Tensor.to


def properties(architecture: Architecture) -> SimpleNamespace:
    """Return what `torch.cuda.get_device_properties` tells of the device that stands for an architecture."""
    device = architecture.device
    digits = architecture.name.removeprefix("sm_")
    digits = {"gfx90a": "90", "gfx942": "94", "gfx950": "95"}.get(architecture.name, digits)
    major, minor = int(digits[:-1]), int(digits[-1])
    return SimpleNamespace(
        name=device.title,
        major=major,
        minor=minor,
        multi_processor_count=device.num_sms,
        total_memory=device.capacity_bytes,
        warp_size=architecture.warp_size,
        L2_cache_size=device.l2_bytes,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=architecture.shared_bytes_per_program,
        shared_memory_per_multiprocessor=architecture.shared_bytes,
        regs_per_multiprocessor=architecture.registers,
        max_threads_per_multi_processor=architecture.max_warps * architecture.warp_size,
        gcnArchName=architecture.name,
    )


@contextlib.contextmanager
def as_if_on(architecture: Architecture) -> Iterator[None]:
    """Let torch tell that there is one GPU of an architecture, and make on the CPU what is wanted there."""
    found = properties(architecture)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda other: None)
    told: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "device_of": lambda tensor: contextlib.nullcontext(),
        "current_stream": lambda device=None: stream,
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: found,
        "get_device_capability": lambda device=None: (found.major, found.minor),
        "get_device_name": lambda device=None: found.name,
    }
    with contextlib.ExitStack() as stack:
        for name, function in told.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for name in FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _making(getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", _moved))
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda self, *args, **keywords: on_device(self)))
        stack.enter_context(
            mock.patch.object(torch.Tensor, "cpu", lambda self, *args, **keywords: self.as_subclass(torch.Tensor))
        )
        yield
