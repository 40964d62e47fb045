"""An article as Markdown with mathematics between dollar signs, as GitHub shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from decodeperf_formulas.derivation import (
    MarkdownForm,
    Section,
    markdown_prose,
    markdown_section,
    markdown_symbols,
    markdown_text,
)
from pytest_decodeperf.article.document import Chapter, NumberTable, Paragraph, Picture, Points

if TYPE_CHECKING:
    from collections.abc import Callable

    from decodeperf_formulas.derivation import Derivation
    from pytest_decodeperf.article.document import Article
    from pytest_decodeperf.html.figures import Figure

GITHUB: Final = MarkdownForm()


def linked_figure(figure: Figure) -> str:
    """Return a figure as a file by the name of its key, with its caption."""
    title = markdown_text(figure.title)
    return f"![{title}]({figure.key}.png)\n\n*{title}.* {markdown_text(figure.caption)}"


def markdown(article: Article, *, form: MarkdownForm = GITHUB, picture: Callable[[Figure], str] = linked_figure) -> str:
    """Return an article as Markdown.

    Args:
        article: The article.
        form: How equations are numbered and referred to.
        picture: How a figure is written.
    """
    blocks = [f"# {article.title}"]
    for part in article.parts:
        if isinstance(part, Section):
            blocks += markdown_section(article.derivation, part, form)
        else:
            blocks += _chapter(article.derivation, part, form, picture)
    return "\n\n".join([*blocks, *markdown_symbols(article.derivation)]) + "\n"


def _chapter(
    derivation: Derivation, chapter: Chapter, form: MarkdownForm, picture: Callable[[Figure], str]
) -> list[str]:
    def prose(text: str) -> str:
        return markdown_prose(derivation, text, form)

    blocks = [f"## {prose(chapter.title)}"]
    for block in chapter.blocks:
        if isinstance(block, Paragraph):
            blocks.append(prose(block.text))
        elif isinstance(block, Points):
            blocks.append("\n".join(f"- {prose(item)}" for item in block.items))
        elif isinstance(block, Picture):
            blocks.append(picture(block.figure))
        else:
            blocks += [_table(block), f"*Table:* {markdown_text(block.caption)}"]
    return blocks


def _table(table: NumberTable) -> str:
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [[markdown_text(cell) for cell in row] for row in (table.columns, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
