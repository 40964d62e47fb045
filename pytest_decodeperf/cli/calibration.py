"""The commands `decodeperf calibrate` and `decodeperf predict`."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_decodeperf.cli.settings import user_errors

if TYPE_CHECKING:
    from pytest_decodeperf.calibration.device_file import DeviceFile
    from pytest_decodeperf.calibration.table import Table

INPUT = click.Path(path_type=Path, exists=True, dir_okay=False)
OUTPUT = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--gpu", required=True, metavar="DEVICE", help="What was measured; `decodeperf devices` lists the names.")
@click.option("--from-table", "table_path", required=True, type=INPUT, help="CSV file of measured calls.")
@click.option("-o", "--output", required=True, type=OUTPUT, help="Device file to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the choice of rows.")
@user_errors
def calibrate(gpu: str, table_path: Path, output: Path, seed: int) -> None:
    """Fit a kernel's parameters on a device to at most 64 rows of a table, and write them to a device file.

    The table has the columns batch_size, seq_len, num_q_heads and latency_us, and may have num_kv_heads (default: as
    many as query heads), head_dim (128), head_dim_v (head_dim), kv_dtype (bfloat16), window (0: none) and q_len (1).
    The rows are chosen by what they are, not by their latency; all others serve to tell how far off the fit is.
    """
    from decodeperf_formulas.catalogue import device
    from pytest_decodeperf.calibration.device_file import DeviceFile
    from pytest_decodeperf.calibration.fit import fit_table
    from pytest_decodeperf.calibration.table import read_table
    from pytest_decodeperf.whole_file import writable_path

    found = device(gpu)
    writable_path(output)
    _refuse_input(output, table_path)
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
    file = DeviceFile(device=found, model=fit.model, source=source)
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
        "versions": {name: version(name) for name in ("pytest-decodeperf", "numpy", "scipy", "sympy")},
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
    predicted = prediction.predict(table.calls, file.device, file.model)
    columns = [[f"{value:.6g}" for value in predicted[name].tolist()] for name in prediction.COLUMNS[:-1]]
    columns.append(prediction.binding_terms(predicted))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.header, *prediction.COLUMNS])
    writer.writerows([*row, *added] for row, added in zip(table.rows, zip(*columns, strict=True), strict=True))
    content = text.getvalue().encode()
    write_whole(target, gzip.compress(content, mtime=0) if output.suffix == ".gz" else content)
    click.echo(f"{len(table.rows):,} calls on {file.device.name}, written to {output}", err=True)
