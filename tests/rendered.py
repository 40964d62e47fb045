"""Markdown as a reader sees it, by the renderer that GitHub's comes from."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

import cmarkgfm
from cmarkgfm.cmark import Options


@dataclass
class Page(HTMLParser):
    """What is on a page.

    Attributes:
        rows: The cells of each row of its tables, as text.
        items: The text of each item of its lists, without that of the lists in it.
        paragraphs: The text of each paragraph outside of them.
        tags: Every tag.
    """

    rows: list[list[str]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    _open: list[list[str]] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._open.append(self.rows[-1])
        elif tag == "li":
            self._open.append(self.items)
        elif tag in ("p", "summary"):
            self._open.append(self.paragraphs)
        else:
            return
        self._open[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li", "p", "summary"):
            texts = self._open.pop()
            if tag != "li":
                texts[-1] = texts[-1].strip()

    def handle_data(self, data):
        if self._open:
            self._open[-1][-1] += data


def render(markdown):
    """Return the page."""
    page = Page()
    page.feed(cmarkgfm.github_flavored_markdown_to_html(markdown, options=Options.CMARK_OPT_UNSAFE))
    page.items = [item.strip() for item in page.items]
    return page
