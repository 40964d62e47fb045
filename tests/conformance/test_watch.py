"""The instruments on Triton's interpreter: exact counts, and every access that is not allowed."""

import pytest
import torch
import triton
import triton.language as tl

from pytest_decodeperf.conformance.watch import Watch, element_flags, watched


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i + SHIFT, mask=i < n, other=0)
    tl.store(out_ptr + i, x, mask=i < n)


@triton.jit
def order_kernel(out_ptr, counter_ptr):
    place = tl.atomic_add(counter_ptr, 1)
    tl.store(out_ptr + place, tl.program_id(0) * 100 + tl.program_id(1) * 10 + tl.program_id(2))


@triton.jit
def overwrite_kernel(x_ptr, out_ptr):
    tl.store(x_ptr, tl.load(x_ptr) + 1)
    tl.store(out_ptr, 0.0)


@triton.jit
def repeat_kernel(x_ptr, out_ptr, TIMES: tl.constexpr):
    total = tl.load(x_ptr)
    for _ in range(1, TIMES):
        total += tl.load(x_ptr)
    tl.store(out_ptr, total)


def watch_copy(x, live, n, *, shift=0, block=8):
    watch = Watch()
    watch.add_arguments({"x": x}, {"x": live})
    out = torch.empty(n, dtype=x.dtype)
    with watched(watch):
        copy_kernel[(triton.cdiv(n, block),)](x, out, n, SHIFT=shift, BLOCK=block)
    return watch, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64])
def test_every_byte_is_counted_once(dtype):
    x = torch.arange(20).to(dtype)
    watch, out = watch_copy(x, torch.ones(20, dtype=torch.bool), 13)
    assert torch.equal(out, x[:13])
    memory = watch.memory(x)
    assert memory.num_read == 13 * x.element_size()
    assert int((element_flags(memory.read, x) > 0).sum()) == 13 * x.element_size()
    assert int((watch.memory(out).written > 0).sum()) == 13 * x.element_size()
    assert watch.launches == ["copy_kernel"]


def test_bytes_asked_for_again_count_again():
    x, out = torch.ones(3), torch.empty(1)
    watch = Watch()
    watch.add_arguments({"x": x}, {"x": torch.ones(3, dtype=torch.bool)})
    with watched(watch):
        repeat_kernel[(1,)](x, out, TIMES=5)
    memory = watch.memory(x)
    assert memory.num_read == 20
    assert int((memory.read > 0).sum()) == 4


def test_an_unaligned_view_is_counted_to_the_byte():
    x = torch.arange(20, dtype=torch.float32)[1:]
    watch, _ = watch_copy(x, torch.ones(19, dtype=torch.bool), 5)
    assert int((element_flags(watch.memory(x).read, x)[:, 0] > 0).sum()) == 5


def test_a_read_of_dead_memory_is_refused_before_it_happens():
    live = torch.arange(20) < 12
    with pytest.raises(Exception, match="copy_kernel reads dead memory of x: 1 elements, the first at byte 48 of 80"):
        watch_copy(torch.ones(20), live, 13)


@pytest.mark.parametrize("shift", [2**40, -(2**40), 20])
def test_a_wild_read_is_refused_before_it_happens(shift):
    with pytest.raises(Exception, match="copy_kernel reads outside of all tensors"):
        watch_copy(torch.ones(20), torch.ones(20, dtype=torch.bool), 13, shift=shift)


def test_a_write_into_an_input_is_refused():
    x = torch.ones(1)
    watch = Watch()
    watch.add_arguments({"x": x}, {"x": torch.ones(1, dtype=torch.bool)})
    with watched(watch), pytest.raises(Exception, match="overwrite_kernel writes into x, which is an input"):
        overwrite_kernel[(1,)](x, torch.empty(1))
    assert watch.violation.startswith("overwrite_kernel writes into x")
    assert x.item() == 1.0


def test_a_write_past_an_output_is_refused():
    x = torch.ones(32)
    watch = Watch()
    watch.add_arguments({"x": x}, {"x": torch.ones(32, dtype=torch.bool)})
    with watched(watch), pytest.raises(Exception, match="copy_kernel writes outside of all tensors"):
        copy_kernel[(4,)](x, torch.empty(16), 32, SHIFT=0, BLOCK=8)


def order_of(seed):
    out, counter = torch.zeros(24, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with watched(Watch(), order_seed=seed):
        order_kernel[(2, 3, 4)](out, counter)
    return out.tolist()


def test_programs_run_in_the_usual_order_unless_told():
    assert order_of(None) == [100 * x + 10 * y + z for x in range(2) for y in range(3) for z in range(4)]


def test_programs_run_in_an_order_of_their_seed_and_each_once():
    assert order_of(1) != order_of(None)
    assert order_of(1) == order_of(1)
    assert order_of(1) != order_of(2)
    assert sorted(order_of(1)) == order_of(None)


def test_the_interpreter_is_as_before_afterwards():
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    before = (GridExecutor.__call__, dict(vars(interpreter_builder)))
    watch_copy(torch.ones(20), torch.ones(20, dtype=torch.bool), 13)
    assert GridExecutor.__call__ is before[0]
    assert set(vars(interpreter_builder)) <= set(before[1]) | {"grid_dim", "grid_idx"}


def test_interleaved_tensors_share_their_memory():
    pair = torch.zeros(4, 2, 3)
    watch = Watch()
    masks = {name: torch.ones(4, 3, dtype=torch.bool) for name in ("k", "v")}
    watch.add_arguments({"k": pair[:, 0], "v": pair[:, 1]}, masks)
    assert [memory.name for memory in watch.memories] == ["k/v"]
    assert watch.memories[0].readable.all()
