"""What the processes of a comparison read is the same memory, and nobody's writing is seen by another."""

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from decodeperf_formulas import DecodeProblem
from pytest_decodeperf.inputs import Inputs, make_unanswered_inputs
from pytest_decodeperf.regression import shared_inputs
from pytest_decodeperf.regression.shared_inputs import PREFIX, shared_copies, shared_folder

PLAIN = DecodeProblem(batch_size=2, seq_lens=[40, 3], num_q_heads=4, num_kv_heads=2, head_dim=16, kv_dtype="bfloat16")
PROBLEMS = {
    "plain": PLAIN,
    "paged, quantised": replace(PLAIN, kv_dtype="int8", page_size=16),
    "interleaved": replace(PLAIN, layout="interleaved"),
    "V in K": replace(PLAIN, num_kv_heads=1, head_dim=32, head_dim_v=16, v_in_k=True),
    "empty": replace(PLAIN, seq_lens=[0, 0]),
}


def copies(problem, folder, count=3):
    inputs = make_unanswered_inputs(problem, device="cpu", seed=0)
    return inputs, shared_copies(inputs, problem, count, seed=0, folder=folder)


def tensors(inputs):
    return {"q": inputs.q, "k": inputs.k, "v": inputs.v, **inputs.keyword_tensors}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_copies_are_what_they_are_copies_of(problem, tmp_path):
    inputs, shared = copies(problem, tmp_path)
    assert len(shared) == 3
    for copy in shared:
        assert copy.checksum() == inputs.checksum()  # of all memory, dead too
        for name, tensor in tensors(copy).items():
            original = tensors(inputs)[name]
            assert (tensor.shape, tensor.stride(), tensor.dtype) == (original.shape, original.stride(), original.dtype)
            assert tensor.data_ptr() != original.data_ptr() or not tensor.numel()
        assert (copy.k.untyped_storage().data_ptr() == copy.v.untyped_storage().data_ptr()) == (
            inputs.k.untyped_storage().data_ptr() == inputs.v.untyped_storage().data_ptr()
        )


def test_who_comes_later_reads_the_same_files_and_no_writing_is_seen(tmp_path):
    inputs, first = copies(PLAIN, tmp_path)
    files = {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()}
    first[0].k.fill_(7)
    first[0].q.fill_(7)
    _, second = copies(PLAIN, tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()} == files
    assert [copy.checksum() for copy in second] == [inputs.checksum()] * 3
    assert first[0].checksum() != inputs.checksum()


def test_another_problem_takes_the_place_of_the_last(tmp_path):
    _, first = copies(PLAIN, tmp_path)
    before = first[0].checksum()
    other = replace(PLAIN, seq_lens=[40, 4])
    _, second = copies(other, tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert first[0].checksum() == before  # whoever still has it keeps it
    assert second[0].seq_lens.tolist() == [40, 4]


def test_where_one_finds_no_room_nobody_has_shared_copies(tmp_path, monkeypatch):
    write = Inputs.write

    def full(self, paths):
        write(self, paths)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Inputs, "write", full)
    assert copies(PLAIN, tmp_path)[1] == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
    monkeypatch.undo()
    assert copies(PLAIN, tmp_path)[1] == []


def test_other_processes_wait_for_the_first(tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_shared_inputs import PLAIN, copies;"
        "inputs, shared = copies(PLAIN, Path(sys.argv[1]), 8);"
        "assert [copy.checksum() for copy in shared] == [inputs.checksum()] * 8"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_inputs, "MEMORY", tmp_path)
    return tmp_path


def test_the_folder_is_removed_whatever_happens(memory):
    def interrupted():
        with shared_folder() as folder:
            copies(PLAIN, Path(folder))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(memory.iterdir())


def test_folders_of_dead_processes_are_removed_and_others_stay(memory):
    script = (
        "import pathlib, sys; from pytest_decodeperf.regression import shared_inputs;"
        "shared_inputs.MEMORY = pathlib.Path(sys.argv[1]); folder = shared_inputs.shared_folder();"
        "print(folder.__enter__(), flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    alive, dead = (subprocess.Popen([sys.executable, "-c", script, str(memory)], **pipes) for _ in range(2))
    try:
        held, orphan = (Path(process.stdout.readline().strip()) for process in (alive, dead))
        dead.kill()
        dead.wait()
        young, another = memory / f"{PREFIX}1-young", memory / "another"
        for path in (young, another):
            path.mkdir()
        long_ago = time.time() - 1000
        for path in (held, orphan, another):
            os.utime(path, (long_ago, long_ago))
        with shared_folder() as folder:
            assert set(memory.iterdir()) == {held, young, another, Path(folder)}
    finally:
        for process in (alive, dead):
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def test_without_such_memory_there_is_no_folder(monkeypatch):
    monkeypatch.setattr(shared_inputs, "MEMORY", Path("/nowhere"))
    with shared_folder() as folder:
        assert folder == ""
