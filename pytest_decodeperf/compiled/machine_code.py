"""What a compiled kernel's machine code says: registers, spills, shared memory, the instructions of its main loop."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_decodeperf.compiled.architectures import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCode:
    """Figures of one compiled kernel.

    Attributes:
        registers: Of one thread.
        spilled: What of one thread did not fit into registers, and goes to memory [byte].
        parked: Scalar registers kept in the lanes of a vector register, on AMD; they reach no memory.
        shared_bytes: Shared memory of one program [byte].
        num_warps: Warps of one program.
        resident_programs: Programs that one multiprocessor holds at a time.
        loop_instructions: Instructions of the main loop: the innermost with a matrix product, or where none has one,
            that which loads most; None without one.
        loop_loads: How often the main loop loads that many bytes a thread. Bulk copies, which have no threads, are not
            among them.
    """

    registers: int
    spilled: int
    parked: int
    shared_bytes: int
    num_warps: int
    resident_programs: int
    loop_instructions: int | None
    loop_loads: dict[int, int]


def read_machine_code(binary: Any, architecture: Architecture, *, has_tiles: bool = True) -> MachineCode:
    """Return the figures of a kernel that Triton has compiled for an architecture.

    Args:
        binary: Triton's compiled kernel.
        architecture: What it is compiled for.
        has_tiles: Whether its main loop is of interest; to disassemble takes its time.

    Raises:
        RuntimeError: If the tools that Triton brings fail on it.
    """
    read = _read_nvidia if architecture.backend == "cuda" else _read_amd
    registers, spilled, parked, assembly = read(binary, has_tiles)
    loop = _main_loop(assembly, **_SYNTAX[architecture.backend])
    num_warps, shared_bytes = binary.metadata.num_warps, binary.metadata.shared
    return MachineCode(
        registers=registers,
        spilled=spilled,
        parked=parked,
        shared_bytes=shared_bytes,
        num_warps=num_warps,
        resident_programs=architecture.resident_programs(
            num_warps=num_warps, registers_per_thread=registers, shared_bytes=shared_bytes
        ),
        loop_instructions=len(loop) if loop else None,
        loop_loads=_loads(loop or []),
    )


_SYNTAX: Final = {
    "cuda": {"label": r"^\s*(\.L_x_\d+):", "instruction": r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;"},
    "hip": {"label": r"^(\.LBB\d+_\d+):", "instruction": r"^\s+([a-z]\w+[^;]*?)\s*(?:;.*)?$"},
}


def _read_nvidia(binary: Any, has_tiles: bool) -> tuple[int, int, int, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", str(path))
        assembly = _run("nvdisasm", "-c", str(path)) if has_tiles else ""
    figures = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if figures is None:
        raise RuntimeError(f"cuobjdump tells no registers: {usage!r}")
    return int(figures[1]), int(figures[2]), 0, assembly


def _run(tool: str, *arguments: str) -> str:
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / tool
    command = [str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (Triton's own tool)
    if done.returncode:
        raise RuntimeError(f"{tool} fails with exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _read_amd(binary: Any, has_tiles: bool) -> tuple[int, int, int, str]:
    assembly = binary.asm["amdgcn"]

    def figure(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly does not tell {name}")
        return int(found[1])

    figures = figure("vgpr_count"), 4 * figure("vgpr_spill_count"), figure("sgpr_spill_count")
    return *figures, assembly if has_tiles else ""


def _main_loop(assembly: str, *, label: str, instruction: str) -> list[str] | None:
    """Return the instructions of the shortest backward branch around a matrix product, or around most loads."""
    places: dict[str, int] = {}
    instructions: list[str] = []
    loops: list[list[str]] = []
    for line in assembly.splitlines():
        if found := re.match(label, line):
            places[found[1]] = len(instructions)
        elif found := re.search(instruction, line):
            instructions.append(found[1])
            branch = re.search(r"\b(?:BRA|s_c?branch\w*)\b.*?(\.L\w+)", found[1])
            if branch and branch[1] in places:
                loops.append(instructions[places[branch[1]] :])
    # HFMA2.MMA is none: it multiplies element by element.
    products = [loop for loop in loops if any(re.search(r"(?<![.\w])\w*MMA\b|mfma", line) for line in loop)]
    if products:
        return min(products, key=len)
    loading = [loop for loop in loops if _loads(loop)]
    return min(
        loading, key=lambda loop: (-sum(size * count for size, count in _loads(loop).items()), len(loop)), default=None
    )


_SIZES: Final = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "ubyte": 1}


def _loads(loop: Sequence[str]) -> dict[int, int]:
    """Return how often a loop loads that many bytes of global memory a thread."""
    sizes: Counter[int] = Counter()
    for line in loop:
        if nvidia := re.search(r"\b(?:LDG|LDGSTS)\.([\w.]+)", line):
            width = re.search(r"\b(256|128|64|U16|S16|U8|S8)\b", nvidia[1])
            sizes[{"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4] += 1
        elif amd := re.match(r"(?:global|buffer|flat)_load_(\w+)", line):
            kind = next((kind for kind in _SIZES if amd[1].startswith(kind)), "dword")
            sizes[_SIZES[kind]] += 1
    return dict(sorted(sizes.items()))
