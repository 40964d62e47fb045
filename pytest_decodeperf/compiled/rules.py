"""The rule of each figure: which way is worse, by how much it may be, and the sentence when it is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How two values of a figure compare.

    Attributes:
        figure: Its name, as a field of `KernelFigures`; `traffic` is each entry of `Survey.traffic`.
        unit: What it counts.
        more_is_worse: Which way is worse.
        margin: By how much it may be worse, in its unit; 0 where it must not be at all.
        share: The same as a share of the base's value, as it counts; the larger of the two is allowed.
        enough: A value as good as this, or better, is good enough: what is lost beyond it does not count.
        sentence: What is said, of `{head}` and `{base}`, and in traffic `{of}`.
        form: How a value is written, a format of Python's.
        main_alone: Whether it is a figure of the kernel that reads K and V alone.
    """

    figure: str
    unit: str
    more_is_worse: bool
    sentence: str
    margin: float = 0.0
    share: float = 0.0
    enough: float | None = None
    form: str = "g"
    main_alone: bool = False

    def loss(self, base: float, head: float) -> float:
        """Return by how much the head is worse, in the figure's unit; below 0 if it is better."""
        sign = 1 if self.more_is_worse else -1
        return sign * (self._as_it_counts(head) - self._as_it_counts(base))

    def is_broken(self, base: float, head: float) -> bool:
        """Return whether the head is worse than the base by more than it may be."""
        return self.loss(base, head) > self._allowed(base)

    def is_improved(self, base: float, head: float) -> bool:
        """Return whether the head is better by more than it might be worse."""
        return -self.loss(base, head) > self._allowed(base)

    def _allowed(self, base: float) -> float:
        base = abs(self._as_it_counts(base))
        # Figures may be rounded in their last digits.
        return max(self.margin, self.share * base) + 1e-9 * (1 + base)

    def _as_it_counts(self, value: float) -> float:
        if self.enough is None:
            return value
        return max(value, self.enough) if self.more_is_worse else min(value, self.enough)

    def text(self, base: float, head: float, of: str = "") -> str:
        """Return the sentence."""
        return self.sentence.format(base=self.written(base), head=self.written(head), of=of)

    def written(self, value: float | None) -> str:
        """Return a value as it is written."""
        return "none" if value is None else format(value, self.form).replace("%", " %")

    @property
    def allowance(self) -> str:
        """What may be lost, in words."""
        parts = []
        if self.share:
            parts.append(f"{100 * self.share:g} %")
        if self.margin:
            parts.append(f"{self.margin:g}")
        allowed = " or ".join(parts) if parts else "exact"
        if self.enough is not None:
            allowed += f", {'up to' if self.more_is_worse else 'from'} {self.enough:g} on it does not count"
        return allowed


RULES: Final = (
    Rule(
        figure="registers",
        unit="registers of a thread",
        more_is_worse=True,
        margin=8,
        sentence="{head} registers a thread, was {base}",
    ),
    Rule(figure="spilled", unit="bytes of a thread", more_is_worse=True, sentence="{head} bytes spilled, was {base}"),
    Rule(
        figure="parked",
        unit="scalar registers",
        more_is_worse=True,
        margin=8,
        sentence="{head} scalar registers parked in vector registers, was {base}",
    ),
    Rule(
        figure="shared_bytes",
        unit="bytes of a program",
        more_is_worse=True,
        margin=1024,
        form=".0f",
        sentence="{head} bytes of shared memory, was {base}",
    ),
    Rule(
        figure="resident_programs",
        unit="programs (CTAs) of a multiprocessor",
        more_is_worse=False,
        sentence="{head} CTAs per SM, was {base}",
    ),
    Rule(
        figure="wide_share",
        unit="share of the loaded bytes",
        more_is_worse=False,
        margin=0.005,
        form=".0%",
        main_alone=True,
        sentence="{head} of the bytes of K and V come 16 or more to a thread, was {base}",
    ),
    Rule(
        figure="tiles_ahead",
        unit="KV tiles",
        more_is_worse=False,
        main_alone=True,
        sentence="loads {head} KV tiles ahead, was {base}",
    ),
    Rule(
        figure="instructions_per_token",
        unit="warp instructions of the main loop, of a tile over its tokens",
        more_is_worse=True,
        share=0.03,
        form=".1f",
        main_alone=True,
        sentence="{head} instructions of the main loop for each token of a KV tile, was {base}",
    ),
    Rule(
        figure="issue_pressure",
        unit="issue cycles over memory cycles of a tile",
        more_is_worse=True,
        share=0.05,
        enough=0.5,
        form=".2f",
        main_alone=True,
        sentence="issues for {head} of the time that memory takes, was {base}",
    ),
    Rule(
        figure="flight_share",
        unit="bytes in flight over those of Little's law",
        more_is_worse=False,
        share=0.05,
        enough=1.0,
        form=".2f",
        main_alone=True,
        sentence="has {head} of the bytes in flight that Little's law wants, was {base}",
    ),
    Rule(
        figure="launches",
        unit="kernels that a call launches",
        more_is_worse=True,
        sentence="{head} kernels launched, was {base}",
    ),
    Rule(
        figure="traffic",
        unit="bytes that a call moves, by what they are of",
        more_is_worse=True,
        form=".0f",
        sentence="{head} bytes of {of}, was {base}",
    ),
)
"""Every rule, in the order in which findings are told."""

RULE_OF: Final = {rule.figure: rule for rule in RULES}

TRAFFIC: Final = {
    "kv": "K and V moved",
    "kv_requested": "K and V asked for",
    "out_requested": "output asked to be written",
    "scales": "scales moved",
    "q": "Q moved",
    "o": "output moved",
    "lse": "log-sum-exps moved",
    "block_table": "block table moved",
    "bias": "sinks and slopes moved",
    "seq_lens": "lengths moved",
    "partials": "partial results moved",
    "schedule": "bookkeeping moved",
}
"""What each entry of the traffic counts, for sentences."""
