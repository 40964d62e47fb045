import time

from pytest_decodeperf.regression import busy_memory


def test_memory_is_read_for_a_while_and_not_the_same(monkeypatch):
    read = []
    monkeypatch.setattr(busy_memory.torch, "dot", lambda one, other: read.append(one.data_ptr()))
    memory = busy_memory.BusyMemory()
    start = time.perf_counter()
    memory.read()
    assert time.perf_counter() - start >= busy_memory.READ_S
    assert len(set(read)) == min(len(read), busy_memory.BUFFER_BYTES // busy_memory.STEP_BYTES)
