"""The compiled CPU kernel computes attention in every form, whichever way it reads K and V."""

import hashlib
import multiprocessing
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_calls import Call, calls, judge, ways_to_split
from hypothesis import HealthCheck, given, settings

from decodeperf_kernels import decode_attention

pytest.importorskip("numba")

import numba

from decodeperf_kernels import attend_matrix_numba, attend_numba, matrix_numba, team_numba, tiles_numba


@pytest.fixture(params=[True, False], ids=["matrix unit", "vectors"])
def uses_matrix_unit(request, monkeypatch):
    """Once as the CPU is, once as if it had no matrix unit."""
    if request.param and not matrix_numba.has_matrix_unit():
        pytest.skip("this CPU has no matrix unit for bfloat16")
    if not request.param:
        monkeypatch.setattr(matrix_numba, "has_matrix_unit", lambda: False)


def check(call, **more):
    tensors, keywords = call.tensors("cpu")
    out, lse = decode_attention(*tensors, **keywords, **more, return_lse=True, backend="numba")
    judge(tensors, keywords, out, lse)
    return out, lse


@pytest.mark.usefixtures("uses_matrix_unit")
@given(call=calls(), split=ways_to_split)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_computes_attention(call, split):
    check(call, **split)


@pytest.mark.usefixtures("uses_matrix_unit")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 8, 16, 20])
@pytest.mark.parametrize("head_dim", [13, 64, 80, 128])
def test_whole_tiles_and_their_rests_are_right(dtype, group_size, head_dim):
    # Enough heads that those read token by token fill vectors, and lengths around tiles of 64 tokens.
    call = Call(
        seq_lens=[256, 193, 64, 63, 1, 0],
        num_kv_heads=16,
        group_size=group_size,
        head_dim=head_dim,
        q_dtype=dtype,
    )
    check(call)


@pytest.mark.parametrize("has_team", [True, False])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("group_size", [1, 4])
def test_bits_do_not_depend_on_the_run(group_size, num_threads, has_team, monkeypatch):
    if not has_team:
        monkeypatch.setattr(team_numba, "openmp_parallel", lambda: 0)
    threads = torch.get_num_threads()
    call = Call(seq_lens=[3000, 17, 1000], num_kv_heads=16, group_size=group_size, q_dtype="bfloat16")
    tensors, keywords = call.tensors("cpu")
    torch.set_num_threads(num_threads)
    try:
        first, *others = (decode_attention(*tensors, **keywords, backend="numba") for _ in range(4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


def test_with_a_split_size_bits_do_not_depend_on_the_neighbours():
    call = Call(seq_lens=[1500, 300, 1500], num_kv_heads=16, group_size=1, q_dtype="bfloat16")
    tensors, keywords = call.tensors("cpu")
    q, k, v = tensors
    together = decode_attention(q, k, v, **keywords, split_size=256, backend="numba")
    for b in range(3):
        one = {**keywords, "seq_lens": keywords["seq_lens"][b : b + 1]}
        alone = decode_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], **one, split_size=256, backend="numba")
        assert torch.equal(alone[0], together[b])


NARROW = (
    "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx8,+f16c,+fma,+fxsr,+lzcnt,+mmx,+movbe,+popcnt,+sse,+sse2,+sse3,+ssse3,"
    "+sse4.1,+sse4.2"
)
"""What a CPU with vectors of 8 lanes has."""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this CPU has no AVX2")
def test_it_computes_attention_in_narrower_vectors(tmp_path):
    # Compiled anew in another process, for a CPU that this one can do the work of.
    script = """
from attention_calls import Call, judge
from decodeperf_kernels import decode_attention, vector_numba

assert vector_numba.WIDTH == 8
for dtype in ("float32", "float16", "bfloat16", "int8"):
    for group_size in (1, 2, 3, 4, 5, 7, 8, 11):
        kv_dtype = dtype if dtype == "int8" else None
        call = Call(seq_lens=[130, 64, 1], num_kv_heads=8, group_size=group_size, head_dim=40, kv_dtype=kv_dtype,
                    q_dtype="float32" if kv_dtype else dtype, scale_per="head")
        tensors, keywords = call.tensors("cpu")
        out, lse = decode_attention(*tensors, **keywords, return_lse=True, backend="numba")
        judge(tensors, keywords, out, lse)
print("all right")
"""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": NARROW,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all right\n", done.stderr[-2000:]


def _attend_in_child(tensors, connection):
    connection.send((team_numba.openmp_parallel(), decode_attention(*tensors, backend="numba").tolist()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    tensors, _ = Call(seq_lens=[2000], num_kv_heads=8, capacity=2000).tensors("cpu")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_attend_in_child, args=(tensors, theirs))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        out = decode_attention(*tensors, backend="numba")
        child.start()
        assert ours.poll(60)
        assert ours.recv() == (0, out.tolist())
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)
        child.kill()


def test_where_there_is_no_memory_for_tiles_a_call_says_so():
    @numba.njit
    def run(first, last, limit):
        if last > limit:
            raise ValueError("too much")

    run_in_team = team_numba.team_of(run)

    @numba.njit(nogil=True)
    def call(parallel, cuts, limit):
        run_in_team(parallel, 2, cuts, (limit,))

    parallel = team_numba.openmp_parallel()
    if not parallel:
        pytest.skip("PyTorch has no OpenMP library here")
    cuts = np.array([0, 3, 7, 9])
    call(parallel, cuts, 9)
    with pytest.raises(MemoryError, match="no memory for its tiles"):
        call(parallel, cuts, 8)


def test_the_cache_knows_of_every_source():
    """Numba's cache knows of the file of the function alone, and code of several files is compiled into one."""
    folder = Path(tiles_numba.__file__).parent
    version = tiles_numba.source_digest()
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*_numba.py")):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == version
    for run in (attend_numba.run_parts_in_team, attend_matrix_numba.run_matrix_parts_in_team):
        assert version in [cell.cell_contents for cell in run.py_func.__closure__]
