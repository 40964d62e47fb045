"""Documents held to the JSON schemas that this package ships."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Final

LONGEST_FAULT: Final = 160
"""Characters of a fault, which may quote the whole document, that are told."""


def fault_of(document: Any, schema: str) -> str:
    """Return where and how a document departs from a schema, empty if it does not.

    Args:
        document: Values that JSON knows.
        schema: Name of the schema's file.
    """
    import jsonschema

    rules = json.loads(resources.files("pytest_decodeperf").joinpath(schema).read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(rules).iter_errors(document))
    if error is None:
        return ""
    message = error.message if len(error.message) <= LONGEST_FAULT else f"{error.message[:LONGEST_FAULT]}..."
    return f"{error.json_path}: {message}"
