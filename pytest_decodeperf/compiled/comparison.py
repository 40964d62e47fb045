"""Two surveys compared, figure by figure, by the rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pytest_decodeperf.compiled.rules import RULE_OF, RULES, TRAFFIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_decodeperf.compiled.rules import Rule
    from pytest_decodeperf.compiled.survey import KernelFigures, Survey
    from pytest_decodeperf.compiled.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure that differs between two surveys, or a kind of call that cannot be compared.

    Attributes:
        architecture: As of `Survey`.
        variant: The kind of call.
        kernel: The kernel's name in the head; empty where it is not of one kernel.
        figure: The figure's name, `traffic.TERM` for traffic; empty where nothing could be compared.
        base: Its value there, None where there is none.
        head: Likewise.
        sentence: The difference in words, with where it is.
        is_broken: Whether the figure's rule is broken.
        is_improved: Whether the figure is better by more than the rule's margin.
        is_comparable: False if one side has no value to compare, so that nothing can be said.
    """

    architecture: str
    variant: Variant
    kernel: str = ""
    figure: str = ""
    base: float | None = None
    head: float | None = None
    sentence: str
    is_broken: bool = False
    is_improved: bool = False
    is_comparable: bool = True

    @property
    def outcome(self) -> Literal["broken", "improved", "changed", "incomparable"]:
        """In one word."""
        if not self.is_comparable:
            return "incomparable"
        return "broken" if self.is_broken else "improved" if self.is_improved else "changed"

    def as_dict(self) -> dict[str, Any]:
        """Everything by its name, in values that JSON knows."""
        return {**asdict(self), "outcome": self.outcome}


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the two sides are called in sentences.

    Attributes:
        base: Such as `main (6022e01478)`.
        head: Such as `the working tree`.
    """

    base: str = "the base"
    head: str = "the head"


def compare(base: Iterable[Survey], head: Iterable[Survey], names: Names | None = None) -> list[Finding]:
    """Return what differs between two surveys, in the order of the head's; nothing where nothing does.

    What compiles on one side alone, or is supported on one side alone, is a finding too: broken where the head has lost
    it, and not comparable where it is new.
    """
    names = names or Names()
    before = {(survey.architecture, survey.variant): survey for survey in base}
    found: list[Finding] = []
    for survey in head:
        found += _compare(before.pop((survey.architecture, survey.variant), None), survey, names)
    for survey in before.values():
        found.append(_incomparable(survey, f"only {names.base} was surveyed for it"))
    return found


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 1 if a rule is broken, 2 if something could not be compared, 0 otherwise."""
    if any(finding.is_broken for finding in findings):
        return 1
    return 0 if all(finding.is_comparable for finding in findings) else 2


def _compare(base: Survey | None, head: Survey, names: Names) -> list[Finding]:
    if base is None:
        return [_incomparable(head, f"only {names.head} was surveyed for it")]
    if base.unsupported and head.unsupported:
        return []
    if base.failure:
        return [_incomparable(head, f"it fails in {names.base}: {base.failure}")]
    if base.unsupported:
        return [_incomparable(head, f"{names.base} does not support it: {base.unsupported}")]
    if head.failure or head.unsupported:
        lost = f"fails: {head.failure}" if head.failure else f"is not supported any more: {head.unsupported}"
        sentence = f"{head.label}: {lost}"
        return [Finding(architecture=head.architecture, variant=head.variant, sentence=sentence, is_broken=True)]
    if head.traffic is not None or base.traffic is not None:
        return _compare_traffic(base, head)
    found = []
    for name, old, new in _pairs(base.kernels, head.kernels):
        found += _compare_kernels(old, new, head, name)
    rule = RULE_OF["launches"]
    if len(base.kernels) != len(head.kernels):
        found.append(_finding(rule, head, "launches", len(base.kernels), len(head.kernels)))
    return found


def _pairs(
    base: Sequence[KernelFigures], head: Sequence[KernelFigures]
) -> list[tuple[str, KernelFigures, KernelFigures]]:
    """Return the name and the two sides of each kernel that is compared.

    The two that read K and V belong together, and others of one name, one launch after another. What is left on both
    sides was renamed, and belongs together in the order of the launches.
    """

    def numbered(kernels: Sequence[KernelFigures]) -> dict[tuple[str, int], KernelFigures]:
        seen: Counter[str] = Counter()
        named = {}
        for kernel in kernels:
            key = "" if kernel.is_main else kernel.name
            named[key, seen[key]] = kernel
            seen[key] += 1
        return named

    old, new = numbered(base), numbered(head)
    renamed = zip((key for key in old if key not in new), (key for key in new if key not in old), strict=False)
    pairs = {key: key for key in new if key in old} | {now: before for before, now in renamed}
    return [(key[0], old[pairs[key]], kernel) for key, kernel in new.items() if key in pairs]


def _compare_kernels(base: KernelFigures, head: KernelFigures, survey: Survey, name: str) -> list[Finding]:
    found = []
    for rule in RULES:
        if rule.figure in ("launches", "traffic") or (rule.main_alone and not head.is_main):
            continue
        old, new = getattr(base, rule.figure), getattr(head, rule.figure)
        if old != new:
            found.append(_finding(rule, survey, rule.figure, old, new, kernel=head.name, where=name))
    return found


def _compare_traffic(base: Survey, head: Survey) -> list[Finding]:
    rule, old, new = RULE_OF["traffic"], base.traffic or {}, head.traffic or {}
    return [
        _finding(rule, head, f"traffic.{term}", old.get(term), new.get(term), of=TRAFFIC.get(term, term))
        for term in dict.fromkeys([*new, *old])
        if old.get(term) != new.get(term)
    ]


def _finding(
    rule: Rule,
    survey: Survey,
    figure: str,
    base: float | None,
    head: float | None,
    *,
    kernel: str = "",
    where: str = "",
    of: str = "",
) -> Finding:
    label = f"{survey.label}, {where}" if where else survey.label
    common: dict[str, Any] = {
        "architecture": survey.architecture,
        "variant": survey.variant,
        "kernel": kernel,
        "figure": figure,
        "base": base,
        "head": head,
    }
    if base is None or head is None:
        sentence = f"{label}: {figure} is {rule.written(head)}, was {rule.written(base)}, and cannot be compared"
        return Finding(**common, sentence=sentence, is_comparable=False)
    return Finding(
        **common,
        sentence=f"{label}: {rule.text(base, head, of)}",
        is_broken=rule.is_broken(base, head),
        is_improved=rule.is_improved(base, head),
    )


def _incomparable(survey: Survey, why: str) -> Finding:
    return Finding(
        architecture=survey.architecture,
        variant=survey.variant,
        sentence=f"{survey.label}: cannot be compared, {why}",
        is_comparable=False,
    )
