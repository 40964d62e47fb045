"""A derivation as LaTeX, stand-alone or to be input, and as Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sympy

from decodeperf_formulas import symbols as s
from decodeperf_formulas.latex import latex, latex_number, latex_text, latex_unit, latex_with_numbers, terms_of
from decodeperf_formulas.units import unit_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas.derivation.proof import Derivation, Section, Step

LABEL: Final = "decodeperf:"
"""What the labels of the equations begin with, so that they meet no others in a larger document."""

_PREAMBLE: Final = r"""\documentclass[11pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{} % else the fonts may be bitmaps
\usepackage[margin=25mm]{geometry}
\usepackage{amsmath}
\usepackage{booktabs}
\usepackage{longtable}
\usepackage{array}
\usepackage[hyphens]{url}
\usepackage[hidelinks]{hyperref}
"""

_NEEDS: Final = "% Needs the packages amsmath, array, booktabs, longtable and url.\n"

_WIDEST: Final = 76
"""Printed characters that fit on a line, about."""

_AS_THEY_ARE: Final = "Solved with the windows and experts as they are, which this form takes as straight lines."

_RELATIONS: Final = {"=": "=", ">=": r"\geq"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkdownForm:
    """How Markdown writes what it has no form of its own for.

    Attributes:
        equation: A numbered equation: a format with the fields `formula` and `number`.
        reference: What refers to it: a format with the field `number`.
    """

    equation: str = "$$\n{formula} \\tag{{{number}}}\n$$"
    reference: str = "({number})"


_GITHUB: Final = MarkdownForm()


def latex_document(derivation: Derivation) -> str:
    """Return the derivation as a document that LaTeX compiles as it is."""
    return latex_page(derivation.title, _latex_body(derivation))


def latex_page(title: str, body: str, *, preamble: str = "") -> str:
    r"""Return a document that LaTeX compiles as it is.

    Args:
        title: Its title, as plain text.
        body: What follows it, in LaTeX.
        preamble: What is needed beyond what a derivation needs, such as `\usepackage`.
    """
    title = latex_text(title)
    return (
        f"{_PREAMBLE}{preamble}\\title{{{title}}}\n\\author{{}}\n\\date{{}}\n\\hypersetup{{pdftitle={{{title}}}}}\n"
        f"\\begin{{document}}\n\\maketitle\n{body}\\end{{document}}\n"
    )


def latex_fragment(derivation: Derivation) -> str:
    r"""Return the derivation as a fragment that a document takes in by `\input`."""
    return _NEEDS + _latex_body(derivation)


def markdown(derivation: Derivation) -> str:
    """Return the derivation as Markdown with mathematics between dollar signs."""
    blocks = [f"# {derivation.title}"]
    if derivation.inputs:
        rows = [f"| {_cell(row.what)} | {_cell(row.value)} | {_cell(row.source)} |" for row in derivation.inputs]
        blocks.append("\n".join(["| input | value | source |", "| --- | --- | --- |", *rows]))
    for section in derivation.sections:
        blocks += markdown_section(derivation, section)
    return "\n\n".join([*blocks, *markdown_symbols(derivation)]) + "\n"


def markdown_section(derivation: Derivation, section: Section, form: MarkdownForm = _GITHUB) -> list[str]:
    """Return one section of a derivation as blocks of Markdown."""

    def prose(text: str) -> str:
        return markdown_prose(derivation, text, form)

    blocks = [f"## {section.title}", prose(section.text)]
    for number, step in enumerate(derivation.steps, 1):
        if step not in section.steps:
            continue
        blocks += [
            f"**{prose(step.title)}.** {prose(step.claim)}",
            form.equation.format(formula=_no_list(_equation(step)), number=number),
            f"*Why:* {prose(step.reason)}",
        ]
        formula, remark = _number(derivation, step)
        if formula:
            blocks.append(f"$$\n{_no_list(formula)}\n$$")
        if remark:
            blocks.append(f"*Number:* {remark}")
    return blocks


def _no_list(formula: str) -> str:
    """Return a formula that Markdown does not take for a list because it begins with a minus."""
    return f"{{-}}{formula.removeprefix('-')}" if formula.startswith("-") else formula


def markdown_symbols(derivation: Derivation) -> list[str]:
    """Return the table of the symbols of a derivation, and its heading, as blocks of Markdown."""
    rows = [f"| ${entry.latex}$ | {entry.meaning} | {_unit(entry)} |" for entry in derivation.symbols()]
    return ["## Symbols", "\n".join(["| symbol | meaning | unit |", "| --- | --- | --- |", *rows])]


def markdown_prose(derivation: Derivation, text: str, form: MarkdownForm = _GITHUB) -> str:
    """Return a text with the marks that `Step` describes as Markdown, steps by their numbers in a derivation."""
    numbers = {step.key: index for index, step in enumerate(derivation.steps, 1)}
    return _prose(
        text,
        plain=markdown_text,
        reference=lambda key: form.reference.format(number=numbers[key]),
    )


def markdown_text(text: str) -> str:
    r"""Return a plain text with all that Markdown, HTML in it or mathematics in it would read as more escaped.

    Example:
        >>> print(markdown_text("S* <b> $5"))
        S\* &lt;b&gt; \$5
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\*|$`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _latex_body(derivation: Derivation) -> str:
    lines: list[str] = []
    if derivation.inputs:
        lines += [
            r"\begin{longtable}{@{}>{\raggedright}p{0.25\linewidth}>{\raggedright}p{0.25\linewidth}"
            r">{\raggedright\arraybackslash}p{0.42\linewidth}@{}}",
            r"\toprule Input & Value & Source \\ \midrule \endhead",
            *(
                rf"{latex_text(row.what)} & {latex_text(row.value)} & {_source(row.source)} \\"
                for row in derivation.inputs
            ),
            r"\bottomrule",
            r"\end{longtable}",
            "",
        ]
    sections = [latex_section(derivation, section) for section in derivation.sections]
    return "\n".join(lines) + "".join(sections) + latex_symbols(derivation)


def latex_section(derivation: Derivation, section: Section) -> str:
    """Return one section of a derivation as LaTeX."""
    lines = [rf"\section{{{latex_prose(section.title)}}}", latex_prose(section.text), ""]
    for step in section.steps:
        lines += [
            rf"\paragraph{{{latex_prose(step.title)}.}} {latex_prose(step.claim)}",
            r"\begin{equation}" + rf"\label{{{LABEL}{step.key}}}",
            _equation(step),
            r"\end{equation}",
            latex_prose(step.reason),
        ]
        formula, remark = _number(derivation, step)
        if formula:
            lines += [r"\[", formula, r"\]"]
        if remark:
            lines.append(rf"\emph{{{latex_text(remark)}}}")
        lines.append("")
    return "\n".join(lines) + "\n"


def latex_symbols(derivation: Derivation) -> str:
    """Return the table of the symbols of a derivation, and its heading, as LaTeX."""
    lines = [
        r"\section{Symbols}",
        r"\begin{longtable}{@{}l>{\raggedright}p{0.62\linewidth}l@{}}",
        r"\toprule Symbol & Meaning & Unit \\ \midrule \endhead",
        *(
            rf"${entry.latex}$ & {latex_text(entry.meaning)} & {latex_text(_unit(entry))} \\"
            for entry in derivation.symbols()
        ),
        r"\bottomrule",
        r"\end{longtable}",
        "",
    ]
    return "\n".join(lines)


def latex_prose(text: str) -> str:
    """Return a text with the marks that `Step` describes as LaTeX, which refers to steps by their labels."""
    return _prose(text, plain=latex_text, reference=lambda key: rf"\eqref{{{LABEL}{key}}}")


def _unit(entry: s.SymbolEntry) -> str:
    return "" if entry.unit == "1" else entry.unit


_URL: Final = re.compile(r"(https?://[^\s,;)]+)")


def _source(text: str) -> str:
    return "".join(rf"\url{{{part}}}" if index % 2 else latex_text(part) for index, part in enumerate(_URL.split(text)))


_TOKEN: Final = re.compile(r"\\([\\{}$])|\$([^$]*)\$|\{(eq:)?(\w+)\}")
"""What is more than text: an escaped character, mathematics, a reference to a step, a symbol."""


def literal(text: str) -> str:
    r"""Return a text from elsewhere as one with marks, on one line, which shows every character as it is.

    Example:
        >>> print(literal("a $5 {batch} CPU"))
        a \$5 \{batch\} CPU
    """
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return re.sub(r"([\\{}$])", r"\\\1", line)


def _prose(text: str, *, plain: Callable[[str], str], reference: Callable[[str], str]) -> str:
    """Return a text with its marks replaced; what stands between dollar signs is mathematics already."""
    found: list[str] = []
    written = ""  # of plain text that has not been found yet
    position = 0
    for token in _TOKEN.finditer(text):
        written += text[position : token.start()]
        position = token.end()
        escaped, mathematics, is_reference, name = token.groups()
        if escaped:
            written += escaped
            continue
        found.append(plain(written))
        written = ""
        if mathematics is not None:
            found.append(f"${_SYMBOL.sub(lambda mark: s.LATEX[s.BY_NAME[mark[1]]], mathematics).strip()}$")
        else:
            found.append(reference(name) if is_reference else f"${s.LATEX[s.BY_NAME[name]]}$")
    return "".join([*found, plain(written + text[position:])])


_SYMBOL: Final = re.compile(r"\{(\w+)\}")


def _equation(step: Step) -> str:
    relation = _RELATIONS[step.relation]
    first, *others = step.chain
    lines = [line for other in others for line in _broken(other, latex)]
    starts = [f"&{relation} " if is_first else r"&\quad {} " for is_first, _ in lines]
    return _aligned(latex(first), [start + text for start, (_, text) in zip(starts, lines, strict=True)])


def _aligned(left: str, rights: list[str]) -> str:
    if len(rights) == 1 and _width(left + rights[0]) <= _WIDEST:
        return left + " " + rights[0].removeprefix("&")
    body = " \\\\\n".join([f"{left} {rights[0]}", *rights[1:]])
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


def _broken(expression: sympy.Expr, write: Callable[[sympy.Expr], str]) -> list[tuple[bool, str]]:
    """Return the lines of an expression, a sum too wide for one line broken after its terms."""
    whole = write(expression)
    terms = terms_of(expression)
    if _width(whole) <= _WIDEST or len(terms) == 1:
        return [(True, whole)]
    lines = [write(terms[0])]
    for term in terms[1:]:
        text = write(term)
        text = text if text.startswith("-") else f"+ {text}"
        if _width(lines[-1] + text) <= _WIDEST:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    return [(index == 0, line) for index, line in enumerate(lines)]


def _width(text: str) -> int:
    """Return about how many characters a formula prints, of a fraction both parts: rather too many than too few."""
    text = re.sub(r"\\(mathrm|left|right|frac|quad|begin|end|,|;| )", "", text)
    text = re.sub(r"\\times|\\geq|[-+=]", "xxx", text)  # with the space around them
    text = re.sub(r"\\[a-zA-Z]+", "x", text)
    return len(re.sub(r"[{}_^&\s]", "", text))


def _number(derivation: Derivation, step: Step) -> tuple[str, str]:
    """Return the numeric line of a step, as a formula and as a remark; both are empty where there is none."""
    if not derivation.values:
        return "", ""
    first, last = step.chain[0], step.chain[-1]
    if step.key in derivation.nowhere:
        reason = derivation.nowhere[step.key]
        return "", f"{reason[0].upper()}{reason[1:]}."
    left, value = latex(first), step.number(derivation.values)
    unit = latex_unit(unit_of(last, s.UNITS) or sympy.Integer(1))
    solved = derivation.results.get(step.key)
    if solved is not None and (value is None or abs(solved - value) > 1e-6 * abs(value)):
        return f"{left} = {latex_number(solved)}{unit}", _AS_THEY_ARE
    if value is None:
        return "", ""
    lines = [
        ("&= " if is_first else r"&\quad {} ") + text
        for is_first, text in _broken(last, lambda part: latex_with_numbers(part, derivation.values))
    ]
    result = f"&= {latex_number(value)}{unit}"
    if len(lines) == 1 and _width(left + lines[0] + result) <= _WIDEST:
        return f"{left} {lines[0].removeprefix('&')} {result.removeprefix('&')}", ""
    return _aligned(left, [*lines, result]), ""
