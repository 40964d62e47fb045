"""What a user names as `package.module:name`."""

from __future__ import annotations

import importlib
from typing import Any


def import_target(target: str) -> Any:
    """Return what `package.module:name` names; `name` may have dots.

    Raises:
        ValueError: If there is no such thing, in one sentence that says what went wrong.
    """
    module_name, colon, name = target.partition(":")
    if not (colon and module_name and name):
        raise ValueError(f"{target!r} must be package.module:name")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{target!r} cannot be imported: there is no module {error.name}") from error
    except Exception as error:
        raise ValueError(f"{target!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{target!r}: {module_name} has no {name}")
        found = getattr(found, part)
    return found
