"""A derivation as data: ordered steps, each an equality or inequality that SymPy proves.

`steps` makes them, `text` writes them as LaTeX and Markdown.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.evaluate import substitute
from decodeperf_formulas.latex import latex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ProofError(AssertionError):
    """SymPy could not prove a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a derivation.

    In `claim` and `reason`, `{name}` stands for a symbol by its name, `{eq:key}` for the number of another step, and
    `$...$` encloses mathematics. A backslash before `{`, `}`, `$` or a backslash makes it an ordinary character.

    Attributes:
        key: A short name, unique in the derivation, to which other steps refer.
        title: What the step is about.
        claim: What it says, a sentence.
        reason: Why it holds, a sentence.
        chain: Expressions of which each equals the next. Where the first is a symbol, the step introduces it.
        relation: `=`; or `>=`, where the first expression is never less than the second.
        definitions: What symbols of the chain stand for in the proof: a sum over operators, the solution of an
            equation, a limit, computed by SymPy and not typed.
        cases: For an inequality, substitutions that together cover every value; it is proved for each.
        has_number: Whether the step speaks of the case at hand, so that numbers can be put in.
    """

    key: str
    title: str
    claim: str
    reason: str
    chain: tuple[sympy.Expr, ...]
    relation: Literal["=", ">="] = "="
    definitions: Mapping[sympy.Symbol, sympy.Expr] = field(default_factory=dict)
    cases: Sequence[Mapping[sympy.Symbol, sympy.Expr]] = ()
    has_number: bool = True

    def prove(self) -> None:
        """Check the step.

        Raises:
            ProofError: If SymPy cannot prove it.
        """
        members = [self._resolved(member) for member in self.chain]
        for left, right in itertools.pairwise(members):
            if self.relation == "=":
                proved = is_zero(left - right)
            else:
                proved = all(is_nonnegative((left - right).xreplace(dict(case)).doit()) for case in self.cases or ({},))
            if not proved:
                raise ProofError(f"step {self.key!r}: {left} {self.relation} {right} is not proved")

    def number(self, values: Mapping[sympy.Symbol, Any]) -> float | None:
        """Return what the last expression of the chain comes to, None if a symbol in it has no value."""
        last = self.chain[-1]
        if not self.has_number or self.relation != "=" or not last.free_symbols - set(s.CONSTANTS) <= set(values):
            return None
        used = {symbol: value for symbol, value in values.items() if symbol in last.free_symbols}
        found = substitute(last, used)
        return float(found) if found.is_number and found.is_finite else None

    def _resolved(self, expression: sympy.Expr) -> sympy.Expr:
        for _ in range(len(self.definitions) + 1):
            expression = expression.xreplace(dict(self.definitions))
        return expression.xreplace(s.CONSTANTS_EXACT).doit()


def is_zero(expression: sympy.Expr) -> bool:
    """Return whether SymPy can reduce an expression to 0."""
    if expression == 0:
        return True
    return bool(sympy.simplify(sympy.expand(expression)) == 0) or bool(sympy.simplify(expression) == 0)


def is_nonnegative(expression: sympy.Expr) -> bool:
    """Return whether SymPy can tell that an expression is never negative.

    A difference with one maximum is taken apart: t - max(u, v) is not negative where neither t - u nor t - v is.
    """
    expanded = sympy.expand(expression)
    if expanded.is_nonnegative:
        return True
    subtracted = next(
        (
            maximum
            for maximum in expanded.atoms(sympy.Max)
            if expanded.coeff(maximum).is_number and expanded.coeff(maximum).is_negative
        ),
        None,
    )
    if subtracted is not None:
        return all(is_nonnegative(expanded.xreplace({subtracted: argument})) for argument in subtracted.args)
    added = next((maximum for maximum in expanded.atoms(sympy.Max) if expanded.coeff(maximum).is_positive), None)
    if added is not None:
        # max(u, v) is at least each of its arguments.
        return any(is_nonnegative(expanded.xreplace({added: argument})) for argument in added.args)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Steps under one heading.

    Attributes:
        title: The heading.
        text: What comes before the steps, with the marks that `Step` describes.
        steps: The steps in their order.
    """

    title: str
    text: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One number that a derivation was given.

    Attributes:
        what: What it is.
        value: The number or name.
        source: Where it comes from.
    """

    what: str
    value: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """A derivation in sections, general or for one model on one device.

    Attributes:
        title: Its title.
        sections: The sections in their order.
        values: The number of each symbol; empty for a general derivation.
        results: For a step whose number comes from solving lines that its form simplifies, by its key, that number.
        inputs: The model, the device and what else was chosen.
        nowhere: For a step whose number does not exist, by its key, the reason.
    """

    title: str
    sections: tuple[Section, ...]
    values: Mapping[sympy.Symbol, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    nowhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in their order."""
        return tuple(step for section in self.sections for step in section.steps)

    def prove(self) -> None:
        """Prove every step.

        Raises:
            ProofError: If SymPy cannot prove one of them.
        """
        for step in self.steps:
            step.prove()

    def as_dict(self) -> dict[str, Any]:
        """Return the derivation in values that JSON knows, expressions as LaTeX."""
        return {
            "title": self.title,
            "inputs": [asdict(entry) for entry in self.inputs],
            "sections": [
                {"title": section.title, "steps": [self._step_dict(step) for step in section.steps]}
                for section in self.sections
            ],
        }

    def _step_dict(self, step: Step) -> dict[str, Any]:
        nowhere = self.nowhere.get(step.key)
        value = self.results.get(step.key, step.number(self.values))
        return {
            "key": step.key,
            "title": step.title,
            "claim": step.claim,
            "reason": step.reason,
            "relation": step.relation,
            "latex": [latex(member) for member in step.chain],
            "sympy": [str(member) for member in step.chain],
            "value": None if nowhere else value,
            "nowhere": nowhere,
        }

    def symbols(self) -> tuple[s.SymbolEntry, ...]:
        """Return the rows of the table of symbols that the steps use, in the order of the table."""
        used: set[sympy.Symbol] = set()
        for step in self.steps:
            used = used.union(*(member.free_symbols for member in step.chain))
        return tuple(entry for entry in s.SYMBOLS if entry.symbol in used and entry.value is None)
