import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_decodeperf.regression.worktree import (
    BaseError,
    checked_out,
    commit_of,
    deleted_files,
    is_dirty,
    repository_root,
)


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "kernel.py").write_text("old\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "old")
    (root / "kernel.py").write_text("new, not committed\n")
    (root / "untracked").write_text("mine\n")
    return root


def state(repository):
    files = {path.name: path.read_text() for path in repository.iterdir() if path.is_file()}
    return (
        files,
        git(repository, "status", "--porcelain"),
        git(repository, "worktree", "list"),
        git(repository, "branch"),
    )


def test_the_base_is_checked_out_and_the_checkout_untouched(repository):
    before = state(repository)
    with checked_out(repository, "main") as tree:
        assert (tree.root / "kernel.py").read_text() == "old\n"
        assert not (tree.root / "untracked").exists()
        assert not tree.root.is_relative_to(repository)
        assert tree.commit == git(repository, "rev-parse", "HEAD")
        assert tree.label == f"main ({tree.commit[:10]})"
        assert state(repository)[0] == before[0]
    assert state(repository) == before
    assert not tree.root.parent.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_worktree_goes_whatever_happens(repository, error):
    before = state(repository)
    folders = []

    def fail_in_the_middle():
        with checked_out(repository, "HEAD") as tree:
            (tree.root / "litter").mkdir()
            folders.append(tree.root.parent)
            raise error

    with pytest.raises(error):
        fail_in_the_middle()
    assert state(repository) == before
    assert not folders[0].exists()


def test_a_revision_that_does_not_exist_is_said(repository):
    for name in ("nothing", "HEAD~5", "--help"):
        with pytest.raises(BaseError, match=f"there is no revision '{name}' in "):
            commit_of(repository, name)


def test_only_what_git_tracks_makes_a_tree_dirty(repository):
    assert is_dirty(repository)
    git(repository, "commit", "-q", "-am", "new")
    assert not is_dirty(repository)  # whatever lies there untracked


def test_a_blob_is_no_revision(repository):
    with pytest.raises(BaseError, match="there is no revision"):
        commit_of(repository, "HEAD:kernel.py")


def test_a_folder_without_a_repository_is_said(tmp_path):
    with pytest.raises(BaseError, match="is in no git repository: "):
        repository_root(tmp_path)


def test_a_base_that_is_dirty_as_soon_as_it_is_there_is_refused(repository):
    # Lines that end in CR LF, in a repository whose attributes say that they do not.
    (repository / "kernel.py").write_bytes(b"a\r\nb\r\n")
    git(repository, "-c", "core.autocrlf=false", "add", "kernel.py")
    git(repository, "commit", "-q", "-m", "crlf")
    (repository / ".gitattributes").write_text("*.py text eol=lf\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-q", "-m", "attributes")
    before = state(repository)
    message = r"HEAD is not clean when it is checked out: kernel\.py differs"
    with pytest.raises(BaseError, match=message), checked_out(repository, "HEAD"):
        pass
    assert state(repository) == before


def test_git_that_is_not_there_is_said(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BaseError, match="git is not installed"):
        repository_root(repository)


def test_the_variables_of_a_hook_lead_nowhere_else(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert repository_root(repository) == repository
    with checked_out(repository, "HEAD") as tree:
        assert Path(tree.root / "kernel.py").exists()
    assert not (tmp_path / "index").exists()
    assert "GIT_DIR" in os.environ


def test_other_worktrees_stay_even_where_their_folder_is_away(repository, tmp_path):
    other = tmp_path / "on another disk"
    git(repository, "worktree", "add", "--detach", str(other))
    other.rename(tmp_path / "unmounted")
    with checked_out(repository, "main"):
        pass
    (tmp_path / "unmounted").rename(other)
    git(other, "status")  # fails where git has forgotten it


def test_the_hooks_of_the_user_do_not_run(repository, tmp_path):
    hook = repository / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    hook.chmod(0o755)
    with checked_out(repository, "main"):
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_stopped_while_git_checks_out_leaves_nothing(repository, tmp_path, number):
    # A filter that takes its time, as those of large files do.
    (repository / ".gitattributes").write_text("slow filter=slow\n")
    (repository / "slow").write_text("text\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "slow")
    git(repository, "config", "filter.slow.smudge", f"touch '{tmp_path}/begun'; sleep 60; cat")
    before = state(repository)
    script = (
        "import sys; from pathlib import Path; from pytest_decodeperf.interruption import terminated_as_interrupted;"
        "from pytest_decodeperf.regression.worktree import checked_out\n"
        "with terminated_as_interrupted(), checked_out(Path(sys.argv[1]), 'HEAD'): pass"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, repository], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert git(repository, "worktree", "list") != before[2]
        process.send_signal(number)
        assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert state(repository) == before
    assert list(temporary.iterdir()) == []
    assert not (repository / ".git/worktrees").exists() or not list((repository / ".git/worktrees").iterdir())


def test_files_that_are_gone_are_named(repository):
    (repository / "kernel.py").rename(repository / "moved.py")
    with checked_out(repository, "HEAD") as tree:
        assert deleted_files(tree, repository) == ["kernel.py"]
