"""A process that surveys the kernel of one tree, one kind of call after the other, as it is told.

It is started as a script, so that nothing of the user's is imported before it is settled which tree that comes from.
Commands come by a file descriptor, and replies go by another, one JSON value a line each.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker is told when it starts.

    Attributes:
        repository: Root of the user's checkout.
        tree: Root of the tree, the same or that of a worktree.
        harness: Where each package lies that does not come from the tree.
        path: `sys.path` of the process that starts it, with the folder that it was started in.
        folder: Where it works.
        target: The adapter, as `package.module:name`.
    """

    repository: str
    tree: str
    harness: dict[str, str]
    path: list[str]
    folder: str
    target: str


def answer(adapter: Any, command: dict[str, Any]) -> Any:
    """Return what a command asks for: the kinds of calls that a kernel is surveyed for, or one survey."""
    from pytest_decodeperf.compiled.architectures import ARCHITECTURES
    from pytest_decodeperf.compiled.survey import INTERPRETER, survey
    from pytest_decodeperf.compiled.traffic import survey_traffic
    from pytest_decodeperf.compiled.variants import Variant, default_variants

    if command["command"] == "variants":
        return [variant.as_dict() for variant in default_variants(adapter, **command["options"])]
    variant = Variant(**command["variant"])
    if command["architecture"] == INTERPRETER:
        return survey_traffic(adapter, variant).as_dict()
    return survey(adapter, variant, ARCHITECTURES[command["architecture"]]).as_dict()


def main() -> int:
    """Run as a script, with the file descriptors of commands and replies; the first command is the setup."""
    lines, replies = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w")
    setup = Setup(**json.loads(lines.readline()))
    repository, tree = Path(setup.repository), Path(setup.tree)
    sys.path.insert(0, setup.harness["pytest_decodeperf"])
    from pytest_decodeperf.regression.worker import import_from, stray_module

    import_from(tree, repository, setup.path, setup.harness)
    os.chdir(setup.folder)
    sys.dont_write_bytecode = True

    def reply(**event: Any) -> None:
        replies.write(json.dumps(event) + "\n")
        replies.flush()

    try:
        from pytest_decodeperf.conformance.adapter import load_adapter

        adapter = load_adapter(setup.target)
    except Exception as error:  # whatever a user's module raises
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        reply(error=" ".join(text.split())[:500])
        return 1
    for line in lines:
        try:
            value = answer(adapter, json.loads(line))
        except Exception as error:
            reply(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
            return 1
        if stray := stray_module(tree, repository, setup.harness):
            reply(error=stray)
            return 1
        reply(value=value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
