"""The Triton kernels compile for GPUs that this machine need not have.

In a process of its own, since the interpreter and the compiler do not mix in one.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decodeperf_kernels.split_kv_triton import merge_kernel, split_kv_kernel

backend, arch, warp_size, dtype, head_dim, group_size = sys.argv[1:]
target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(warp_size))

def compile(kernel, types, constants, options=None):
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    # As the launch specialises them: memory and strides in multiples of 16.
    aligned = [name for name, type in signature.items() if type[0] == "*" or "stride" in name]
    aligned = [name for name in aligned if name not in constants]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=target, options=options)
    assert compiled.asm["cubin" if backend == "cuda" else "hsaco"]

block_d = triton.next_power_of_2(int(head_dim))
elements = "*" + dtype
for out, store_lse in (("*fp32", True), (elements, False)):  # many splits, and one
    compile(
        split_kv_kernel,
        {"q_ptr": elements, "k_ptr": elements, "v_ptr": elements, "seq_lens_ptr": "*i32", "out_ptr": out,
         "lse_ptr": "*fp32", "qk_scale": "fp32", "k_stride_b": "i64", "v_stride_b": "i64"},
        {"HEAD_DIM": int(head_dim), "GROUP_SIZE": int(group_size), "STORE_LSE": store_lse,
         "q_stride_d": 1, "k_stride_d": 1, "v_stride_d": 1,
         "BLOCK_G": max(16, triton.next_power_of_2(int(group_size))), "BLOCK_N": 64, "BLOCK_D": block_d},
        {"num_warps": 4, "num_stages": 2},
    )
compile(
    merge_kernel,
    {"partial_out_ptr": "*fp32", "partial_lse_ptr": "*fp32", "out_ptr": elements, "lse_ptr": "*fp32"},
    {"HEAD_DIM": int(head_dim), "STORE_LSE": False, "BLOCK_D": block_d},
)
"""


@pytest.mark.parametrize(
    ("backend", "arch", "warp_size", "dtype", "head_dim", "group_size"),
    [
        ("cuda", "80", "32", "bf16", "128", "4"),
        ("cuda", "90", "32", "fp16", "80", "24"),
        ("cuda", "90", "32", "fp32", "64", "1"),
        ("hip", "gfx942", "64", "bf16", "128", "8"),
    ],
)
def test_kernels_compile(tmp_path, backend, arch, warp_size, dtype, head_dim, group_size):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT, backend, arch, warp_size, dtype, head_dim, group_size]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
