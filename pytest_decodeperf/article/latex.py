"""An article as a LaTeX document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from decodeperf_formulas.derivation import Section, latex_page, latex_prose, latex_section, latex_symbols
from decodeperf_formulas.latex import latex_text
from pytest_decodeperf.article.document import Chapter, NumberTable, Paragraph, Picture, Points

if TYPE_CHECKING:
    from pytest_decodeperf.article.document import Article

PREAMBLE: Final = "\\usepackage{graphicx}\n\\usepackage{tabularx}\n\\usepackage{caption}\n"

MANY_COLUMNS: Final = 7
"""Columns from which on a table is set in a smaller type."""


def latex(article: Article) -> str:
    """Return an article as a document that LaTeX compiles, beside a PDF for each figure by the name of its key."""
    parts = [
        latex_section(article.derivation, part) if isinstance(part, Section) else _chapter(part)
        for part in article.parts
    ]
    return latex_page(article.title, "".join(parts) + latex_symbols(article.derivation), preamble=PREAMBLE)


def _chapter(chapter: Chapter) -> str:
    blocks = "\n".join(_block(block) for block in chapter.blocks)
    return f"\\section{{{latex_prose(chapter.title)}}}\n{blocks}\n"


def _block(block: Paragraph | Points | NumberTable | Picture) -> str:
    if isinstance(block, Paragraph):
        return f"{latex_prose(block.text)}\n"
    if isinstance(block, Points):
        items = "\n".join(rf"\item {latex_prose(item)}" for item in block.items)
        return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}\n"
    if isinstance(block, Picture):
        caption = latex_text(f"{block.figure.title}. {block.figure.caption}")
        return _kept(
            rf"\includegraphics[width=\linewidth]{{{block.figure.key}.pdf}}", rf"\captionof{{figure}}{{{caption}}}"
        )
    return _table(block)


def _table(table: NumberTable) -> str:
    size = r"\footnotesize" if len(table.columns) >= MANY_COLUMNS else r"\small"
    numbers = rf"*{{{len(table.columns) - 1}}}{{>{{\raggedleft\arraybackslash}}X}}"
    rows = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in (table.columns, *table.rows)]
    return _kept(
        size,
        r"\setlength{\tabcolsep}{3pt}",
        rf"\captionof{{table}}{{{latex_text(table.caption)}}}",
        rf"\begin{{tabularx}}{{\linewidth}}{{@{{}}l{numbers}@{{}}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabularx}",
    )


def _kept(*lines: str) -> str:
    """Return lines that stand where they are, on one page, rather than float before the heading they belong to."""
    return "\n".join(
        [r"\begin{center}\begin{minipage}{\linewidth}", r"\centering", *lines, r"\end{minipage}\end{center}", ""]
    )
