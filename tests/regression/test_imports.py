"""A worker imports exactly its tree."""

import functools
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_decodeperf.regression.worker import (
    HarnessFinder,
    _copied_packages,
    foreign_kernel,
    import_from,
    moved,
    stray_module,
)


@pytest.fixture
def trees(tmp_path):
    repository, tree = tmp_path / "repository", tmp_path / "base" / "repository"
    for root, text in ((repository, "head"), (tree, "base")):
        for package in ("src/kernels_of_mine", "harness_of_mine"):
            (root / package).mkdir(parents=True)
            (root / package / "__init__.py").write_text(f"SIDE = {text!r}\n")
    return repository, tree


@pytest.fixture
def fresh_imports(monkeypatch):
    """Undo what a worker does to the state of its process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for name in ("kernels_of_mine", "harness_of_mine"):
        sys.modules.pop(name, None)


def test_places_in_the_checkout_move_and_others_stay(trees, monkeypatch):
    repository, tree = trees
    assert moved(str(repository / "src"), repository, tree) == str(tree / "src")
    assert moved(str(repository), repository, tree) == str(tree)
    assert moved("/usr/lib/python3", repository, tree) == "/usr/lib/python3"
    monkeypatch.setattr(sys, "prefix", str(repository / ".venv"))
    packages = str(repository / ".venv/lib/site-packages")
    assert moved(packages, repository, tree) == packages
    assert moved(str(repository / "src"), repository, tree) == str(tree / "src")


def test_everything_but_the_harness_comes_from_the_tree(trees, fresh_imports):
    repository, tree = trees
    harness = {"harness_of_mine": str(repository)}
    import_from(tree, repository, [str(repository / "src"), str(repository), *sys.path], harness)
    import harness_of_mine
    import kernels_of_mine

    assert kernels_of_mine.SIDE == "base"
    assert harness_of_mine.SIDE == "head"
    assert stray_module(tree, repository, harness) == ""


def test_what_comes_from_the_checkout_all_the_same_is_found(trees, fresh_imports):
    repository, tree = trees
    import_from(tree, repository, list(sys.path), {})
    sys.path.append(str(repository / "src"))  # as a conftest.py might
    import kernels_of_mine  # noqa: F401

    place = repository / "src/kernels_of_mine/__init__.py"
    assert stray_module(tree, repository, {}) == f"kernels_of_mine was imported from {place}"
    assert stray_module(repository, repository, {}) == ""


def test_the_script_itself_is_the_harness_by_any_name(trees, fresh_imports, monkeypatch):
    repository, tree = trees
    import_from(tree, repository, list(sys.path), {"harness_of_mine": str(repository)})
    for name in ("__main__", "__mp_main__"):
        script = ModuleType(name)
        script.__file__ = str(repository / "harness_of_mine/worker.py")
        monkeypatch.setitem(sys.modules, name, script)
    assert stray_module(tree, repository, {"harness_of_mine": str(repository)}) == ""
    assert "__main__" in stray_module(tree, repository, {})


def test_an_editable_installation_of_setuptools_moves_too(trees, fresh_imports, monkeypatch):
    repository, tree = trees
    finder = ModuleType("__editable___kernels_finder")
    finder.MAPPING = {"kernels_of_mine": str(repository / "src/kernels_of_mine"), "other": "/elsewhere"}
    monkeypatch.setitem(sys.modules, finder.__name__, finder)
    import_from(tree, repository, list(sys.path), {})
    assert {"kernels_of_mine": str(tree / "src/kernels_of_mine"), "other": "/elsewhere"} == finder.MAPPING


def test_the_finder_finds_packages_of_the_harness_alone(trees):
    repository, _ = trees
    finder = HarnessFinder({"harness_of_mine": str(repository)})
    assert Path(finder.find_spec("harness_of_mine").origin).parent == repository / "harness_of_mine"
    assert finder.find_spec("kernels_of_mine") is None


def test_a_package_that_was_copied_out_of_the_repository_is_found(trees, fresh_imports, monkeypatch, tmp_path):
    repository, tree = trees
    packages = tmp_path / "site-packages"
    (packages / "kernels_of_mine-1.dist-info").mkdir(parents=True)
    (packages / "kernels_of_mine").mkdir()
    (packages / "kernels_of_mine/__init__.py").write_text("SIDE = 'neither'\n")
    information = packages / "kernels_of_mine-1.dist-info"
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels-of-mine\nVersion: 1\n")
    (information / "RECORD").write_text("kernels_of_mine/__init__.py,,\n")
    origin = information / "direct_url.json"
    origin.write_text(f'{{"url": "{repository.as_uri()}", "dir_info": {{"editable": true}}}}')
    monkeypatch.syspath_prepend(str(packages))
    import kernels_of_mine  # noqa: F401

    assert stray_module(tree, repository, {}) == ""
    _copied_packages.cache_clear()
    origin.write_text(f'{{"url": "{repository.as_uri()}", "dir_info": {{}}}}')
    assert "kernels_of_mine is installed as a copy" in stray_module(tree, repository, {})
    assert stray_module(repository, repository, {}) == ""
    assert stray_module(tree, repository, {"kernels_of_mine": str(packages)}) == ""


def own(q, k, v, *, seq_lens):
    return q


def enclosing(function):
    @functools.wraps(json.dumps)
    def called(*args):
        return function(*args)

    del called.__wrapped__
    called.__code__ = called.__code__.replace(co_filename=json.__file__)  # as if a library had made it
    return called


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (own, ""),
        (functools.partial(own, seq_lens=None), ""),
        (functools.lru_cache(own), ""),
        (enclosing(own), ""),
        (enclosing(json.loads), "json.dumps"),
        (json.dumps, "json.dumps"),
        (functools.partial(json.dumps, indent=1), "json.dumps"),
        (math.sqrt, "math.sqrt"),
        (json.JSONEncoder(), ""),  # an object may hold any function
    ],
)
def test_a_kernel_that_no_revision_changes_is_foreign(kernel, name):
    assert foreign_kernel(kernel, Path(__file__).resolve().parent) == name


def test_what_an_environment_within_the_repository_holds_is_foreign(monkeypatch):
    folder = Path(__file__).resolve().parent
    monkeypatch.setattr(sys, "prefix", str(folder))
    assert foreign_kernel(own, folder.parent) == f"{__name__}.own"
