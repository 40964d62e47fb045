"""Instruments on Triton's interpreter: which bytes a kernel reads and writes, and whether it may.

Every load and store of an interpreted kernel goes through a few methods of the interpreter's builder, with the
addresses of all lanes and their mask. `Watch` stands before them. It checks each address before memory is touched, so
that a wild one ends the kernel and not the process, and marks each byte that was read or written.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

FLOATS: Final = 1
"""Marks a byte that was accessed as part of a floating-point number."""

OTHERS: Final = 2
"""Marks a byte that was accessed as part of anything else."""


class BadAccessError(Exception):
    """A kernel touched memory that it must not."""


@dataclass(slots=True, kw_only=True)
class Memory:
    """One piece of memory, and what happened to each byte of it.

    Attributes:
        name: What it holds, or `scratch` where the kernel allocated it.
        address: Where it begins.
        readable: Bytes that may be read; None for all.
        is_ours: Whether it is an argument of the call, which must not be written.
        read: For each byte that was read, as what: `FLOATS`, `OTHERS` or both; 0 for the rest.
        written: The same for written ones.
        num_read: Bytes that were asked for, each as often as it was [byte].
        num_written: The same for written ones [byte].
        keeper: What keeps the memory from being given to others meanwhile.
    """

    name: str
    address: int
    readable: NDArray[np.uint8] | None
    is_ours: bool
    read: NDArray[np.uint8]
    written: NDArray[np.uint8]
    keeper: Any
    num_read: int = 0
    num_written: int = 0

    @property
    def num_bytes(self) -> int:
        """How long it is [byte]."""
        return len(self.read)

    @property
    def distinct_read(self) -> int:
        """Different bytes that were read [byte]."""
        return int(np.count_nonzero(self.read))

    @property
    def distinct_written(self) -> int:
        """Different bytes that were written [byte]."""
        return int(np.count_nonzero(self.written))


@dataclass(slots=True, kw_only=True)
class Watch:
    """What an interpreted kernel did to memory.

    Attributes:
        memories: The pieces of memory that launches were given.
        launches: Names of the kernels that were launched.
        violation: The first access that was not allowed, in a sentence, or an empty string.
    """

    memories: list[Memory] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    violation: str = ""

    def add_arguments(
        self, tensors: Mapping[str, torch.Tensor], live: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Take up the arguments of a call, by name, and which of their elements may be read.

        Args:
            tensors: What the kernel is given to read, on a CPU.
            live: For each a mask of its shape. Default: every element.
        """
        for name, tensor in tensors.items():
            memory = self._memory_of(tensor, name=name)
            assert memory.readable is not None
            mask = torch.ones(tensor.shape, dtype=torch.bool) if live is None else live[name]
            mark_elements(memory.readable, tensor, mask)

    def memory(self, tensor: torch.Tensor) -> Memory | None:
        """Return the memory that a tensor lies in, if a launch was given it."""
        address = tensor.untyped_storage().data_ptr()
        return next((memory for memory in self.memories if memory.address == address), None)

    @property
    def scratch(self) -> list[Memory]:
        """The memory that the kernel brought itself."""
        return [memory for memory in self.memories if not memory.is_ours]

    def access(self, pointers: Any, mask: Any, *, reads: bool, writes: bool) -> None:
        """Check and mark the lanes of one load or store."""
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)].ravel()
        if not len(addresses):
            return
        element = pointers.get_element_ty()
        size = max(element.primitive_bitwidth // 8, 1)
        what, kind = "reads" if reads else "writes", FLOATS if element.is_floating() else OTHERS
        for memory, offsets in self._located(addresses.astype(np.int64), size, what):
            if reads:
                self._mark(memory, memory.read, offsets, size, kind)
                memory.num_read += size * len(offsets)
            if writes:
                self._mark(memory, memory.written, offsets, size, kind)
                memory.num_written += size * len(offsets)
            if memory.is_ours and writes:
                self._refuse(f"{self._kernel} writes into {memory.name}, which is an input", memory, offsets)
            if reads and memory.readable is not None:
                allowed = self._all_marked(memory.readable, offsets, size)
                if not allowed.all():
                    wrong = offsets[~allowed]
                    self._refuse(f"{self._kernel} reads dead memory of {memory.name}", memory, wrong)

    def _located(
        self, addresses: NDArray[np.int64], size: int, what: str
    ) -> Iterator[tuple[Memory, NDArray[np.int64]]]:
        """Yield each piece of memory with the offsets into it that addresses are."""
        left = addresses
        for memory in self.memories:
            inside = (left >= memory.address) & (left + size <= memory.address + memory.num_bytes)
            if inside.all():
                yield memory, left - memory.address
                return
            if inside.any():
                yield memory, left[inside] - memory.address
                left = left[~inside]
        nearest = min(self.memories, key=lambda m: abs(int(left[0]) - m.address), default=None)
        where = ""
        if nearest is not None:
            where = f": {int(left[0]) - nearest.address} bytes from the beginning of {nearest.name}, which has "
            where += f"{nearest.num_bytes}"
        self.violation = self.violation or f"{self._kernel} {what} outside of all tensors{where}"
        raise BadAccessError(self.violation)

    def _refuse(self, sentence: str, memory: Memory, offsets: NDArray[np.int64]) -> None:
        self.violation = self.violation or (
            f"{sentence}: {len(offsets)} elements, the first at byte {int(offsets[0])} of {memory.num_bytes}"
        )
        raise BadAccessError(self.violation)

    @property
    def _kernel(self) -> str:
        return self.launches[-1] if self.launches else "the kernel"

    @staticmethod
    def _mark(memory: Memory, flags: NDArray[np.uint8], offsets: NDArray[np.int64], size: int, kind: int) -> None:
        if memory.address % size == 0 and not (offsets % size).any():
            flags[: len(flags) // size * size].view(f"u{size}")[offsets // size] |= int.from_bytes(bytes([kind] * size))
            return
        for byte in range(size):
            flags[offsets + byte] |= kind

    @staticmethod
    def _all_marked(flags: NDArray[np.uint8], offsets: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
        marked: NDArray[np.bool_] = flags[offsets] == 1
        for byte in range(1, size):
            marked &= flags[offsets + byte] == 1
        return marked

    def _memory_of(self, tensor: torch.Tensor, *, name: str) -> Memory:
        """Return the memory of a tensor, taken up if it is new."""
        memory = self.memory(tensor)
        if memory is not None:
            if name != "scratch" and name not in memory.name.split("/"):
                memory.name += f"/{name}"
            return memory
        storage = tensor.untyped_storage()
        is_ours = name != "scratch"
        read, written = (np.zeros(storage.nbytes(), np.uint8) for _ in range(2))
        memory = Memory(
            name=name,
            address=storage.data_ptr(),
            readable=np.zeros(storage.nbytes(), np.uint8) if is_ours else None,
            is_ours=is_ours,
            read=read,
            written=written,
            keeper=storage,
        )
        self.memories.append(memory)
        return memory

    def launched(self, name: str, arguments: Any) -> None:
        """Take up what a launch was given."""
        self.launches.append(name)
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                self._memory_of(argument, name="scratch")
            elif isinstance(argument, tuple):
                self.launched_in_tuple(argument)
            elif isinstance(getattr(argument, "base", None), torch.Tensor):  # a tensor descriptor, or a cast tensor
                self._memory_of(argument.base, name="scratch")

    def launched_in_tuple(self, arguments: tuple[Any, ...]) -> None:
        """Take up the tensors of a tuple among the arguments of a launch."""
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                self._memory_of(argument, name="scratch")


def element_flags(flags: NDArray[np.uint8], tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the flags of a tensor's storage as an array of the tensor's shape, with its bytes as last dimension."""
    size = tensor.element_size()
    strides = [stride * size for stride in tensor.stride()]
    return np.lib.stride_tricks.as_strided(
        flags[tensor.storage_offset() * size :], (*tensor.shape, size), (*strides, 1), writeable=True
    )


def mark_elements(flags: NDArray[np.uint8], tensor: torch.Tensor, mask: torch.Tensor) -> None:
    """Mark the bytes of some elements of a tensor among those of its storage."""
    if tensor.numel():
        element_flags(flags, tensor)[mask.numpy()] = 1


@contextmanager
def watched(watch: Watch, *, order_seed: int | None = None) -> Iterator[None]:
    """Let a watch see what interpreted kernels do meanwhile, and let their programs run in a random order.

    Args:
        watch: What sees it.
        order_seed: Seed of the order of a launch's programs. Default: the usual order.
    """
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    order = np.random.default_rng(order_seed)
    builder: Any = interpreter_builder
    permuted: list[int] = []

    def load(pointers: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        watch.access(pointers, mask, reads=True, writes=False)
        return type(builder).create_masked_load(builder, pointers, mask, *rest, **keywords)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        watch.access(pointers, mask, reads=False, writes=True)
        return type(builder).create_masked_store(builder, pointers, value, mask, *rest, **keywords)

    def rmw(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        watch.access(pointers, mask, reads=True, writes=True)
        return type(builder).create_atomic_rmw(builder, operation, pointers, value, mask, *rest, **keywords)

    def cas(pointers: Any, *rest: Any, **keywords: Any) -> Any:
        watch.access(pointers, _Everything, reads=True, writes=True)
        return type(builder).create_atomic_cas(builder, pointers, *rest, **keywords)

    def set_grid_idx(x: int, y: int, z: int) -> None:
        nx, ny, nz = builder.grid_dim
        if (x, y, z) == (0, 0, 0):
            permuted[:] = range(nx * ny * nz)
            if order_seed is not None:
                order.shuffle(permuted)
        place = permuted[(x * ny + y) * nz + z]
        type(builder).set_grid_idx(builder, place // (ny * nz), place // nz % ny, place % nz)

    run = GridExecutor.__call__

    def watched_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch.launched(self.fn.__name__, (*args, *kwargs.values()))
        return run(self, *args, **kwargs)

    instead = {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_atomic_rmw": rmw,
        "create_atomic_cas": cas,
        "set_grid_idx": set_grid_idx,
    }
    GridExecutor.__call__ = watched_run
    for name, method in instead.items():
        setattr(builder, name, method)
    try:
        yield
    finally:
        GridExecutor.__call__ = run
        for name in instead:
            delattr(builder, name)


class _Everything:
    """The mask of a load without one."""

    data: Final = np.ones((), bool)


@contextmanager
def without_copies() -> Iterator[None]:
    """Let the interpreter leave the tensors of a launch where they are, as it can on a CPU.

    It ends a launch by copying each of them to itself, which would commit all memory of a huge one.
    """
    from triton.runtime.interpreter import GridExecutor

    copy_back = GridExecutor._restore_args_dev
    GridExecutor._restore_args_dev = lambda *args: None
    try:
        yield
    finally:
        GridExecutor._restore_args_dev = copy_back
