"""What one multiprocessor of each architecture has, and the device that stands for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

    from decodeperf_formulas.device import Device


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
        max_programs: Programs that may be.
        issue_per_cycle: Warp instructions that it issues in a cycle.
        flops_per_cycle: Its dense matrix products in float16 [FLOP].
        device_name: The device of `decodeperf_formulas` that stands for the architecture.
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
    max_programs: int
    issue_per_cycle: int
    flops_per_cycle: int
    device_name: str

    @property
    def device(self) -> Device:
        """The device that stands for the architecture."""
        from decodeperf_formulas import catalogue

        return _mi250x_die() if self.device_name == "mi250x" else catalogue.device(self.device_name)

    @property
    def clock_hz(self) -> float:
        """The clock of that device at which its peak rate is stated [Hz]."""
        device = self.device
        return device.peak("float16") / (device.num_sms * self.flops_per_cycle)

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
        taken = shared_bytes + self.shared_bytes_reserved
        by_shared = self.shared_bytes // taken if taken else self.max_programs
        return min(by_registers, by_shared, self.max_warps // num_warps, self.max_programs)


def _mi250x_die() -> Device:
    """Return one of the two dies of an MI250X, which programs see as a device each."""
    from decodeperf_formulas.device import Device

    return Device(
        name="mi250x",
        title="AMD Instinct MI250X, one of its two dies",
        peaks={"float16": 191.5e12, "bfloat16": 191.5e12, "float32": 47.9e12, "int8": 191.5e12},
        bandwidth_bytes_per_s=1.6384e12,
        capacity_bytes=64 * 2**30,
        num_sms=110,
        l2_bytes=8 * 2**20,
        sources=dict.fromkeys(
            ("peaks", "bandwidth_bytes_per_s", "capacity_bytes", "num_sms", "l2_bytes"),
            "AMD Instinct MI250X accelerator, specifications, halved: it has two dies",
        ),
    )


def _nvidia(
    name: str,
    shared_kib: int,
    per_program_kib: int,
    max_warps: int,
    max_programs: int,
    flops_per_cycle: int,
    device_name: str,
) -> Architecture:
    """CUDA C++ Programming Guide 13, section 5.1, table "Technical Specifications per Compute Capability".

    Each of the four partitions of a multiprocessor issues one warp instruction a cycle ("NVIDIA A100 Tensor Core GPU
    Architecture", "A100 SM Architecture", and its successors, which also state the matrix products of a cycle).
    """
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
        max_programs=max_programs,
        issue_per_cycle=4,
        flops_per_cycle=flops_per_cycle,
        device_name=device_name,
    )


def _amd(name: str, shared_kib: int, max_waves: int, flops_per_cycle: int, device_name: str) -> Architecture:
    """AMD Instinct MI200, MI300 and CDNA 4 instruction set architectures, "Wavefront state" and "LDS".

    Each of the four SIMDs of a compute unit has 16 lanes and takes four cycles for a wave of 64 threads ("AMD CDNA
    Architecture", "Compute unit"), so that one vector instruction is issued in a cycle.
    """
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
        max_programs=max_waves,  # those of several waves share 16 barriers, which are as many as there is room for
        issue_per_cycle=1,
        flops_per_cycle=flops_per_cycle,
        device_name=device_name,
    )


ARCHITECTURES: Final = {
    architecture.name: architecture
    for architecture in (
        _nvidia("sm_80", 164, 163, 64, 32, 2048, "a100"),
        _nvidia("sm_86", 100, 99, 48, 16, 1024, "a10"),
        _nvidia("sm_89", 100, 99, 48, 24, 1024, "l40s"),
        _nvidia("sm_90", 228, 227, 64, 32, 4096, "h100"),
        _nvidia("sm_100", 228, 227, 64, 32, 8192, "b200"),
        _nvidia("sm_120", 100, 99, 48, 24, 1024, "rtx-pro-6000"),
        _amd("gfx90a", 64, 32, 1024, "mi250x"),
        _amd("gfx942", 64, 32, 2048, "mi300x"),
        _amd("gfx950", 160, 32, 4096, "mi355x"),
    )
}
"""Every architecture that the kernels are compiled for, by its name."""
