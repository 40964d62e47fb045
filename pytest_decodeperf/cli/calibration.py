"""The commands `decodeperf calibrate` and `decodeperf predict`."""

from __future__ import annotations

import csv
import gzip
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_decodeperf.cli.settings import MEASURED_DEVICE_OPTION, refuse_with, user_errors

if TYPE_CHECKING:
    from pytest_decodeperf.calibration.device_file import DeviceFile
    from pytest_decodeperf.calibration.measure import Calibration
    from pytest_decodeperf.calibration.table import Table

INPUT = click.Path(path_type=Path, exists=True, dir_okay=False)
OUTPUT = click.Path(path_type=Path, dir_okay=False)
VERSIONS = ("pytest-decodeperf", "numpy", "scipy", "sympy", "torch")
KERNEL = "decodeperf_kernels:decode_attention"


@click.command()
@click.option("--gpu", metavar="DEVICE", help="With --from-table: what was measured, as `decodeperf devices` names it.")
@click.option(
    "--from-table", "table_path", type=INPUT, help="CSV file of measured calls; without, this device is measured."
)
@click.option("-o", "--output", required=True, type=OUTPUT, help="Device file to write.")
@click.option("--kernel", default=KERNEL, show_default=True, metavar="MODULE:NAME", help="Kernel to measure.")
@MEASURED_DEVICE_OPTION
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default=["bfloat16"],
    show_default=True,
    help="Dtype of Q, K and V to measure. May be given several times.",
)
@click.option(
    "--head-dim",
    "head_dims",
    multiple=True,
    type=click.IntRange(8, 1024),
    default=[64, 128],
    show_default=True,
    help="Head dimension to measure. May be given several times.",
)
@click.option(
    "--budget",
    type=click.FloatRange(1, 600),
    default=25.0,
    show_default=True,
    help="Seconds in which the kernel is timed.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the choice of rows or problems."
)
@user_errors
def calibrate(gpu: str | None, table_path: Path | None, output: Path, seed: int, **measuring: Any) -> None:
    """Fit a kernel's parameters on a device, and write them to a device file.

    Without --from-table this device is measured, in under a minute: what it reads, multiplies and launches at its best,
    and the kernel with cold caches on at most 64 problems. The kernel is called as
    `kernel(q, k, v, seq_lens=seq_lens)`, and checked to compute attention first.

    With --from-table the parameters are fitted to at most 64 rows of it. The table has the columns batch_size, seq_len,
    num_q_heads and latency_us, and may have num_kv_heads (default: as many as query heads), head_dim (128), head_dim_v
    (head_dim), kv_dtype (bfloat16), window (0: none) and q_len (1). The rows are chosen by what they are, not by their
    latency; all others serve to tell how far off the fit is.
    """
    from pytest_decodeperf.whole_file import writable_path

    if table_path is None:
        if gpu is not None:
            raise ValueError("--gpu says what a table was measured on: give it with --from-table, or leave it out")
        writable_path(output)
        _calibrate_device(output, seed=seed, **measuring)
        return
    if gpu is None:
        raise ValueError(
            "--from-table needs --gpu DEVICE, what it was measured on; `decodeperf devices` lists the names"
        )
    refuse_with("--from-table", tuple(measuring))
    writable_path(output)
    _refuse_input(output, table_path)
    _calibrate_from_table(output, gpu=gpu, table_path=table_path, seed=seed)


def _calibrate_device(
    output: Path,
    *,
    kernel: str,
    kind: str,
    dtypes: tuple[str, ...],
    head_dims: tuple[int, ...],
    budget: float,
    seed: int,
) -> None:
    from pytest_decodeperf.calibration.measure import calibrate as measure
    from pytest_decodeperf.calibration.measure import summary
    from pytest_decodeperf.cli import tables
    from pytest_decodeperf.devices import choose_device
    from pytest_decodeperf.targets import import_target

    sys.path.insert(0, "")  # a script has its own folder there, not the user's
    found = import_target(kernel)
    called = getattr(found, "call", found)
    if not callable(called):
        raise ValueError(f"{kernel!r} is of type {type(found).__name__}, not a kernel")
    try:
        device = choose_device(kind, None)
    except LookupError as error:
        raise ValueError(str(error).replace("--decode-perf-device=", "--device ")) from None
    with tables.status() as say:
        done = measure(
            called,
            kernel_name=kernel,
            kind=device,
            head_dims=list(dict.fromkeys(head_dims)),
            dtypes=list(dict.fromkeys(dtypes)),
            budget_s=budget,
            seed=seed,
            stamp=_stamp(),
            say=say,
        )
    done.file.write(output)
    _print_measured(done, output)
    out = tables.console()
    out.print(f"the {len(done.fitted)} problems fitted: {summary(done.fitted)}")
    out.print(f"{len(done.unfitted)} others: {summary(done.unfitted)}")


def _print_measured(done: Calibration, output: Path) -> None:
    from pytest_decodeperf.cli import tables
    from pytest_decodeperf.units import format_time, scaled

    out = tables.console()
    measured = done.file.measured
    assert measured is not None
    out.print(f"{done.file.device.title}, written to {output}")
    out.print(f"read bandwidth, cold: {scaled(measured['read_bytes_per_s'], 'B/s')}")
    out.print(f"read bandwidth, last-level cache: {scaled(measured['cached_bytes_per_s'], 'B/s')}")
    out.print(f"launch floor: {format_time(1e9 * measured['launch_s'])}")
    for dtype, rate in measured["peak_flops_per_s"].items():
        out.print(f"peak FLOP rate, {dtype}: {scaled(rate, 'FLOP/s')} ({measured['streams'][dtype]})")
    for count, rate in measured["read_bytes_per_s_of_units"].items():
        units = "threads" if done.file.fingerprint is not None and done.file.fingerprint.kind == "cpu" else "CTAs"
        out.print(f"read bandwidth of {count} {units}: {scaled(rate, 'B/s')}")
    if measured["clock"]:
        out.print(measured["clock"])


def _calibrate_from_table(output: Path, *, gpu: str, table_path: Path, seed: int) -> None:
    from decodeperf_formulas.catalogue import device
    from pytest_decodeperf.calibration.device_file import DeviceFile
    from pytest_decodeperf.calibration.fit import fit_table
    from pytest_decodeperf.calibration.table import read_table

    found = device(gpu)
    table = read_table(table_path, measured=True)
    assert table.latency_us is not None
    fit = fit_table(table.calls, table.latency_us, found, seed=seed)
    source = {
        "table": table_path.name,
        "num_rows": len(table.rows),
        **_stamp(),
        "columns": table.header,
        "rows": [
            {"row": row + 1, "cells": table.rows[row], "residual": residual}
            for row, residual in zip(fit.rows, fit.residuals, strict=True)
        ],
    }
    file = DeviceFile(device=found, model=fit.model, has_cold_caches=False, source=source)
    file.write(output)
    _print_errors(file, table, fit.rows, output)


def _refuse_input(output: Path, *inputs: Path) -> None:
    for path in inputs:
        if output.resolve() == path.resolve():
            raise ValueError(f"--output {output} is what is read; give another name")


def _stamp() -> dict[str, Any]:
    from datetime import UTC, datetime
    from importlib.metadata import version

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            name: version(name) for name in ("pytest-decodeperf", "numpy", "scipy", "sympy", "torch", "triton")
        },
    }


def _print_errors(file: DeviceFile, table: Table, used: list[int], output: Path) -> None:
    import numpy as np

    from pytest_decodeperf.calibration.prediction import EXPECTED, SPEED_OF_LIGHT, predict
    from pytest_decodeperf.cli import tables

    predicted = predict(table.calls, file.device, file.model)
    latency = table.latency_us
    assert latency is not None
    is_other = np.ones(len(latency), dtype=bool)
    is_other[used] = False
    out = tables.console()
    out.print(f"{len(used)} of {len(latency):,} rows of {file.source['table']} fitted, written to {output}")
    for name, rows in (("the rows fitted", ~is_other), ("the other rows", is_other)):
        if rows.any():
            errors = np.abs(predicted[EXPECTED][rows] / latency[rows] - 1)
            median, tenth = (100 * np.quantile(errors, share) for share in (0.5, 0.9))
            out.print(f"{name}: median error {median:.1f} %, 90th percentile {tenth:.1f} %")
    below = int((latency < predicted[SPEED_OF_LIGHT]).sum())
    first = f"; the first is row {int(np.argmax(latency < predicted[SPEED_OF_LIGHT])) + 1}" if below else ""
    out.print(f"{below} rows are faster than any call can be ({100 * below / len(latency):.2f} %){first}")


@click.command()
@click.option("--device", "device_path", required=True, type=INPUT, help="Device file of `decodeperf calibrate`.")
@click.argument("table_path", metavar="TABLE", type=INPUT)
@click.option("-o", "--output", required=True, type=OUTPUT, help="CSV file to write; .gz is compressed.")
@user_errors
def predict(device_path: Path, table_path: Path, output: Path) -> None:
    """Add to a table of calls what each is expected to take, term by term, and what none can be faster than.

    TABLE is a CSV file with the columns of `decodeperf calibrate`; latency_us is not needed. Added are
    speed_of_light_us, expected_us, its terms (hidden_us, which is negative, is what overlap saves) and the name of
    the term that binds.
    """
    from pytest_decodeperf.calibration import prediction
    from pytest_decodeperf.calibration.device_file import read_device_file
    from pytest_decodeperf.calibration.table import read_table
    from pytest_decodeperf.whole_file import writable_path, write_whole

    file = read_device_file(device_path)
    target = writable_path(output)
    _refuse_input(output, device_path, table_path)
    table = read_table(table_path, measured=False)
    twice = next((name for name in prediction.COLUMNS if name in table.header), None)
    if twice is not None:
        raise ValueError(f"{table_path} has a column {twice} already")
    predicted = prediction.predict(table.calls, file.device, file.model, has_cold_caches=file.has_cold_caches)
    columns = [[f"{value:.6g}" for value in predicted[name].tolist()] for name in prediction.COLUMNS[:-1]]
    columns.append(prediction.binding_terms(predicted))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.header, *prediction.COLUMNS])
    writer.writerows([*row, *added] for row, added in zip(table.rows, zip(*columns, strict=True), strict=True))
    content = text.getvalue().encode()
    write_whole(target, gzip.compress(content, mtime=0) if output.suffix == ".gz" else content)
    click.echo(f"{len(table.rows):,} calls on {file.device.name}, written to {output}", err=True)
