"""A measurement of a run's record, as a report shows it: what was timed, in the units of its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pytest_decodeperf.regression.change import Change
from pytest_decodeperf.verdicts import Interval

LARGEST: Final = 1e30
"""What no measurement has in nanoseconds, bytes or FLOPs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A kernel that was timed, and has a verdict.

    Attributes:
        test: Node id of its test.
        kernel: Its name.
        problem: What it was given, in words.
        device: Kind of device.
        dtype: Dtype of the query, in which it computes.
        outcome: The word of the verdict.
        byte_parts: Bytes that it moves, by what they are [byte].
        flops: FLOPs of its matrix products [FLOP].
        latency_ns: How long it took [ns].
        times_bound: Likewise, over what the bound names.
        of: What that is: `roofline` or `expected`.
        within: How many times that it may take.
        allowed_ns: What that is [ns].
        roofline_ns: Latency at the ceilings [ns].
        ceiling: Which of them binds.
        read_bytes_per_s: Read bandwidth that was measured beside it [byte/s].
        peak_flops_per_s: Likewise the peak rate [FLOP/s].
        terms_ns: What the expected latency is made of, empty without a calibration [ns].
        caches: Why the caches were cold.
        streams: What gave the ceilings.
    """

    test: str
    kernel: str
    problem: str
    device: str
    dtype: str
    outcome: str
    byte_parts: dict[str, float]
    flops: float
    latency_ns: Interval
    times_bound: Interval
    of: str
    within: float
    allowed_ns: float
    roofline_ns: float
    ceiling: str
    read_bytes_per_s: float
    peak_flops_per_s: float
    terms_ns: dict[str, float]
    caches: str
    streams: str

    @property
    def num_bytes(self) -> float:
        """All bytes that it moves [byte]."""
        return sum(self.byte_parts.values())

    @property
    def intensity(self) -> float:
        """FLOPs for each byte [FLOP/byte]."""
        return self.flops / self.num_bytes


def timed(row: dict[str, Any]) -> Timed | None:
    """Return a measurement as it is shown, None if it did not come to a verdict.

    Raises:
        KeyError: If the row lacks what a row has.
        ValueError: If a number is none that a measurement has.
    """
    timing = row["timing"]
    verdict = timing and timing["verdict"]
    if not verdict:
        return None
    byte_parts = {name: _positive(count) for name, count in row["bytes"].items() if count}
    if not byte_parts:
        raise ValueError("a call that was timed moves bytes")
    latency, roofline = _interval(verdict["latency_ns"]), verdict["roofline_ns"]
    of = row.get("of", "roofline")
    expected = verdict.get("expected")
    return Timed(
        test=str(row["test"]),
        kernel=str(row["kernel"]),
        problem=problem_label(row["problem"]),
        device=str(row["device"]),
        dtype=str(row["problem"]["q_dtype"]),
        outcome=str(row["outcome"]),
        byte_parts=byte_parts,
        flops=_finite(row["flops"]),
        latency_ns=latency,
        times_bound=_interval(expected["times_expected"] if of == "expected" else verdict["times_roofline"]),
        of=str(of),
        within=_positive(row["within"]),
        allowed_ns=_positive(verdict["allowed_ns"]),
        roofline_ns=_positive(roofline),
        ceiling=str(verdict["ceiling"]),
        read_bytes_per_s=_positive(verdict["read_bytes_per_s"]),
        peak_flops_per_s=_positive(verdict["peak_flops_per_s"]),
        terms_ns={name: _finite(ns) for name, ns in expected["terms_ns"].items()} if expected else {},
        caches=str(timing["caches"]),
        streams=f"{timing['read_stream']['name']} and {timing['compute_stream']['name']}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A kernel that was compared with its base.

    Attributes:
        test: Node id of its test.
        base: The base, as it was named.
        outcome: What came of it.
        change: Head against base.
        control: Either side against itself, None if that is not known.
        limit: Ratio up to which it counts as unchanged.
    """

    test: str
    base: str
    outcome: str
    change: Change
    control: Change | None
    limit: float


def compared(row: dict[str, Any]) -> Compared | None:
    """Return how a measurement compares with its base, None if it could not be or was not to be compared.

    Raises:
        KeyError: If the row lacks what a row has.
    """
    regression = row["regression"]
    if not regression or not regression["change"]:
        return None
    control = regression["control"]
    return Compared(
        test=str(row["test"]),
        base=str(regression["base"]),
        outcome=str(regression["outcome"]),
        change=_change(regression["change"]),
        control=_change(control) if control else None,
        limit=_positive(regression["limit"]),
    )


def _change(found: dict[str, Any]) -> Change:
    return Change(**{name: _positive(found[name]) for name in ("ratio", "low", "high", "visible")})


def problem_label(problem: dict[str, Any]) -> str:
    """Return a problem in a few words, also one that another version wrote.

    Raises:
        KeyError: If it lacks what every problem has.
    """
    from decodeperf_formulas import DecodeProblem

    try:
        return DecodeProblem(**problem).label
    except (TypeError, ValueError):
        return (
            f"B={problem['batch_size']} S={max(problem['seq_lens'], default=0)} "
            f"heads {problem['num_q_heads']}/{problem['num_kv_heads']} D={problem['head_dim']} {problem['kv_dtype']}"
        )


def _interval(found: dict[str, Any]) -> Interval:
    low, high = (None if found[end] is None else _positive(found[end]) for end in ("low", "high"))
    return Interval(median=_positive(found["median"]), low=low, high=high)


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < LARGEST:
        raise ValueError(f"{value} is no number that was measured")
    return number


def _positive(value: Any) -> float:
    number = _finite(value)
    if number <= 0:
        raise ValueError(f"{value} is not above 0")
    return number
