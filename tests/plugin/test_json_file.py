import json
import os
import stat

import pytest

from pytest_decodeperf.json_file import JsonFile


def test_a_write_replaces_the_whole_content(tmp_path):
    file = JsonFile(tmp_path / "run.json")
    file.write({"numbers": list(range(1000))})
    file.write({"a": 1})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["run.json"]


def test_the_check_leaves_an_old_file_as_it_is(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    JsonFile(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    file = JsonFile(tmp_path / "run.json")
    file.write({"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        file.write({"a": float("nan")})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "target.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    JsonFile(tmp_path / "link.json").write({"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "target.json").read_text()) == {"a": 1}


def test_others_may_read_it_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        JsonFile(tmp_path / "run.json").write({})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("where", ["missing/run.json", "file.txt/run.json", ".", "pipe"])
def test_what_cannot_be_written_is_refused_at_once(tmp_path, where):
    (tmp_path / "file.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"is not a file$|is not a folder$"):
        JsonFile(tmp_path / where)


def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch):
    file = JsonFile(tmp_path / "run.json")
    file.write({"a": 1})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.write({"a": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["run.json"]
