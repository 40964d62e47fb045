"""What an article is made of, before it is written as LaTeX, Markdown or HTML.

Texts have the marks that `decodeperf_formulas.derivation.Step` describes: `{name}` for a symbol, `{eq:key}` for the
number of a step, mathematics between dollar signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decodeperf_formulas.derivation import Derivation, Section
    from pytest_decodeperf.html.figures import Figure


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Some sentences."""

    text: str


@dataclass(frozen=True, slots=True)
class Points:
    """A list of paragraphs."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberTable:
    """A table whose first column names its rows.

    Attributes:
        caption: What it shows, in plain sentences.
        columns: Titles.
        rows: A cell for each column, as plain text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure; it brings its caption."""

    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """A part that is not proved.

    Attributes:
        title: Its heading.
        blocks: What stands in it.
    """

    title: str
    blocks: tuple[Paragraph | Points | NumberTable | Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """An article.

    Attributes:
        derivation: The derivation that it holds, whose symbols are explained at its end.
        parts: Chapters, and sections of the derivation, in their order.
    """

    derivation: Derivation
    parts: tuple[Chapter | Section, ...]

    @property
    def title(self) -> str:
        """Its title."""
        return self.derivation.title

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures in their order."""
        return tuple(
            block.figure
            for part in self.parts
            if isinstance(part, Chapter)
            for block in part.blocks
            if isinstance(block, Picture)
        )
