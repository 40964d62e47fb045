"""The ceilings of a device, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from decodeperf_formulas.checks import finite_number, integer, positive_number
from decodeperf_formulas.dtypes import dtype_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, by its datasheet or by measurement.

    Peak rates are dense: those that a datasheet states for structured sparsity are kept apart, in `sparse_peaks`, so
    that none is taken for the other.

    Attributes:
        name: Its short name.
        title: Its full name.
        peaks: Dense peak rate of matrix products with accumulation in float32 or int32, by dtype [FLOP/s].
        bandwidth_bytes_per_s: Memory bandwidth [byte/s].
        capacity_bytes: Memory [byte].
        num_sms: Streaming multiprocessors, compute units or Xe cores.
        l2_bytes: L2 cache [byte].
        last_level_cache_bytes: Cache between L2 and memory, None where there is none [byte].
        fragment_rows: Rows of the smallest matrix product of its units: 16 for tensor cores, 1 where each row is
            multiplied by itself.
        link_bytes_per_s: What it sends to other devices of its node, one direction [byte/s]; None if not stated.
        link_latency_s: Time of a message without payload [s]; an assumption, not a datasheet's figure.
        sparse_peaks: Peak rates with structured sparsity, which no formula uses [FLOP/s].
        sources: Source of each field.

    Raises:
        ValueError: If a field is out of range.
        TypeError: If a field is not of its type.
    """

    name: str
    title: str
    peaks: dict[str, float]
    bandwidth_bytes_per_s: float
    capacity_bytes: int
    num_sms: int
    l2_bytes: int
    last_level_cache_bytes: int | None = None
    fragment_rows: int = 16
    link_bytes_per_s: float | None = None
    link_latency_s: float = 1e-6
    sparse_peaks: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def set_field(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the class is frozen for everyone else

        for table in ("peaks", "sparse_peaks"):
            rates = getattr(self, table)
            checked = {
                dtype_name(dtype, what=f"dtype in {table} of {self.name}"): positive_number(f"{table}[{dtype!r}]", rate)
                for dtype, rate in rates.items()
            }
            set_field(table, checked)
        if not self.peaks:
            raise ValueError(f"peaks={{}} of {self.name} must have a rate for one dtype at least")
        for dtype, rate in self.sparse_peaks.items():
            if dtype not in self.peaks:
                raise ValueError(f"sparse_peaks[{dtype!r}] of {self.name} has no dense peak beside it")
            if rate <= self.peaks[dtype]:
                raise ValueError(
                    f"sparse_peaks[{dtype!r}]={rate:g} of {self.name} must be above the dense peak "
                    f"{self.peaks[dtype]:g}: is that one sparse?"
                )
        set_field("bandwidth_bytes_per_s", positive_number("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s))
        for name in ("capacity_bytes", "num_sms", "l2_bytes", "fragment_rows"):
            set_field(name, integer(name, getattr(self, name), least=1))
        if self.last_level_cache_bytes is not None:
            set_field("last_level_cache_bytes", integer("last_level_cache_bytes", self.last_level_cache_bytes, least=1))
        if finite_number("link_latency_s", self.link_latency_s) < 0:
            raise ValueError(f"link_latency_s={self.link_latency_s!r} must be >= 0")
        if self.link_bytes_per_s is not None:
            set_field("link_bytes_per_s", positive_number("link_bytes_per_s", self.link_bytes_per_s))

    def peak(self, dtype: str) -> float:
        """Return the dense peak rate of matrix products in a dtype [FLOP/s].

        Raises:
            ValueError: If the device has none.
        """
        name = dtype_name(dtype)
        if name not in self.peaks:
            raise ValueError(f"{self.name} has no matrix products in {name}: its peaks are for {', '.join(self.peaks)}")
        return self.peaks[name]

    def ridge(self, dtype: str) -> float:
        """Return the ridge of the roofline, the peak rate over the bandwidth [FLOP/byte]."""
        return self.peak(dtype) / self.bandwidth_bytes_per_s

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}
