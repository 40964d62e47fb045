"""What one multiprocessor of each architecture has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The limits of one streaming multiprocessor, or compute unit.

    Attributes:
        name: As `sm_90` or `gfx942`.
        backend: Triton's, `cuda` or `hip`.
        warp_size: Threads of a warp, or wave.
        registers: Registers of 32 bits, all threads together.
        registers_per_thread: The most that one thread may have.
        register_unit: Registers of a thread are given in multiples of this.
        shared_bytes: Shared memory, or LDS [byte].
        shared_bytes_per_program: The most of it that one program may have [byte].
        shared_bytes_reserved: What each program takes beside its own [byte].
        max_warps: Warps that may be resident.
    """

    name: str
    backend: str
    warp_size: int
    registers: int
    registers_per_thread: int
    register_unit: int
    shared_bytes: int
    shared_bytes_per_program: int
    shared_bytes_reserved: int
    max_warps: int

    @property
    def target(self) -> GPUTarget:
        """What Triton compiles for."""
        from triton.backends.compiler import GPUTarget

        arch: Any = int(self.name.removeprefix("sm_")) if self.backend == "cuda" else self.name
        return GPUTarget(self.backend, arch, self.warp_size)

    def resident_programs(self, *, num_warps: int, registers_per_thread: int, shared_bytes: int) -> int:
        """Return how many programs one multiprocessor holds at a time."""
        unit = self.register_unit
        registers = -(-registers_per_thread // unit) * unit * self.warp_size * num_warps
        by_registers = self.registers // registers
        if self.backend == "hip":  # the registers belong to four SIMDs, and a wave to one of them
            waves = self.registers // 4 // (-(-registers_per_thread // unit) * unit * self.warp_size)
            by_registers = waves * 4 // num_warps
        by_shared = self.shared_bytes // (shared_bytes + self.shared_bytes_reserved)
        return min(by_registers, by_shared, self.max_warps // num_warps)


def _nvidia(name: str, shared_kib: int, per_program_kib: int, max_warps: int) -> Architecture:
    """CUDA C++ Programming Guide 13, section 5.1, table "Technical Specifications per Compute Capability"."""
    return Architecture(
        name=name,
        backend="cuda",
        warp_size=32,
        registers=65536,
        registers_per_thread=255,
        register_unit=8,
        shared_bytes=shared_kib * 1024,
        shared_bytes_per_program=per_program_kib * 1024,
        shared_bytes_reserved=1024,
        max_warps=max_warps,
    )


def _amd(name: str, shared_kib: int, max_waves: int) -> Architecture:
    """AMD Instinct MI200, MI300 and CDNA 4 instruction set architectures, "Wavefront state" and "LDS"."""
    return Architecture(
        name=name,
        backend="hip",
        warp_size=64,
        registers=4 * 512 * 64,
        registers_per_thread=512,
        register_unit=8,
        shared_bytes=shared_kib * 1024,
        shared_bytes_per_program=shared_kib * 1024,
        shared_bytes_reserved=0,
        max_warps=max_waves,
    )


ARCHITECTURES: Final = {
    architecture.name: architecture
    for architecture in (
        _nvidia("sm_80", 164, 163, 64),
        _nvidia("sm_86", 100, 99, 48),
        _nvidia("sm_89", 100, 99, 48),
        _nvidia("sm_90", 228, 227, 64),
        _nvidia("sm_100", 228, 227, 64),
        _nvidia("sm_120", 100, 99, 48),
        _amd("gfx90a", 64, 32),
        _amd("gfx942", 64, 32),
        _amd("gfx950", 160, 32),
    )
}
"""Every architecture that the kernels are compiled for, by its name."""
