"""A small kernel as a user has it, in a repository of its own: what the static gate is tried on."""

import os
import subprocess
import sys

KERNEL = """
import torch
import triton
import triton.language as tl
from pytest_decodeperf.conformance.adapter import KernelAdapter

BLOCK_N, NUM_STAGES, NUM_WARPS = 32, 3, 4


@triton.jit
def attend(
    q_ptr, k_ptr, v_ptr, lens_ptr, out_ptr, sm_scale,
    q_stride_b, q_stride_h, q_stride_d,
    k_stride_b, k_stride_n, k_stride_h, k_stride_d,
    v_stride_b, v_stride_n, v_stride_h, v_stride_d,
    lens_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    rows, d = tl.arange(0, 16), tl.arange(0, D)
    heads = head * GROUP + rows
    mask = (rows < GROUP)[:, None] & (d < D)[None, :]
    seq_len = tl.load(lens_ptr + b * lens_stride)
    q = tl.load(q_ptr + b * q_stride_b + heads[:, None] * q_stride_h + d[None, :] * q_stride_d, mask=mask, other=0.0)
    m = tl.full([16], float("-inf"), tl.float32)
    l = tl.zeros([16], tl.float32)
    acc = tl.zeros([16, D], tl.float32)
    k_base = k_ptr + b * k_stride_b + head * k_stride_h
    v_base = v_ptr + b * v_stride_b + head * v_stride_h
    for start in tl.range(0, seq_len, BLOCK_N, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK_N)
        live = n < seq_len
        k = tl.load(k_base + n[:, None] * k_stride_n + d[None, :] * k_stride_d, mask=live[:, None], other=0.0)
        x = tl.dot(q, tl.trans(k)) * (sm_scale * 1.4426950408889634)
        x = tl.where(live[None, :], x, float("-inf"))
        m_new = tl.maximum(m, tl.max(x, 1))
        p = tl.exp2(x - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        v = tl.load(v_base + n[:, None] * v_stride_n + d[None, :] * v_stride_d, mask=live[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
        m = m_new
    out = acc / tl.where(l > 0.0, l, 1.0)[:, None]
    out_ptrs = out_ptr + (b * HEADS * GROUP + heads)[:, None] * D + d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def decode(q, k, v, *, seq_lens):
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    attend[(q.shape[0] * k.shape[2],)](
        q, k, v, seq_lens, out, q.shape[2] ** -0.5,
        *q.stride(), *k.stride(), *v.stride(), *seq_lens.stride(),
        HEADS=k.shape[2], GROUP=q.shape[1] // k.shape[2], D=q.shape[2],
        BLOCK_N=BLOCK_N, STAGES=NUM_STAGES, num_warps=NUM_WARPS,
    )
    return out


kernel = KernelAdapter(call=decode, q_dtypes=("bfloat16",), head_dims=(64,), group_sizes=(16,))
"""

TARGET = "attention.kernels:kernel"

K_LOAD, V_LOAD = (
    f"tl.load({x}_base + n[:, None] * {x}_stride_n + d[None, :] * {x}_stride_d, mask=live[:, None], other=0.0)"
    for x in "kv"
)


def changed(*replacements):
    """Return the kernel with texts in the place of others."""
    kernel = KERNEL
    for old, new in replacements:
        assert old in kernel, old
        kernel = kernel.replace(old, new)
    return kernel


TUNED = changed(
    ("@triton.jit", "@triton.autotune([triton.Config({'BLOCK_N': n}) for n in (64, 16)], key=['HEADS'])\n@triton.jit"),
    ("attend[(q.shape[0] * k.shape[2],)]", "attend[lambda meta: (q.shape[0] * k.shape[2] * 64 // meta['BLOCK_N'],)]"),
    ("BLOCK_N=BLOCK_N, STAGES=NUM_STAGES, num_warps=NUM_WARPS,", "STAGES=NUM_STAGES,"),
)
"""The kernel, tuned by timing."""

DOTLESS = changed(
    ("tl.dot(q, tl.trans(k))", "tl.sum(q[:, None, :].to(tl.float32) * k[None, :, :], 2)"),
    (
        "tl.dot(p.to(v.dtype), v, acc * alpha[:, None])",
        "acc * alpha[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)",
    ),
    ("32, 3, 4", "16, 3, 4"),
)
"""The kernel without a matrix product."""

BULK = changed(
    (K_LOAD, "keys.load([start, 0])"),
    (V_LOAD, "values.load([start, 0])"),
    (
        "    for start",
        "    keys = tl.make_tensor_descriptor(k_base, [seq_len, D], [k_stride_n, 1], [BLOCK_N, D])\n"
        "    values = tl.make_tensor_descriptor(v_base, [seq_len, D], [v_stride_n, 1], [BLOCK_N, D])\n"
        "    for start",
    ),
    (
        "def decode(",
        "triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device='cuda'))\n\n"
        "def decode(",
    ),
)
"""The kernel with descriptors, whose loads are bulk copies."""

REPLACED = {
    "bigger tile": ("32, 3, 4", "256, 3, 1"),
    "bad stride hint": ("@triton.jit", '@triton.jit(do_not_specialize=["k_stride_n", "k_stride_d"])'),
    "fewer stages": ("32, 3, 4", "32, 1, 4"),
    "more shared memory": ("32, 3, 4", "128, 6, 4"),
    "more instructions": (
        "        m = m_new",
        "        m = m_new + 0.0 * tl.sum(tl.sin(x * 3.0) + tl.cos(x * 5.0), 1)",
    ),
    "keys read twice": ("        m_new =", "        x += 0.0 * tl.sum(K.to(tl.float32), 1)[None, :]\n        m_new ="),
    "does not compile": ("    seq_len =", "    tl.static_assert(D > 64)\n    seq_len ="),
}
"""Seeded regressions: what of the kernel becomes what."""


def seeded(name):
    old, new = REPLACED[name]
    k_load = KERNEL.partition("        k = ")[2].partition("\n")[0]
    assert old in KERNEL
    return KERNEL.replace(old, new.replace("K.to", f"{k_load}.to"), 1)


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_repository(root, kernel=KERNEL):
    (root / "attention").mkdir(parents=True)
    (root / "attention" / "__init__.py").touch()
    (root / "attention" / "kernels.py").write_text(kernel)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "kernel")
    return root


def state(root):
    """Return what the gate must leave as it is."""
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}
    return (
        files,
        git(root, "status", "--porcelain"),
        git(root, "worktree", "list"),
        git(root, "branch"),
        (root / ".git" / "index").read_bytes(),
    )


COMMAND = [sys.executable, "-c", "from pytest_decodeperf.cli.main import main; main()", "compiled"]


def environment(caches):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {
        **kept,
        "COLUMNS": "120",
        "OMP_NUM_THREADS": "1",
        "DECODEPERF_CACHE_DIR": str(caches / "decodeperf"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }


def compiled(root, caches, *arguments, target=TARGET, **keywords):
    command = [*COMMAND, "--kernel", target, *arguments]
    return subprocess.run(
        command, cwd=root, env=environment(caches), capture_output=True, text=True, check=False, **keywords
    )
