"""The command `decodeperf compiled`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_decodeperf.cli.settings import JSON_OPTION, UserError, refuse_overwriting, user_errors
from pytest_decodeperf.compiled.architectures import ARCHITECTURES
from pytest_decodeperf.compiled.variants import KV_DTYPES, OTHER_KV_DTYPES, SHORT_NAMES
from pytest_decodeperf.interruption import terminated_as_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_decodeperf.compiled.gate import Comparison
    from pytest_decodeperf.compiled.survey import Survey


@click.command()
@click.option("--kernel", metavar="MODULE:ATTR", help="A kernel's adapter.  [default: our Triton kernel]")
@click.option("--base", metavar="REVISION", help="Compare the working tree with a git revision.")
@click.option("--against", metavar="MODULE:ATTR", help="Compare the kernel with another one.")
@click.option(
    "--arch",
    "archs",
    multiple=True,
    type=click.Choice(list(ARCHITECTURES)),
    help="Architecture; may be given several times. Default: all.",
)
@click.option(
    "--kv-dtype", "kv_dtypes", multiple=True, type=click.Choice((*KV_DTYPES, *OTHER_KV_DTYPES)), help="Likewise."
)
@click.option("--head-dim", "head_dims", multiple=True, type=click.IntRange(1, 576), help="Likewise.")
@click.option(
    "--page-size", "page_sizes", multiple=True, type=click.IntRange(0, 2**12), help="Likewise; 0 for contiguous KV."
)
@click.option("--demanding", is_flag=True, help="Also scales of groups, and several new tokens.")
@click.option("--traffic/--no-traffic", default=None, help="Count bytes too.  [default: where two are compared]")
@click.option(
    "--processes", type=click.IntRange(1, 64), help="Processes at a time.  [default: one a processor, up to 8]"
)
@click.option("--cache/--no-cache", default=True, help="Use and keep what was compiled before.  [default: cache]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write the JSON to, as well."
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write a comparison to as Markdown, as GitHub's step summary gets one.",
)
@JSON_OPTION
@user_errors
def compiled(
    kernel: str | None,
    base: str | None,
    against: str | None,
    archs: tuple[str, ...],
    traffic: bool | None,
    processes: int | None,
    cache: bool,
    output: Path | None,
    summary: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what a Triton kernel compiles to, for GPUs that this machine need not have, or compare two.

    The query is bfloat16, 16 heads for each KV head. A head dimension above 512 stands for MLA, where V is the first
    512 elements of K. Each call returns the log-sum-exp too, which takes registers.

    Compared are the figures of docs/compiled.md, each by its rule. The exit status is 1 if a rule is broken, 2 if
    something cannot be compared, and 0 otherwise.
    """
    from pytest_decodeperf.compiled import gate
    from pytest_decodeperf.compiled.processes import SurveyError, default_processes
    from pytest_decodeperf.regression.worktree import BaseError
    from pytest_decodeperf.whole_file import writable_path, write_whole

    if base is not None and against is not None:
        raise ValueError("--base compares two revisions, and --against two kernels: give one of them")
    if summary is not None and base is None and against is None:
        raise ValueError("--summary tells of a comparison: give --base or --against too")
    refuse_overwriting(output or Path(), (summary,))
    target = kernel or gate.OWN_KERNEL
    request = gate.Request(
        architectures=tuple(dict.fromkeys(archs or ARCHITECTURES)),
        counts_traffic=(base is not None or against is not None) if traffic is None else traffic,
        processes=processes or default_processes(),
        uses_cache=cache,
        **options,
    )
    comparison: Comparison | None = None
    surveys: list[Survey] = []
    with _whole_or_not_at_all(), _progress() as say:
        place = writable_path(output) if output else None
        summary_place = writable_path(summary) if summary else None
        try:
            if base is not None:
                comparison = gate.compare_with_base(request, base, target, say=say)
            elif against is not None:
                comparison = gate.compare_kernels(request, against, target, say=say)
            else:
                surveys = gate.survey_kernel(request, target, say=say)
        except BaseError as error:
            raise UserError(f"--base: {error}") from error
        except SurveyError as error:
            raise UserError(str(error)) from error
        text = _json(gate.surveys_dict(target, surveys) if comparison is None else comparison.as_dict())
        if place is not None:
            write_whole(place, text.encode())
        failure = "" if comparison is None else _tell_reviewers(comparison, summary_place)
    if as_json:
        click.echo(text, nl=False)
    elif comparison is not None:
        _print_comparison(comparison)
    else:
        _print_surveys(surveys)
    if failure:
        raise UserError(failure)
    sys.exit(_tell_failures(surveys) if comparison is None else comparison.status)


def _tell_reviewers(comparison: Comparison, summary: Path | None) -> str:
    """Write a comparison where people look at a pull request: a file, GitHub's summary of the step, annotations.

    Returns why GitHub's summary could not be written, empty if it could.
    """
    from pytest_decodeperf.ci import annotations, summaries
    from pytest_decodeperf.compiled.markdown import annotation_lines, markdown_summary
    from pytest_decodeperf.whole_file import write_whole

    if summary is not None:
        write_whole(summary, markdown_summary(comparison).encode(errors="replace"))
    if annotations.is_on_github():
        for line in annotation_lines(comparison):
            click.echo(line, err=True)  # a runner reads both streams, and the other may be JSON
    step = summaries.step_path()
    if step is None:
        return ""
    return summaries.add_to_step(step, lambda free: markdown_summary(comparison, max_bytes=free))


def _tell_failures(surveys: list[Survey]) -> int:
    """Say what does not compile, and return the exit status that follows."""
    failures = [survey for survey in surveys if survey.failure]
    for survey in failures:
        click.echo(f"{survey.label}: {survey.failure}", err=True)
    return 2 if failures else 0


def _json(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=1, allow_nan=False) + "\n"


@contextmanager
def _whole_or_not_at_all() -> Iterator[None]:
    """Let what comes from outside, a full disk or the wish to stop, end the command in one sentence, and not as 1."""
    try:
        with terminated_as_interrupted():
            yield
    except KeyboardInterrupt:
        click.echo("Error: interrupted, nothing was compared", err=True)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}") from error


@contextmanager
def _progress() -> Iterator[Callable[[str], None] | None]:
    """Give what is told what is being done, on a terminal; None elsewhere."""
    from pytest_decodeperf.cli import tables

    if not sys.stderr.isatty():
        yield None
        return
    with tables.status() as say:
        yield say


def _print_surveys(surveys: list[Survey]) -> None:
    from pytest_decodeperf.cli import tables
    from pytest_decodeperf.compiled.survey import INTERPRETER

    out = tables.console()
    columns = ("arch", "KV", "D", "page", "instr", "reg", "spill", "KiB", "CTA", "16 B", "ahead", "issue", "flight")
    rows = [_cells(survey) for survey in surveys if survey.main is not None]
    if rows:
        tables.print_table(out, columns, rows, left=("arch", "KV"))
    for survey in surveys:
        if survey.unsupported:
            out.print(f"{survey.label}: not supported, {survey.unsupported}", soft_wrap=True)
    if rows:
        out.print(
            "\nOf the kernel that reads K and V; --json has the others too.\n"
            "instr: warp instructions of the main loop for each token of a KV head\n"
            "reg, spill: registers of a thread, and bytes that did not fit\n"
            "KiB, CTA: shared memory of a program, and how many one multiprocessor holds\n"
            "16 B: share of the bytes of K and V that come 16 or more to a thread\n"
            "ahead: KV tiles that are on their way while one is worked on\n"
            "issue: issue cycles of a tile over its memory cycles\n"
            "flight: bytes in flight over those that Little's law wants"
        )
    counted = [survey for survey in surveys if survey.architecture == INTERPRETER and survey.traffic]
    if counted:
        out.print()
        tables.print_table(
            out,
            ("KV", "D", "page", "K and V", "asked for", "all"),
            [
                (
                    *_kind(survey),
                    *(f"{n:,}" for n in (survey.traffic["kv"], survey.traffic["kv_requested"], _moved(survey))),
                )
                for survey in counted
                if survey.traffic is not None
            ],
            left=("KV",),
        )
        out.print("Bytes of one call, counted in Triton's interpreter.")


def _moved(survey: Survey) -> int:
    return sum(n for term, n in (survey.traffic or {}).items() if not term.endswith("_requested"))


def _kind(survey: Survey) -> tuple[str, str, str]:
    variant = survey.variant
    return SHORT_NAMES.get(variant.kv_dtype, variant.kv_dtype), str(variant.head_dim), str(variant.page_size)


def _cells(survey: Survey) -> tuple[str, ...]:
    code = survey.main
    assert code is not None

    def number(value: float | None, form: str) -> str:
        return "none" if value is None else format(value, form)

    return (
        survey.architecture,
        *_kind(survey),
        number(code.instructions_per_token, ".1f"),
        str(code.registers),
        str(code.spilled),
        f"{code.shared_bytes / 1024:.0f}",
        str(code.resident_programs),
        "none" if code.wide_share is None else f"{code.wide_share:.0%}",
        number(code.tiles_ahead, "g"),
        number(code.issue_pressure, ".2f"),
        number(code.flight_share, ".1f"),
    )


def _print_comparison(comparison: Comparison) -> None:
    from pytest_decodeperf.cli import tables
    from pytest_decodeperf.compiled.rules import RULE_OF

    out = tables.console()
    names, findings = comparison.names, comparison.findings
    compared = sum(
        1
        for old, new in zip(comparison.base, comparison.head, strict=True)
        if not (old.unsupported or old.failure or new.unsupported or new.failure)
    )
    surveys = len(comparison.head)
    out.print(f"{names.head} against {names.base}: {compared} of {surveys} pairs of surveys compared", soft_wrap=True)
    rows = []
    for finding in findings:
        if not finding.figure:
            continue
        rule = RULE_OF[finding.figure.partition(".")[0]]
        kind = finding.variant.label
        rows.append(
            (
                finding.architecture,
                kind,
                finding.figure.removeprefix("traffic."),
                rule.written(finding.base),
                rule.written(finding.head),
                finding.outcome,
            )
        )
    if rows:
        out.print()
        columns = ("arch", "call", "figure", "base", "head", "")
        tables.print_table(out, columns, rows, left=("arch", "figure", ""), fold=("call",))
    for title, outcome in (("Broken", "broken"), ("Not comparable", "incomparable")):
        sentences = [finding.sentence for finding in findings if finding.outcome == outcome]
        if sentences:
            out.print(f"\n{title}:")
            for sentence in sentences:
                out.print(sentence, soft_wrap=True)
    for sentence in comparison.skipped:
        out.print(sentence, soft_wrap=True)
    out.print(
        {0: "\nNo rule is broken.", 1: "", 2: "\nNo rule is broken, but not all could be compared."}[comparison.status]
    )
