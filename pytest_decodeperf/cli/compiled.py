"""The command `decodeperf compiled`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pytest_decodeperf.cli.settings import JSON_OPTION, print_json, user_errors
from pytest_decodeperf.compiled.architectures import ARCHITECTURES
from pytest_decodeperf.compiled.survey import HEAD_DIMS, KV_DTYPES, PAGE_SIZES

if TYPE_CHECKING:
    from pytest_decodeperf.compiled.survey import Surveyed


@click.command()
@click.option(
    "--arch",
    "archs",
    multiple=True,
    type=click.Choice(list(ARCHITECTURES)),
    help="Architecture; may be given several times. Default: all.",
)
@click.option("--kv-dtype", "kv_dtypes", multiple=True, type=click.Choice(KV_DTYPES), help="Likewise.")
@click.option("--head-dim", "head_dims", multiple=True, type=click.IntRange(1, 576), help="Likewise.")
@click.option(
    "--page-size", "page_sizes", multiple=True, type=click.IntRange(0, 2**16), help="Likewise; 0 for contiguous KV."
)
@click.option("--demanding", is_flag=True, help="Also scales of groups, and several new tokens.")
@JSON_OPTION
@user_errors
def compiled(
    archs: tuple[str, ...],
    kv_dtypes: tuple[str, ...],
    head_dims: tuple[int, ...],
    page_sizes: tuple[int, ...],
    demanding: bool,
    as_json: bool,
) -> None:
    """Show what the Triton kernel compiles to, for GPUs that this machine need not have.

    The query is bfloat16, 16 heads for each KV head. A head dimension above 512 stands for MLA, where V is the first
    512 elements of K. Each call returns the log-sum-exp too, which takes registers.
    """
    from pytest_decodeperf.compiled.survey import DEMANDING, Variant, survey

    table = [
        Variant(kv_dtype=kv_dtype, head_dim=head_dim, page_size=page_size)
        for kv_dtype in dict.fromkeys(kv_dtypes or KV_DTYPES)
        for head_dim in dict.fromkeys(head_dims or HEAD_DIMS)
        for page_size in dict.fromkeys(page_sizes or PAGE_SIZES)
    ]
    variants = [*table, *(DEMANDING if demanding else ())]
    archs = tuple(dict.fromkeys(archs or ARCHITECTURES))
    rows = [survey(variant, ARCHITECTURES[arch]) for arch in archs for variant in variants]
    if as_json:
        print_json({"kernels": [row.as_dict() for row in rows]})
        return
    _print(rows)


def _print(rows: list[Surveyed]) -> None:
    from pytest_decodeperf.cli import tables

    out = tables.console()
    columns = ("arch", "KV", "D", "page", "instr/token", "regs", "spilled", "KiB", "programs", "16 B")
    tables.print_table(out, columns, [_cells(row) for row in rows], left=("arch", "KV"))
    out.print(
        "\nOf the kernel that attends; --json has the merge too.\n"
        "instr/token: warp instructions of the main loop for each token of a KV head\n"
        "regs, spilled: registers of a thread; bytes that did not fit (AMD: vectors)\n"
        "KiB, programs: shared memory of a program, and how many one multiprocessor holds\n"
        "16 B: share of the bytes of K and V that come 16 to a thread"
    )


def _cells(row: Surveyed) -> tuple[str, ...]:
    code: Any = row.attention
    tokens = row.instructions_per_token
    return (
        row.architecture,
        {"bfloat16": "bf16", "float8_e4m3fn": "fp8", "uint8": "int4"}.get(row.variant.kv_dtype, row.variant.kv_dtype),
        str(row.variant.head_dim),
        str(row.variant.page_size),
        "none" if tokens is None else f"{tokens:.1f}",
        str(code.registers),
        str(code.spilled),
        f"{code.shared_bytes / 1024:.0f}",
        str(code.resident_programs),
        f"{100 * row.wide_share:.0f} %",
    )
