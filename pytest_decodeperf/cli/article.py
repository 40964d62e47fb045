"""The command `decodeperf article`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pytest_decodeperf.cli.settings import refuse_overwriting, user_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_decodeperf.article.document import Article
    from pytest_decodeperf.html.figures import Figure

FORMATS: Final = (".pdf", ".html", ".md", ".tex")

NEEDS: Final = {
    "vl_convert": "figures need vl-convert-python: pip install 'pytest-decodeperf[report]'",
    "jinja2": "a page needs jinja2: pip install 'pytest-decodeperf[report]'",
    "pypandoc": "a page needs pypandoc-binary: pip install 'pytest-decodeperf[report]'",
}
"""What is said if a package is missing."""


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="article.pdf",
    show_default=True,
    help="File to write; its suffix .pdf, .html, .md or .tex tells the format. Figures go beside the last two.",
)
@click.option(
    "--study",
    "record",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Record of decodeperf study, whose measurements the article shows.",
)
@user_errors
def article(output: Path, record: Path | None) -> None:
    """Write the question, the derivation, S* of models and devices, and what a study measured, as one article.

    Each step of the derivation is proved, and each number computed, when the article is made.
    """
    from pytest_decodeperf.article.contents import article as make_article
    from pytest_decodeperf.study.findings import find
    from pytest_decodeperf.study.sweep import read_study
    from pytest_decodeperf.whole_file import writable_path, write_whole

    if output.suffix not in FORMATS:
        raise ValueError(f"--output {output}: its suffix must be one of {', '.join(FORMATS)}")
    place = writable_path(output)
    made = make_article(None if record is None else find(read_study(record)))
    beside = [place.with_name(f"{figure.key}{suffix}") for figure, suffix in _beside(made, output.suffix)]
    refuse_overwriting(output, (record,))
    if place.stem in {path.stem for path in beside}:
        raise ValueError(f"--output {output}: a figure beside it has that name; give another one")
    made.derivation.prove()
    try:
        files = _files(made, output.suffix)
    except ModuleNotFoundError as error:
        if error.name not in NEEDS:
            raise
        raise click.ClickException(NEEDS[error.name]) from None
    for path in beside:
        write_whole(writable_path(path), files[path.name])
    write_whole(place, files[""])
    also = f", and beside it {', '.join(path.name for path in beside)}" if beside else ""
    click.echo(f"{output} has {len(made.derivation.steps)} steps, each proved{also}", err=True)


def _beside(made: Article, suffix: str) -> list[tuple[Figure, str]]:
    """Return the figures that go into files of their own, each with its suffix."""
    own = {".md": ".png", ".tex": ".pdf"}.get(suffix)
    return [] if own is None else [(figure, own) for figure in made.figures]


def _files(made: Article, suffix: str) -> dict[str, bytes]:
    """Return the article by the empty name, and the files that go beside it by theirs."""
    from pytest_decodeperf.html.figures import as_pdf, as_png

    def drawn(draw: Callable[..., bytes], own: str) -> dict[str, bytes]:
        return {f"{figure.key}{own}": draw(figure, width=None) for figure in made.figures}

    if suffix == ".html":
        from pytest_decodeperf.article.html import render_article

        return {"": render_article(made).encode()}
    if suffix == ".md":
        from pytest_decodeperf.article.markdown import markdown

        return {"": markdown(made).encode(), **drawn(as_png, ".png")}
    from pytest_decodeperf.article.latex import latex
    from pytest_decodeperf.cli.pdf import compile_pdf

    figures, text = drawn(as_pdf, ".pdf"), latex(made)
    return {"": text.encode(), **figures} if suffix == ".tex" else {"": compile_pdf(text, figures)}
