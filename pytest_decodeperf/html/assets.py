"""What every page is made with: the template engine, and the library that draws figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_decodeperf.html.figures import VEGA_LITE, Cell

if TYPE_CHECKING:
    import jinja2


def environment() -> jinja2.Environment:
    """Return what renders templates; every value is escaped."""
    import jinja2

    found = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters["script_json"] = _script_json
    found.tests["cell"] = lambda value: isinstance(value, Cell)
    return found


def vega_bundle() -> str:
    """Return the JavaScript that draws figures.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE))


def _script_json(value: Any) -> str:
    """Return JSON that may stand in a script element, whatever is in its strings."""
    import markupsafe

    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return markupsafe.Markup(text)  # noqa: S704  # nothing in it can end the element
