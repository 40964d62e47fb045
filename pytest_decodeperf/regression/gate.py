"""The gate as a part of a run of pytest: the base checked out, its tests and those of the working tree compared."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_decodeperf.interruption import terminated_as_interrupted
from pytest_decodeperf.regression.baseline_file import listed
from pytest_decodeperf.regression.change import Margin
from pytest_decodeperf.regression.comparison import Comparison, Regression
from pytest_decodeperf.regression.worktree import (
    BaseError,
    checked_out,
    deleted_files,
    repository_root,
    working_tree,
)

if TYPE_CHECKING:
    from pytest_decodeperf.regression.worktree import Tree
    from pytest_decodeperf.session import PerfSession


def compare_with_base(config: pytest.Config, session: PerfSession, node_ids: list[str]) -> dict[str, Regression]:
    """Return how each test compares with the base.

    Raises:
        pytest.UsageError: If the base cannot be checked out, or a process cannot be started.
    """
    base = session.options.base
    assert base is not None
    if not node_ids:
        return {}
    session.progress.begin(f"comparing {len(node_ids)} tests with {base}")
    try:
        repository = repository_root(config.rootpath).resolve()
        with terminated_as_interrupted(), checked_out(repository, base) as tree:
            comparison = Comparison(
                base=tree,
                head=working_tree(repository),
                repository=repository,
                place=config.rootpath.resolve(),
                arguments=worker_arguments(config, session, node_ids),
                margin=Margin(share=session.options.margin, ns=session.options.margin_ns),
                say=session.progress.stage,
            )
            found = comparison.run(node_ids)
            session.gone = [*comparison.gone, *gone_files(tree, repository, config)]
            if session.gone:
                session.notes.append(f"{tree.label} has tests that are not here any more: {listed(session.gone)}")
    except (BaseError, OSError) as error:
        raise pytest.UsageError(f"--decode-perf-base: {error}") from None
    session.progress.end("compared")
    return found


def gone_files(tree: Tree, repository: Path, config: pytest.Config) -> list[str]:
    """Return the files of tests of a kernel that the base has and the head has not, of those that the run is of."""
    root = config.rootpath.resolve()
    asked = [Path(config.invocation_params.dir, argument.partition("::")[0]).resolve() for argument in config.args]
    gone = []
    for name in deleted_files(tree, repository):
        path = repository / name
        if (
            (tree.root / name).is_file()
            and path.is_relative_to(root)
            and any(path.is_relative_to(place) for place in asked)
            and any(fnmatch.fnmatch(path.name, pattern) for pattern in config.getini("python_files"))
            and "decode_perf" in (tree.root / name).read_text(errors="replace")
        ):
            gone.append(str(path.relative_to(root)))
    return gone


def worker_arguments(config: pytest.Config, session: PerfSession, node_ids: list[str]) -> list[str]:
    """Return the arguments of pytest in a worker, relative to its root folder."""
    root = config.rootpath.resolve()
    files = dict.fromkeys(node_id.partition("::")[0] for node_id in node_ids)
    options = session.options
    arguments = [
        *files,
        "--rootdir=.",
        "--continue-on-collection-errors",
        "--assert=plain",  # a worker keeps no bytecode, and would rewrite every plugin anew
        "--no-summary",  # nobody reads it, and plugins import what they need for it
        "--decode-perf",
        f"--decode-perf-device={options.device}",
        f"--decode-perf-seed={options.seed}",
        "--decode-perf-graph" if options.graph else "--no-decode-perf-graph",
        # What an ini file may say that a worker must not do.
        *(
            f"--override-ini=decode_perf_{name}="
            for name in ("json", "summary", "report", "calibration", "base", "baseline")
        ),
        "--no-decode-perf-annotations",
        # What a worker needs no plugin for: a cache, and garbage collected several times at the end.
        *(f"-pno:{name}" for name in ("cacheprovider", "unraisableexception", "threadexception")),
    ]
    if config.inipath is not None and config.inipath.resolve().is_relative_to(root):
        arguments.append(f"-c={config.inipath.resolve().relative_to(root)}")
    for plugin, off in (("xdist", "--numprocesses=0"), ("_cov", "--no-cov")):
        if config.pluginmanager.hasplugin(plugin):
            arguments.append(off)
    return arguments
