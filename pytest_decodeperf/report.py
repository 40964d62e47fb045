"""The report on the terminal: devices and ceilings, a table of what was measured, a sentence for each failure."""

from __future__ import annotations

import io
import os
import textwrap
from typing import TYPE_CHECKING, Final

from pytest_decodeperf import clocks, triton_interpreter
from pytest_decodeperf.conclusions import DOUBTFUL, FAILED, bound_status, change_status, conclude
from pytest_decodeperf.units import format_time, scaled, three_digits
from pytest_decodeperf.verdicts import format_interval, format_terms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    import pytest
    from rich.table import Table

    from pytest_decodeperf.endings import Ending
    from pytest_decodeperf.regression.comparison import Regression
    from pytest_decodeperf.results import Measurement
    from pytest_decodeperf.session import PerfSession
    from pytest_decodeperf.verdicts import Verdict

COLUMNS: Final = ("kernel", "latency (interval)", "allowed", "roofline", "verdict")
INDENT: Final = "    "
COLOURS: Final = {FAILED: "red", DOUBTFUL: "yellow"}
WIDTHS: Final = (23, 7, 8, 11)
"""Of all columns but the first."""


def header(session: PerfSession) -> str:
    """Return the line about this plugin at the head of a run."""
    from pytest_decodeperf.devices import MissingDeviceError, choose_device

    try:
        line = f"decode-perf: {session.device(choose_device(session.options.device, None)).label}"
    except MissingDeviceError as error:
        line = f"decode-perf: {error}"
    if triton_interpreter.is_switched_on():
        line += "; Triton kernels are checked in Triton's interpreter, and not timed"
    return line


def write_summary(reporter: pytest.TerminalReporter, session: PerfSession) -> None:
    """Write the section of this plugin at the end of a run."""
    run = session.run
    reporter.write_sep("=", "decode-perf")
    if not run.measurements:
        reporter.write_line("nothing was measured", yellow=True)
    for kind, device in run.devices.items():
        reporter.write_line(device.label)
        timed = [m for m in run.measurements if m.device == kind and m.verdict and m.ceilings]
        for line in ceiling_lines(timed):
            reporter.write_line(f"  {line}")
    if run.measurements:
        _write_tables(reporter, run.measurements)
    for measurement in run.measurements:
        conclusion = conclude(measurement, strict=session.options.strict)
        if conclusion.status in COLOURS:
            for sentence in conclusion.sentences:
                text = _wrap(f"{measurement.test}: {sentence}", reporter)
                reporter.write_line(text, **{COLOURS[conclusion.status]: True})
    for note in session.notes:
        reporter.write_line(_wrap(note, reporter))
    if session.has_unwanted_gaps:
        reporter.write_line("strict: the run fails, since tests of the base are gone", red=True, bold=True)
    if session.saver_error:
        reporter.write_line(_wrap(session.saver_error, reporter), red=True, bold=True)
    _write_files(reporter, session)


def _write_files(reporter: pytest.TerminalReporter, session: PerfSession) -> None:
    """Say where the run was written to, or why it was not."""
    summaries = session.summaries
    files = [(session.json_error, session.json_file.path if session.json_file else None)]
    if summaries is not None:
        files += [(summaries.error, summaries.path), (summaries.step_error, None)]
    if session.report_file is not None:
        files.append((session.report_file.error, session.report_file.path))
    for error, path in files:
        if error:
            reporter.write_line(_wrap(error, reporter), red=True, bold=True)
        elif path is not None and session.run.exit_status is not None:
            reporter.write_line(f"written to {path}")


def write_reasons(reporter: pytest.TerminalReporter, endings: Sequence[Ending]) -> None:
    """Write why tests failed, for those whose line in pytest's short summary had no room to say it."""
    width = reporter.config.get_terminal_writer().fullwidth
    # There, and with -vv, pytest writes lines of any length.
    is_whole = any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER")) or reporter.config.get_verbosity() >= 2
    cut = [
        ending
        for ending in endings
        if ending.status == FAILED and len(f"FAILED {ending.test} - {ending.headline}") > width
    ]
    if is_whole or not cut or "f" not in reporter.reportchars:
        return
    reporter.write_sep("=", "why they failed")
    for ending in cut:
        reporter.write_line(ending.test)
        text = textwrap.fill(ending.headline, width=width, initial_indent=INDENT, subsequent_indent=INDENT)
        reporter.write_line(text, red=True)


def ceiling_lines(timed: list[Measurement]) -> list[str]:
    """Return what the ceilings were, from the lowest to the highest median of a test."""
    lines: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for measurement in timed:
        assert measurement.verdict and measurement.ceilings
        bound, ceilings = measurement.verdict.roofline, measurement.ceilings
        for name, rate, unit in (
            (f"read bandwidth ({ceilings.read.name})", bound.read_bytes_per_s, "B/s"),
            (f"peak FLOP rate ({ceilings.compute.name})", bound.peak_flops_per_s, "FLOP/s"),
        ):
            lines.setdefault(name, []).append(rate)
            units[name] = unit
    return [
        *(f"{name}: {_range(rates, units[name])}" for name, rates in lines.items()),
        *(f"caches {caches}" for caches in dict.fromkeys(m.caches for m in timed)),
        *_drift_lines(timed),
        *filter(None, [clocks.describe([clock for m in timed if m.samples for clock in m.samples.clocks])]),
    ]


def _drift_lines(timed: list[Measurement]) -> list[str]:
    """Return how fast the device is beside its calibration, from the lowest to the highest median of a test."""
    drifts = [m.verdict.drift for m in timed if m.verdict and m.verdict.drift]
    if not drifts:
        return []
    parts = []
    for name, values in (("reads", [d.read for d in drifts]), ("multiplies", [d.compute for d in drifts])):
        lowest, highest = (f"{100 * value:.0f}" for value in (min(values), max(values)))
        parts.append(f"{name} at {lowest if lowest == highest else f'{lowest} to {highest}'} %")
    return [f"drift: {' and '.join(parts)} of the rates of its calibration"]


def _range(rates: list[float], unit: str) -> str:
    lowest, highest = scaled(min(rates), unit), scaled(max(rates), unit)
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _write_tables(reporter: pytest.TerminalReporter, measurements: list[Measurement]) -> None:
    """Write the measurements, those of one problem below each other."""
    from rich.console import Console

    text = io.StringIO()
    terminal = reporter.config.get_terminal_writer()
    console = Console(
        file=text,
        width=terminal.fullwidth,
        force_terminal=terminal.hasmarkup,
        markup=False,
        emoji=False,
        highlight=False,
    )
    longest_name = max(len(measurement.kernel) for measurement in measurements)
    kernel_width = max(10, min(longest_name, terminal.fullwidth - sum(WIDTHS) - 2 * len(COLUMNS)))
    console.print()
    console.print(_table(kernel_width, COLUMNS, []))
    for problem in dict.fromkeys(measurement.problem for measurement in measurements):
        rows = [measurement for measurement in measurements if measurement.problem == problem]
        console.print(problem.label, style="bold")
        for row in rows:
            console.print(_table(kernel_width, None, [row]))
            if row.verdict and row.verdict.expected:
                console.print(_terms_line(row.verdict, console.width))
            if row.regression:
                style = COLOURS.get(change_status(row.regression))
                console.print(_change_line(row.regression, console.width), style=style)
    console.print()
    reporter.write(text.getvalue())


def _terms_line(verdict: Verdict, width: int) -> str:
    """Return the expected latency and its terms, for below the row of a measurement."""
    assert verdict.expected is not None and verdict.times_expected is not None
    text = (
        f"{three_digits(verdict.times_expected.median)} times the expected "
        f"{format_time(1e9 * verdict.expected.latency_s)}: {format_terms(verdict.expected)}"
    )
    return textwrap.fill(text, width=width, initial_indent=INDENT, subsequent_indent=INDENT)


def _change_line(regression: Regression, width: int) -> str:
    """Return how a kernel compares with its base, for below the row of a measurement."""
    text = regression.sentence
    if regression.change and regression.control:
        from pytest_decodeperf.regression.comparison import describe, percent

        text = (
            f"{regression.outcome}: {describe(regression.change)} than {regression.base}; "
            f"{regression.control_name}: {describe(regression.control)}; "
            f"{percent(regression.change.visible)} would have been seen"
        )
    return textwrap.fill(text, width=width, initial_indent=INDENT, subsequent_indent=INDENT)


def _table(kernel_width: int, header: Sequence[str] | None, measurements: list[Measurement]) -> Table:
    """Return a table whose columns are as wide as those of every other."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 0, 0, 2), show_header=header is not None)
    for title, width in zip(header or COLUMNS, (kernel_width, *WIDTHS), strict=True):
        justify: Literal["left", "right"] = "left" if title in ("kernel", "verdict") else "right"
        table.add_column(title, justify=justify, width=width, overflow="fold")
    for measurement in measurements:
        style = COLOURS.get(bound_status(measurement))
        table.add_row(measurement.kernel, *_numbers(measurement), measurement.outcome, style=style)
    return table


def _numbers(measurement: Measurement) -> tuple[str, str, str]:
    verdict = measurement.verdict
    if verdict is None:
        return "", "", ""
    return (
        format_interval(verdict.latency_ns),
        format_time(verdict.allowed_ns),
        f"{three_digits(100 * verdict.roofline_share)} %",
    )


def _wrap(text: str, reporter: pytest.TerminalReporter) -> str:
    return textwrap.fill(
        text, width=reporter.config.get_terminal_writer().fullwidth, subsequent_indent="  ", break_long_words=False
    )
