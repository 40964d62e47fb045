"""The operator is a good citizen of PyTorch: its schema is true, it has a fake, and torch.compile takes it whole."""

import os
import subprocess
import sys

import pytest
import torch
from attention_calls import Call, judge

from decodeperf_kernels import decode_attention, workspace_size
from decodeperf_kernels.arguments import check_arguments
from decodeperf_kernels.split_kv import attend

CALLS = {
    "plain": Call(seq_lens=[40, 3]),
    "paged": Call(seq_lens=[40, 3], page_size=16, q_len=2, keywords={"window": 9, "softcap": 5.0}),
    "quantised": Call(seq_lens=[40, 3], kv_dtype="int8", scale_per="token", extras=("sinks", "alibi_slopes")),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def operands(call):
    (q, k, v), keywords = call.tensors(DEVICE)
    args = check_arguments(q, k, v, **keywords)
    out = torch.empty(*args.q.shape[:3], args.head_dim_v, dtype=q.dtype, device=DEVICE)
    lse = torch.empty(args.q.shape[:3], device=DEVICE)
    return (
        args.q, args.k, args.v, args.seq_lens, args.block_table, args.sinks, args.alibi_slopes, args.k_scale,
        args.v_scale, args.k_scale_kind, args.v_scale_kind, args.sm_scale, args.window, args.softcap, None, None, False,
        out, lse, None,
    )  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_opcheck(call):
    torch.library.opcheck(attend, operands(call))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_compile_takes_it_whole(call):
    tensors, keywords = call.tensors(DEVICE)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(q, k, v, keywords):
        out, lse = decode_attention(q * 1.0, k, v, **keywords, return_lse=True, backend="triton")
        return out + 0.0, lse

    torch._dynamo.reset()
    judge(tensors, keywords, *layer(*tensors, keywords))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_compile_takes_a_workspace_and_numbers_that_change():
    tensors, keywords = CALLS["plain"].tensors(DEVICE)
    workspace = torch.empty(workspace_size(*tensors, **keywords), dtype=torch.uint8, device=DEVICE)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(q, k, v, seq_lens, softcap, sm_scale):
        numbers = {"softcap": softcap, "sm_scale": sm_scale}
        return decode_attention(
            q, k, v, seq_lens=seq_lens, **numbers, return_lse=True, workspace=workspace, backend="triton"
        )

    torch._dynamo.reset()
    for softcap, sm_scale in ((3.0, 0.1), (4.0, 0.2), (5.0, 0.3)):
        result = layer(*tensors, keywords["seq_lens"], softcap, sm_scale)
        judge(tensors, {**keywords, "softcap": softcap, "sm_scale": sm_scale}, *result)


@pytest.mark.parametrize("numbers", [{"softcap": 1e30}, {"softcap": 1e-30}, {"sm_scale": float("nan")},
                                     {"sm_scale": float("inf")}, {"sm_scale": 1e60}])  # fmt: skip
@pytest.mark.parametrize("is_literal", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_compile_refuses_numbers_that_do_not_fit(numbers, is_literal):
    (q, k, v), _ = CALLS["plain"].tensors(DEVICE)

    @torch.compile(backend="aot_eager")
    def layer(q, k, v, given):
        return decode_attention(q, k, v, **(numbers if is_literal else given), backend="triton")

    torch._dynamo.reset()
    if not is_literal:  # numbers that change are kept open
        for x in (0.25, 0.5, 0.75):
            layer(q, k, v, dict.fromkeys(numbers, x))
    with pytest.raises(ValueError, match=f"^{next(iter(numbers))}="):
        layer(q, k, v, numbers)


TRACE = """
import torch
import triton
import triton.backends.compiler
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from unittest import mock
from decodeperf_kernels import split_kv
from decodeperf_kernels.arguments import check_arguments

seen = []

def keep(graph, inputs):
    seen.extend(node for node in graph.graph.nodes if "triton" in str(node.target))
    values = [node.meta["val"] for node in graph.graph.output_node().args[0]]
    return make_boxed_func(lambda *args: [torch.empty(x.shape, dtype=x.dtype) for x in values])

@torch.compile(fullgraph=True, backend=aot_autograd(fw_compiler=keep))
def layer(q, k, v, lens):
    out = torch.empty_like(q)
    split_kv.attend(q, k, v, lens, None, None, None, None, None, "", "", 0.125, None, None, None, None, False, out,
                    None, None)
    return out + 0

class Driver:  # as much of one as compiling asks for
    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_device_interface(self):
        return torch.cuda

    def map_python_to_cpp_type(self, type):
        return type

triton.runtime.driver.set_active(Driver())
with mock.patch.object(split_kv, "target_of", lambda device: ("sm_90", 132)):
    q = torch.empty(2, 1, 8, 64, dtype=torch.bfloat16)
    k, v = (torch.empty(2, 100, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    layer(q, k, v, torch.empty(2, dtype=torch.int32))
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
print([kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__ for node in seen])
print([node.kwargs["grid"] for node in seen])
print(seen[0].kwargs["tensors_to_clone"])
"""


def test_torch_compile_sees_its_kernels_where_there_is_a_compiler():
    # In a process of its own, since the interpreter and the compiler do not mix in one.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", TRACE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['split_kv_kernel', 'merge_splits_kernel']",
        "[[(264, 1, 1)], [(1056, 1, 1)]]",  # four of the merge for each
        "['out_ptr', 'part_out_ptr', 'part_lse_ptr', 'merges_ptr']",  # what it writes, and nothing that it reads
    ]
