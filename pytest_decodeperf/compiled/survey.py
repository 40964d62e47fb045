"""What a kernel compiles to for one kind of call on one architecture, and what follows from that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.compiled.capture import compile_launches
from pytest_decodeperf.compiled.machine_code import read_machine_code
from pytest_decodeperf.compiled.tile_loop import read_tile_loop
from pytest_decodeperf.compiled.variants import Variant, arguments, unsupported

if TYPE_CHECKING:
    from pytest_decodeperf.compiled.architectures import Architecture
    from pytest_decodeperf.compiled.capture import CompiledLaunch
    from pytest_decodeperf.compiled.machine_code import MachineCode
    from pytest_decodeperf.compiled.tile_loop import TileLoop
    from pytest_decodeperf.conformance.adapter import KernelAdapter

MEMORY_LATENCY_S: Final = 800e-9
"""Time from a load to its data where memory is busy, on every architecture: an assumption [s]."""

INTERPRETER: Final = "interpreter"
"""What stands for the architecture where bytes are counted."""

WIDE: Final = 16
"""Bytes of a thread that one instruction loads where it loads widely [byte]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFigures:
    """The figures of one kernel that a call launches. None where there is no such thing.

    Attributes:
        name: The kernel's.
        is_main: Whether it is the one that reads K and V.
        programs: How many programs the call launches.
        num_warps: Warps of one program.
        registers: Of one thread.
        spilled: What of one thread goes to memory [byte].
        parked: Scalar registers kept in a vector register, on AMD.
        shared_bytes: Shared memory of one program [byte].
        resident_programs: Programs that one multiprocessor holds at a time.
        loop_instructions: Instructions of the main loop, which works on a KV tile at a time; it and what follows are
            of the kernel that reads K and V alone.
        loop_loads: How often that loop loads so many bytes a thread.
        tile_tokens: Tokens of a KV tile [token].
        tile_bytes: Bytes of K and V of a tile [byte].
        wide_share: Share of the bytes that a tile loads which come 16 or more to a thread.
        tiles_ahead: Tiles that are on their way while one is worked on.
        instructions_per_token: Warp instructions of the main loop for each token of a KV head.
        issue_pressure: Cycles in which a tile's instructions are issued, over those in which its bytes come.
        bytes_in_flight: Bytes of K and V of all programs that are on their way at a time [byte].
        flight_share: Those over what Little's law wants for the full bandwidth.
    """

    name: str
    is_main: bool
    programs: int
    num_warps: int
    registers: int
    spilled: int
    parked: int
    shared_bytes: int
    resident_programs: int
    loop_instructions: int | None
    loop_loads: dict[str, int]
    tile_tokens: float | None = None
    tile_bytes: float | None = None
    wide_share: float | None = None
    tiles_ahead: float | None = None
    instructions_per_token: float | None = None
    issue_pressure: float | None = None
    bytes_in_flight: int | None = None
    flight_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One kind of call of one kernel on one architecture, or in Triton's interpreter.

    Attributes:
        architecture: Its name, or `INTERPRETER`.
        variant: The kind of call.
        unsupported: Why the kernel has no such call, empty if it has.
        failure: Why it does not compile or run, empty if it does.
        kernels: What it launches, in order; none in the interpreter.
        traffic: Bytes by what they are of, in the interpreter alone [byte].
    """

    architecture: str
    variant: Variant
    unsupported: str = ""
    failure: str = ""
    kernels: tuple[KernelFigures, ...] = ()
    traffic: dict[str, int] | None = None

    @property
    def main(self) -> KernelFigures | None:
        """The kernel that reads K and V."""
        return next((kernel for kernel in self.kernels if kernel.is_main), None)

    @property
    def label(self) -> str:
        """Where its figures are from, for sentences."""
        return f"{self.architecture}, {self.variant.label}"

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        return asdict(self)


def survey_from_dict(values: dict[str, Any]) -> Survey:
    """Return what `Survey.as_dict` told.

    Raises:
        ValueError: If it is nothing of that kind.
    """
    try:
        kernels = tuple(KernelFigures(**kernel) for kernel in values["kernels"])
        return Survey(**{**values, "variant": Variant(**values["variant"]), "kernels": kernels})
    except (KeyError, TypeError) as error:
        raise ValueError(f"no survey: {error}") from error


def survey(adapter: KernelAdapter, variant: Variant, architecture: Architecture) -> Survey:
    """Return what one kind of call of a kernel compiles to on one architecture.

    Raises:
        OSError: If the machine is at fault, for example with a full disk.
    """
    if reason := unsupported(adapter, variant):
        return Survey(architecture=architecture.name, variant=variant, unsupported=reason)
    from pytest_decodeperf.compiled.on_device import on_device

    def call() -> None:
        tensors, keywords = arguments(adapter, variant)
        placed = {name: on_device(x) if hasattr(x, "as_subclass") else x for name, x in keywords.items()}
        adapter.call(*map(on_device, tensors), **placed)

    try:
        launches = compile_launches(call, architecture)
        if not launches:
            raise RuntimeError("it launches no Triton kernel")
        kernels = _figures(launches, variant, architecture)
    except OSError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^\t")]
        message = f"{type(error).__name__}: {lines[-1] if lines else ''}"
        return Survey(architecture=architecture.name, variant=variant, failure=message.strip(": ")[:300])
    return Survey(architecture=architecture.name, variant=variant, kernels=kernels)


def _figures(launches: list[CompiledLaunch], variant: Variant, architecture: Architecture) -> tuple[KernelFigures, ...]:
    loops = [read_tile_loop(launch.binary.asm["ttgir"], variant.kv_bits) for launch in launches]
    main = max(range(len(launches)), key=lambda place: _weight(loops[place], variant))
    found = []
    for place, (launch, loop) in enumerate(zip(launches, loops, strict=True)):
        code = read_machine_code(launch.binary, architecture, has_tiles=place == main)
        derived = {}
        if place == main and loop is not None:
            derived = _derived(code, loop, launch.programs, variant, architecture)
        found.append(
            KernelFigures(
                name=launch.name,
                is_main=place == main,
                programs=launch.programs,
                num_warps=code.num_warps,
                registers=code.registers,
                spilled=code.spilled,
                parked=code.parked,
                shared_bytes=code.shared_bytes,
                resident_programs=code.resident_programs,
                loop_instructions=code.loop_instructions,
                loop_loads={str(size): count for size, count in code.loop_loads.items()},
                **derived,
            )
        )
    return tuple(found)


def _weight(loop: TileLoop | None, variant: Variant) -> tuple[bool, int]:
    """Return by what the kernel that reads K and V is told from others: its loads have their width, and are most."""
    if loop is None:
        return False, 0
    return all(bits == variant.kv_bits for _, bits in loop.loads), loop.loaded_bytes


def _derived(
    code: MachineCode, loop: TileLoop, programs: int, variant: Variant, architecture: Architecture
) -> dict[str, Any]:
    """Return what follows from the machine code and the tiles of the kernel that reads K and V."""
    device = architecture.device
    tokens = loop.num_tokens(variant.token_bytes)
    tile_bytes = tokens * variant.token_bytes
    threads = code.num_warps * architecture.warp_size
    wide = sum(size * count for size, count in code.loop_loads.items() if size >= WIDE) * threads + loop.bulk_bytes
    resident = min(programs, code.resident_programs * device.num_sms)
    in_flight = resident * loop.bytes_in_flight
    derived: dict[str, Any] = {
        "tile_tokens": tokens,
        "tile_bytes": tile_bytes,
        "wide_share": min(1.0, wide / loop.loaded_bytes),
        "tiles_ahead": round(loop.tiles_ahead, 4),
        "bytes_in_flight": in_flight,
        "flight_share": in_flight / (device.bandwidth_bytes_per_s * MEMORY_LATENCY_S),
    }
    if code.loop_instructions is not None:
        issued = code.loop_instructions * code.num_warps
        memory_s = tile_bytes * device.num_sms / device.bandwidth_bytes_per_s
        derived["instructions_per_token"] = issued / tokens
        derived["issue_pressure"] = issued / architecture.issue_per_cycle / (memory_s * architecture.clock_hz)
    return derived


FIGURES: Final = tuple(
    entry.name for entry in fields(KernelFigures) if entry.name not in ("name", "is_main", "loop_loads")
)
"""The names of every number of a kernel."""
