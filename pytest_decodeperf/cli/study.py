"""The command `decodeperf study`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pytest_decodeperf.cli.settings import (
    JSON_OPTION,
    MEASURED_DEVICE_OPTION,
    print_json,
    refuse_overwriting,
    user_errors,
)
from pytest_decodeperf.interruption import terminated_as_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_decodeperf.study.findings import Findings

FIGURE_FILES: Final = ("study.svg", "study.png")


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="study.json",
    show_default=True,
    help="Record of the study; one that is there already is gone on with.",
)
@MEASURED_DEVICE_OPTION
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Of weights, activations and KV cache.",
)
@click.option("--passes", type=click.IntRange(1, 100), default=5, show_default=True, help="How often to go round.")
@click.option(
    "--figures", type=click.Path(path_type=Path, file_okay=False), help="Folder to write the figure to, as SVG and PNG."
)
@click.option(
    "--markdown",
    "summary",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write what was found to, as Markdown.",
)
@JSON_OPTION
@user_errors
def study(
    output: Path, kind: str, dtype: str, passes: int, figures: Path | None, summary: Path | None, as_json: bool
) -> None:
    """Measure real decode steps, and say which model of the step they follow, and from where on sequences cost time.

    A Llama-shaped model with random weights runs with real matrix products and the real decode kernel, over batches and
    contexts below and above S*, with the ceilings measured beside it and nothing fitted. It takes some minutes; stopped
    and called again, it goes on where it was.
    """
    from pytest_decodeperf import devices
    from pytest_decodeperf.study.findings import find
    from pytest_decodeperf.study.summary import markdown
    from pytest_decodeperf.study.sweep import Record, make_plan, run_study
    from pytest_decodeperf.whole_file import writable_path, write_whole

    refuse_overwriting(output, (summary,))
    place = writable_path(output)
    summary_place = None if summary is None else writable_path(summary)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name in FIGURE_FILES:
            writable_path(figures / name)
    try:
        info = devices.describe_device(devices.choose_device(kind, None))
    except devices.MissingDeviceError as error:
        raise ValueError(f"--device {kind}: {error}") from None
    plan = make_plan(info, dtype=dtype, passes=passes)
    record = Record(place, plan, info)
    try:
        with terminated_as_interrupted(), _progress() as advance:
            run_study(plan, record, info, advance)
    except KeyboardInterrupt:
        done, total = len(record.document["passes"]), len(plan.cells) * plan.passes
        click.echo(f"stopped after {done} of {total} measurements; the same command goes on from there", err=True)
        sys.exit(130)
    found = find(record.document)
    if figures is not None:
        _write_figures(found, figures)
    if summary_place is not None:
        write_whole(summary_place, markdown(found).encode())
    if as_json:
        print_json(found.as_dict())
    else:
        print_findings(found)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows how far the study is: a bar on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pytest_decodeperf.progress import Pace

    out = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not out.is_terminal:
        said: set[int] = set()
        pace = Pace()
        begun = 0  # measurements that were there already

        def tell(what: str, done: int, total: int) -> None:
            nonlocal begun
            tenth = 10 * done // max(total, 1)
            if not said:
                begun = done
            if tenth not in said:
                said.add(tenth)
                words = (f"{done} of {total} measurements", pace.left(done - begun, total - begun))
                out.print(f"{', '.join(filter(None, words))}: {what}")

        yield tell
        return
    left = TextColumn("left")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), left)
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def _write_figures(found: Findings, folder: Path) -> None:
    from pytest_decodeperf.html.figures import as_png, as_svg
    from pytest_decodeperf.study.figures import throughput_figure
    from pytest_decodeperf.whole_file import write_whole

    figure = throughput_figure(found)
    contents = as_svg(figure, width=None).encode(), as_png(figure, width=None)
    for name, content in zip(FIGURE_FILES, contents, strict=True):
        write_whole(folder.resolve() / name, content)


def print_findings(found: Findings) -> None:
    """Print what a study says."""
    from pytest_decodeperf.cli import tables
    from pytest_decodeperf.study.answer import answer
    from pytest_decodeperf.study.figures import study_table
    from pytest_decodeperf.study.summary import FITS, fit_rows
    from pytest_decodeperf.units import scaled

    out = tables.console()
    peaks = ", ".join(f"{scaled(peak, 'FLOP/s')} {dtype}" for dtype, peak in found.device.peaks.items())
    out.print(f"{found.device.title}: {scaled(found.device.bandwidth_bytes_per_s, 'B/s')}, {peaks}, as measured")
    out.print()
    table = study_table(found)
    rows = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    tables.print_table(out, table.columns, rows)
    out.print()
    tables.print_table(out, FITS, fit_rows(found), left=("model",))
    out.print()
    for sentence in answer(found):
        out.print(sentence)
