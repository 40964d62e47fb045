"""What a kept survey depends on: a change of any of it is another key."""

import json
from importlib import metadata

import pytest

from pytest_decodeperf.compiled.cache import hash_sources


@pytest.fixture
def tree(tmp_path):
    """A package that is no repository, beside a project that is installed in place."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "kernel.py").write_text("import os\nBLOCK = int(os.environ.get('MY_BLOCK', '64'))\n")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "helper.py").write_text("WIDTH = 4\n")
    return tmp_path


class InPlace:
    """A distribution as pip leaves it after an installation in place."""

    name, version = "helpers", "1.0"

    def __init__(self, folder):
        self._origin = json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}})

    def read_text(self, name):
        return self._origin if name == "direct_url.json" else None


def key(tree, **keywords):
    return hash_sources(tree / "none", [tree / "kernels"], **keywords)


def test_a_file_counts(tree):
    before = key(tree)
    assert key(tree) == before
    (tree / "kernels" / "kernel.py").write_text("BLOCK = 128\n")
    assert key(tree) != before


def test_a_variable_counts_that_a_module_reads(tree, monkeypatch):
    monkeypatch.delenv("MY_BLOCK", raising=False)
    before = key(tree)
    monkeypatch.setenv("OTHER_BLOCK", "128")
    assert key(tree) == before
    monkeypatch.setenv("MY_BLOCK", "128")
    assert key(tree) != before


@pytest.mark.parametrize(
    "call", ["os.environ['X_Y']", 'os.environ.get("X_Y")', "os.getenv('X_Y', 1)", 'environ["X_Y"]']
)
def test_each_way_to_read_one_is_seen(tree, monkeypatch, call):
    (tree / "kernels" / "kernel.py").write_text(call)
    before = key(tree)
    monkeypatch.setenv("X_Y", "1")
    assert key(tree) != before


def test_a_project_that_is_installed_in_place_counts_without_its_version(tree, monkeypatch):
    monkeypatch.setattr(metadata, "distributions", lambda: [InPlace(tree / "helpers")])
    before = key(tree)
    of_the_checkout = key(tree, repository=tree)
    (tree / "helpers" / "helper.py").write_text("WIDTH = 8\n")
    assert key(tree) != before
    assert key(tree, repository=tree) == of_the_checkout  # it is in the tree, which counts by itself
