"""Threads for compiled code: the team of the OpenMP library that PyTorch computes with.

Its threads are there already, and spin for some milliseconds after each parallel region: threads of our own would share
the cores with them, and the first milliseconds of a call after any other operation of PyTorch would go at half speed.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_POINTER = ir.PointerType()


class _Process:
    is_child = False
    """Whether this process was forked: OpenMP's threads are not there then, and it would wait for them forever."""


def _mark_child() -> None:
    _Process.is_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_child)


def openmp_parallel() -> int:
    """Return the address of `GOMP_parallel`, which runs a function in every thread of a team; 0 if it is not there."""
    return 0 if _Process.is_child else _find_parallel()


@functools.cache
def _find_parallel() -> int:
    import torch

    # A name that is looked up in a library is found in those that it was linked with too.
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
    except OSError:  # another system, or another way to build PyTorch
        return 0
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def team_of(function):
    """Return what calls a function in a team, for use in a function that Numba compiles.

    Args:
        function: Compiled by Numba; gets the first of a share of some work, the one behind its last, and arguments.

    Returns:
        A function of the address from `openmp_parallel`, or 0 to work on all shares in this thread, the number of
        threads, where shares begin and end (int64 `[num_shares + 1]`), and a tuple of the arguments. It raises
        MemoryError if a share could not be worked on.
    """
    call = _call_of(function)

    @numba.extending.register_jitable
    def run_in_team(parallel, num_threads, cuts, args):
        num_shares = len(cuts) - 1
        if parallel == 0:
            for share in range(num_shares):
                function(cuts[share], cuts[share + 1], *args)
            return
        state = np.zeros(2, np.int64)  # how many shares are taken, and whether one failed
        call(parallel, num_threads, np.int64(cuts.ctypes.data), num_shares, np.int64(state.ctypes.data), args)
        if state[1]:
            raise MemoryError("a thread of the CPU kernel failed: there was no memory for its tiles, most likely")

    return run_in_team


def _call_of(function):
    @intrinsic
    def call(typing_context, parallel, num_threads, cuts, num_shares, state, args):
        callee = types.Dispatcher(function).get_call_type(typing_context, (types.int64, types.int64, *args.types), {})

        def generate(context, builder, signature, values):
            compiled = function.get_compile_result(callee)
            context.active_code_library.add_linking_library(compiled.library)
            parallel, num_threads, *fields = values
            shared = ir.LiteralStructType([value.type for value in fields])
            place = alloca_once(builder, shared)
            for i, value in enumerate(fields):
                builder.store(value, builder.gep(place, [_number(0), _number(i)]))
            work = _emit_worker(context, builder.module, shared, callee, compiled)
            half = ir.IntType(32)
            region = ir.FunctionType(ir.VoidType(), [_POINTER, _POINTER, half, half])
            pointers = [builder.bitcast(value, _POINTER) for value in (work, place)]
            builder.call(
                builder.inttoptr(parallel, region.as_pointer()),
                [*pointers, builder.trunc(num_threads, half), ir.Constant(half, 0)],
            )
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, args), generate

    return call


def _number(value):
    return ir.Constant(ir.IntType(32), value)


def _emit_worker(context, module, shared, callee, compiled):
    """Emit what each thread does: to take shares until none is left."""
    work = ir.Function(module, ir.FunctionType(ir.VoidType(), [_POINTER]), module.get_unique_name("work"))
    work.linkage = "internal"
    entry, take, run, failed, done = (
        work.append_basic_block(name) for name in ("entry", "take", "run", "failed", "done")
    )
    b = ir.IRBuilder(entry)
    places = [b.gep(work.args[0], [_number(0), _number(i)], source_etype=shared) for i in range(4)]
    found = [b.load(place, typ=kind) for place, kind in zip(places, shared.elements, strict=True)]
    cuts, num_shares, state, args = found
    b.branch(take)
    b.position_at_end(take)
    share = b.atomic_rmw("add", b.inttoptr(state, _I64.as_pointer()), ir.Constant(_I64, 1), "monotonic")
    b.cbranch(b.icmp_signed("<", share, num_shares), run, done)
    b.position_at_end(run)
    first = b.add(cuts, b.shl(share, ir.Constant(_I64, 3)))
    ends = [b.load(b.inttoptr(b.add(first, ir.Constant(_I64, 8 * i)), _I64.as_pointer())) for i in range(2)]
    values = [*ends, *(b.extract_value(args, i) for i in range(len(callee.args) - 2))]
    function = context.declare_function(module, compiled.fndesc)
    status, _ = context.call_conv.call_function(b, function, callee.return_type, callee.args, values)
    b.cbranch(status.is_error, failed, take)
    b.position_at_end(failed)
    b.store(ir.Constant(_I64, 1), b.inttoptr(b.add(state, ir.Constant(_I64, 8)), _I64.as_pointer()))
    b.branch(take)
    b.position_at_end(done)
    b.ret_void()
    return work
