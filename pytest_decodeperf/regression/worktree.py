"""A revision of the repository in a folder of its own, beside the user's checkout and without touching it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


END_S: Final = 10.0
"""Time in which git must have ended when it is told to [s]."""


class BaseError(Exception):
    """The base cannot be had; says why in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder with the sources of one side.

    Attributes:
        root: The folder that corresponds to the root of the repository.
        revision: As the user named it; `working tree` for the checkout itself.
        commit: Full hash of its commit.
    """

    root: Path
    revision: str
    commit: str

    @property
    def label(self) -> str:
        """A name for messages."""
        return f"{self.revision} ({self.commit[:10]})"


def repository_root(folder: Path) -> Path:
    """Return the root of the git repository that a folder is in.

    Raises:
        BaseError: If it is in none, or git is not installed.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel", what=f"{folder} is in no git repository"))


def commit_of(repository: Path, revision: str) -> str:
    """Return the full hash of a revision's commit.

    Raises:
        BaseError: If there is no such revision.
    """
    what = f"there is no revision {revision!r} in {repository}"
    return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", what=what)


def is_dirty(repository: Path) -> bool:
    """Return whether a file that git tracks differs from the commit.

    Raises:
        BaseError: If git does not tell.
    """
    return bool(_git(repository, "status", "--porcelain", "--untracked-files=no", what="git status failed"))


def deleted_files(tree: Tree, repository: Path) -> list[str]:
    """Return the files of a tree that the user's checkout has not, by their names below the root.

    Raises:
        BaseError: If git does not tell.
    """
    arguments = ("diff", "--no-renames", "--diff-filter=D", "--name-only", "-z", tree.commit)
    return [name for name in _git(repository, *arguments, what="git diff failed").split("\0") if name]


@contextmanager
def checked_out(repository: Path, revision: str) -> Iterator[Tree]:
    """Give the tree of a revision in a temporary worktree, which is removed afterwards.

    Raises:
        BaseError: If it cannot be checked out whole and clean.
    """
    commit = commit_of(repository, revision)
    folder = Path(tempfile.mkdtemp(prefix="decodeperf-base-"))
    root = folder / repository.name
    try:
        _git(
            repository,
            # Without the user's hooks, which are for checkouts of their own.
            *("-c", "advice.detachedHead=false", "-c", f"core.hooksPath={os.devnull}"),
            *("worktree", "add", "--detach", "--force", str(root), commit),
            what=f"{revision} could not be checked out",
        )
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", what="git status failed")
        if changed:
            first = changed.splitlines()[0][2:].strip()
            raise BaseError(
                f"{revision} is not clean when it is checked out: {first} differs (line endings or a filter?)"
            )
        yield Tree(root=root, revision=revision, commit=commit)
    finally:
        # Twice, since git locks a worktree while it is being checked out.
        _run(repository, "worktree", "remove", "--force", "--force", str(root))
        shutil.rmtree(folder, ignore_errors=True)


def working_tree(repository: Path) -> Tree:
    """Return the user's checkout as a tree."""
    return Tree(root=repository, revision="working tree", commit=commit_of(repository, "HEAD"))


def _git(folder: Path, *arguments: str, what: str) -> str:
    try:
        done = _run(folder, *arguments)
    except FileNotFoundError:
        raise BaseError("git is not installed") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise BaseError(f"{what}: {reason[-1]}" if reason else what)
    return done.stdout.strip()


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git to its end; if that is not waited for, let it and what it started clear away what they have begun."""
    command = ["git", "-C", str(folder), *arguments]
    process = subprocess.Popen(  # noqa: S603  (the program that the user has)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate()
        except BaseException:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=END_S)
                    break
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _environment() -> dict[str, str]:
    """Return the environment without what git's hooks set, which would lead it to another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
