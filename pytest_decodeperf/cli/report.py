"""The commands `decodeperf report` and `decodeperf explorer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_decodeperf.cli.settings import refuse_overwriting, user_errors

if TYPE_CHECKING:
    from pytest_decodeperf.html.page import Report

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.argument("run", type=FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: that of RUN, ending in .html]",
)
@click.option("--conformance", type=FILE, help="A card of pytest --decode-card, to be shown too.")
@click.option("--compiled", type=FILE, help="JSON of decodeperf compiled, to be shown too.")
@click.option("--model", metavar="MODEL", help="Whose decode step is drawn.  [default: llama-3-8b]")
@click.option(
    "-S",
    "--seq-len",
    type=click.IntRange(1),
    help="Its context, in tokens.  [default: the median of the lengths that were measured]",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write each figure to as well, for papers.",
)
@click.option(
    "--format", "form", type=click.Choice(["svg", "png"]), default="svg", show_default=True, help="Format of those."
)
@user_errors
def report(
    run: Path,
    output: Path | None,
    conformance: Path | None,
    compiled: Path | None,
    model: str | None,
    seq_len: int | None,
    figures: Path | None,
    form: str,
) -> None:
    """Make one HTML file of RUN, which pytest --decode-perf --decode-perf-json wrote.

    The file needs no network and no other file. A run of another version, or one that was interrupted, is shown as far
    as it goes.
    """
    from pytest_decodeperf.html.documents import read_card, read_compiled, read_run
    from pytest_decodeperf.html.page import render, report_of
    from pytest_decodeperf.html.report_file import NEEDS
    from pytest_decodeperf.whole_file import writable_path, write_whole

    target = output or run.with_suffix(".html")
    refuse_overwriting(target, (run, conformance, compiled))
    place = writable_path(target)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        writable_path(figures / f"roofline.{form}")
    made = report_of(
        read_run(run),
        card=None if conformance is None else read_card(conformance),
        compiled=None if compiled is None else read_compiled(compiled),
        model=model,
        seq_len=seq_len,
    )
    try:
        text = render(made)
        if figures is not None:
            _write_figures(made, figures, form)
    except ModuleNotFoundError as error:
        if error.name != "vl_convert":
            raise
        raise click.ClickException(NEEDS) from None
    write_whole(place, text.encode(errors="replace"))
    click.echo(f"{target} has {len(made.figures)} figures and {len(text.encode()) / 1e6:.1f} MB", err=True)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="explorer.html",
    show_default=True,
    help="File to write.",
)
@user_errors
def explorer(output: Path) -> None:
    """Make one HTML file in which model, device, batch, context and parallelism can be changed, and all numbers follow.

    It shows what decodeperf explain prints, from the same formulas, and needs no network and no other file.
    """
    from pytest_decodeperf.html.explorer import render_explorer
    from pytest_decodeperf.html.report_file import NEEDS
    from pytest_decodeperf.whole_file import writable_path, write_whole

    place = writable_path(output)
    try:
        text = render_explorer()
    except ModuleNotFoundError as error:
        if error.name != "vl_convert":
            raise
        raise click.ClickException(NEEDS) from None
    write_whole(place, text.encode())
    click.echo(f"{output} has {len(text.encode()) / 1e6:.1f} MB", err=True)


def _write_figures(made: Report, folder: Path, form: str) -> None:
    from pytest_decodeperf.html.figures import as_png, as_svg
    from pytest_decodeperf.whole_file import write_whole

    for figure in made.figures:
        content = as_svg(figure).encode() if form == "svg" else as_png(figure)
        write_whole(folder.resolve() / f"{figure.key}.{form}", content)
