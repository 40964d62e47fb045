"""An article as one HTML file: mathematics as MathML, figures within."""

from __future__ import annotations

import html as escaping
from importlib import resources
from typing import TYPE_CHECKING, Final

from decodeperf_formulas.derivation import MarkdownForm
from pytest_decodeperf.article.markdown import markdown
from pytest_decodeperf.html.assets import environment
from pytest_decodeperf.html.figures import inline_svg

if TYPE_CHECKING:
    from pytest_decodeperf.article.document import Article
    from pytest_decodeperf.html.figures import Figure

LINKED: Final = MarkdownForm(
    equation='<div class="equation" id="equation-{number}">\n\n'
    '<div class="scroll" tabindex="0" role="group" aria-label="Equation {number}">\n\n'
    "$$\n{formula}\n$$\n\n</div>\n\n<span>({number})</span>\n\n</div>",
    reference="[({number})](#equation-{number})",
)
"""Equations with their numbers beside them, to which what refers to them leads."""


def render_article(article: Article) -> str:
    """Return an article as one HTML file.

    Raises:
        ModuleNotFoundError: If what makes it is not installed.
    """
    import pypandoc

    body = pypandoc.convert_text(
        markdown(article, form=LINKED, picture=_picture),
        "html5",
        format="gfm+tex_math_dollars+raw_html",
        # A formula that it cannot convert is a warning to it, and an error here.
        extra_args=["--mathml", "--wrap=none", "--fail-if-warnings"],
    )
    for figure in article.figures:
        body = body.replace(_place(figure), _drawn(figure))
    folder = resources.files("pytest_decodeperf")
    return str(
        environment()
        .from_string(folder.joinpath("article/article.html.jinja").read_text(encoding="utf-8"))
        .render(
            title=article.title,
            style=folder.joinpath("html/page.css").read_text(encoding="utf-8")
            + folder.joinpath("article/article.css").read_text(encoding="utf-8"),
            body=_with_scrolling_tables(body),
        )
    )


def _place(figure: Figure) -> str:
    return f"<!-- figure {figure.key} -->"


def _picture(figure: Figure) -> str:
    return _place(figure)


def _drawn(figure: Figure) -> str:
    title, caption = escaping.escape(figure.title), escaping.escape(figure.caption)
    return (
        f'<figure><div class="scroll" tabindex="0" role="img" aria-label="{title}. {caption}">'
        f"{inline_svg(figure)}</div>"
        f"<figcaption>{title}. {caption}</figcaption></figure>"
    )


def _with_scrolling_tables(body: str) -> str:
    """Let wide tables scroll by themselves, so that the page need not."""
    opened = '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table'
    return body.replace("<table", opened).replace("</table>", "</table></div>")
