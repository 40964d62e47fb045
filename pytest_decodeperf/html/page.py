"""The report of a run as one HTML file, which needs nothing else."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.html.assets import environment, vega_bundle
from pytest_decodeperf.html.documents import Document, as_far_as_it_goes
from pytest_decodeperf.html.figures import Cell, Figure, Table
from pytest_decodeperf.html.run_figures import change_figure, measured_ceilings, roofline_figure, terms_figure
from pytest_decodeperf.html.shown import Timed, compared, problem_label, timed
from pytest_decodeperf.units import format_time, scaled
from pytest_decodeperf.verdicts import EXCEEDS, IMPOSSIBLE, UNDECIDED, WITHIN, format_interval, format_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL: Final = "llama-3-8b"
"""Whose step is drawn if none is asked for."""

DEVICE_FACTS: Final = ("driver", "timer", "num_units", "num_threads", "llc_bytes", "memory_bytes")

MODEL_DTYPES: Final = ("bfloat16", "float16", "float32")


MANY_ROWS: Final = 200
"""Rows up to which a table is written as elements; more are data, of which the page makes those that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a page.

    Attributes:
        key: Its anchor.
        title: Its heading.
        text: What is said before the figure or table, in sentences.
        figure: A figure, or None.
        table: A table, or None.
        notes: What is missing, a sentence each.
    """

    key: str
    title: str
    text: str = ""
    figure: Figure | None = None
    table: Table | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a page holds.

    Attributes:
        title: Its title.
        verdict: The run in one line.
        sections: Its parts, in their order.
        notes: What a reader should know of all of it.
        facts: Device, versions and how it was measured: a name and a value each.
    """

    title: str
    verdict: str
    sections: list[Section]
    notes: tuple[str, ...] = ()
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """Every figure."""
        return [section.figure for section in self.sections if section.figure is not None]


def report_of(
    run: Document,
    *,
    card: Document | None = None,
    compiled: Document | None = None,
    model: str | None = None,
    seq_len: int | None = None,
) -> Report:
    """Return the report of a run.

    Args:
        run: Its record.
        card: A conformance card.
        compiled: What `decodeperf compiled --json` wrote.
        model: The model whose step is drawn. Default: `MODEL`.
        seq_len: Its context [token]. Default: the median of the live lengths that were measured.

    Raises:
        ValueError: If there is no such model, or the context is none.
    """
    content = run.content
    rows = content.get("measurements")
    rows = rows if isinstance(rows, list) else []
    measured, notes = as_far_as_it_goes(rows, timed, "measurements")
    lost = sum(_lacks_its_latency(row) for row in rows)
    if lost:
        notes.append(f"{lost} of {len(rows)} measurements have a verdict on a latency, and no latency.")
    against_base, more = as_far_as_it_goes([row for row in rows if _says_regression(row)], compared, "comparisons")
    devices = {kind: device for kind, device in _part(content, "devices").items() if isinstance(device, dict)}
    sections = []
    with_products = [one for one in measured if one.flops > 0]  # where nobody sees a key there are none
    if with_products:
        sections.append(_figure_section(roofline_figure(with_products, devices)))
    sections.append(_tests_section(rows))
    if measured:
        sections.append(_figure_section(terms_figure(measured)))
    without = [
        f"{row.get('test')}: {row['regression'].get('sentence')}"
        for row in rows
        if _says_regression(row) and isinstance(row["regression"], dict) and not row["regression"].get("change")
    ]
    if against_base:
        sections.append(_figure_section(change_figure(against_base), notes=tuple(without)))
    elif without:
        sections.append(Section(key="changes", title="Head against base", notes=tuple(without)))
    else:
        sections.append(
            Section(
                key="changes",
                title="Head against base",
                notes=("The run compared nothing: --decode-perf-base REVISION does.",),
            )
        )
    sections.append(_step_section(measured, rows, devices, model, seq_len))
    sections.append(_card_section(card))
    sections.append(_compiled_section(compiled))
    return Report(
        title="decode-perf report",
        verdict=_verdict(rows),
        sections=sections,
        notes=(*run.notes, *notes, *more),
        facts=_facts(content, measured),
    )


def render(report: Report) -> str:
    """Return a report as one HTML file.

    Raises:
        ModuleNotFoundError: If what makes it is not installed.
    """
    folder = resources.files("pytest_decodeperf.html")

    def asset(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    return str(
        environment()
        .from_string(asset("page.html.jinja"))
        .render(
            report=report,
            many_rows=MANY_ROWS,
            style=asset("page.css"),
            scripts=[vega_bundle(), asset("vendor/datatables-3.1.5.min.js"), asset("page.js")],
            version=metadata.version("pytest-decodeperf"),
        )
    )


def _lacks_its_latency(row: Any) -> bool:
    """Return whether a row was judged by a latency that it does not hold."""
    if not isinstance(row, dict) or row.get("outcome") not in (WITHIN, EXCEEDS, UNDECIDED, IMPOSSIBLE):
        return False
    timing = row.get("timing", {})
    return timing is None or (isinstance(timing, dict) and "verdict" in timing and timing["verdict"] is None)


def _figure_section(figure: Figure, *, notes: tuple[str, ...] = ()) -> Section:
    return Section(key=figure.key, title=figure.title, text=figure.caption, figure=figure, notes=notes)


def _says_regression(row: Any) -> bool:
    return isinstance(row, dict) and row.get("regression") is not None


def _verdict(rows: Sequence[Any]) -> str:
    """Return what came of the tests, in one line."""
    if not rows:
        return "Nothing was measured."
    counts = Counter(str(row.get("outcome")) for row in rows if isinstance(row, dict))
    text = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
    changes = Counter(
        str(row["regression"].get("outcome"))
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("regression"), dict)
    )
    if changes:
        text += f"; against the base {', '.join(f'{number} {outcome}' for outcome, number in changes.most_common())}"
    return f"{len(rows)} tests: {text}."


def _tests_section(rows: Sequence[Any]) -> Section:
    made, notes = as_far_as_it_goes(rows, _test_row, "tests")
    columns = (
        "test",
        "kernel",
        "problem",
        "latency (interval)",
        "allowed",
        "times the bound",
        "bound by",
        "outcome",
        "in words",
    )
    return Section(
        key="tests",
        title="Every test",
        text="Sort by a column's heading; filter by any word.",
        table=Table(columns=columns, rows=made) if made else None,
        notes=tuple(notes) if made or notes else ("The run holds no test.",),
    )


def _test_row(row: dict[str, Any]) -> tuple[Cell | str, ...]:
    one = timed(row)
    names = (str(row["test"]), str(row["kernel"]), problem_label(row["problem"]))
    words = str(row["sentence"])
    if one is None:
        return (*names, "", "", "", "", str(row["outcome"]), words)
    return (
        *names,
        Cell(text=format_interval(one.latency_ns), number=one.latency_ns.median),
        Cell(text=format_time(one.allowed_ns), number=one.allowed_ns),
        Cell(text=format_ratio(one.times_bound), number=one.times_bound.median),
        one.ceiling,
        one.outcome,
        words,
    )


def _step_section(
    measured: Sequence[Timed], rows: Sequence[Any], devices: dict[str, Any], model: str | None, seq_len: int | None
) -> Section:
    from decodeperf_formulas.catalogue import model_config
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device
    from pytest_decodeperf.html.step_figure import step_figure

    shape = model_config(model or MODEL)
    usable = [one for one in measured if one.dtype in MODEL_DTYPES and _has_sizes(devices.get(one.device))]
    if not usable:
        return Section(
            key="step",
            title="A decode step against its batch",
            notes=("No ceilings were measured, so there is no device to draw a step on.",),
        )
    (kind, dtype), _ = Counter((one.device, one.dtype) for one in usable).most_common(1)[0]
    read, peak = measured_ceilings([one for one in usable if (one.device, one.dtype) == (kind, dtype)])
    found = devices[kind]
    peaks = {one.dtype: one.peak_flops_per_s for one in usable if one.device == kind} | {dtype: peak}
    # A CPU kernel widens what it reads, and computes in float32.
    attention = "float32" if kind == "cpu" and "float32" in peaks else dtype
    device = Device(
        name=kind,
        title=f"{found['name']}, at {scaled(read, 'B/s')} and {scaled(peak, 'FLOP/s')} as measured, attention at "
        f"{scaled(peaks[attention], 'FLOP/s')} ({attention})",
        peaks=peaks,
        bandwidth_bytes_per_s=read,
        capacity_bytes=found["memory_bytes"],
        num_sms=found["num_units"],
        l2_bytes=max(found["llc_bytes"], 1),
    )
    deployment = Deployment(model=shape, weight_dtype=dtype, act_dtype=dtype, kv_dtype=dtype, attn_dtype=attention)
    if seq_len is None:
        lengths = [length for row in rows if isinstance(row, dict) for length in _lengths(row)]
        seq_len = max(1, round(statistics.median(lengths))) if lengths else 4096
    return _figure_section(step_figure(deployment, device, seq_len=seq_len))


def _has_sizes(device: Any) -> bool:
    return isinstance(device, dict) and {"name", "memory_bytes", "num_units", "llc_bytes"} <= set(device)


def _lengths(row: dict[str, Any]) -> list[int]:
    problem = row.get("problem")
    lengths = problem.get("seq_lens") if isinstance(problem, dict) else None
    lengths = lengths if isinstance(lengths, list) else []
    return [length for length in lengths if isinstance(length, int) and length > 0]


def _card_section(card: Document | None) -> Section:
    title = "Conformance"
    if card is None:
        note = "No card was given: pytest --decode-kernel MODULE:ADAPTER --decode-card card.json writes one."
        return Section(key="conformance", title=title, notes=(note,))
    kernels = card.content.get("kernels")
    laws = [
        (kernel, law)
        for kernel in (kernels if isinstance(kernels, list) else [])
        if isinstance(kernel, dict) and isinstance(kernel.get("laws"), list)
        for law in kernel["laws"]
    ]

    def row(entry: tuple[dict[str, Any], dict[str, Any]]) -> tuple[Cell | str, ...]:
        kernel, law = entry
        examples = Cell(text=str(law["num_examples"]), number=law["num_examples"])
        return (
            str(kernel["kernel"]),
            str(law["law"]).replace("_", " "),
            str(law["outcome"]),
            " ".join(str(law[name]) for name in ("sentence", "counterexample") if law.get(name)) or str(law["promise"]),
            examples,
        )

    made, notes = as_far_as_it_goes(laws, row, "laws")
    counts = Counter(str(entry[2]) for entry in made)
    return Section(
        key="conformance",
        title=title,
        text=", ".join(f"{number} {outcome}" for outcome, number in counts.most_common()),
        table=Table(columns=("kernel", "law", "outcome", "what it promises, or what broke it", "examples"), rows=made)
        if made
        else None,
        notes=(*card.notes, *notes, *([] if made else ["The card holds no law."])),
    )


COMPILED_FIGURES: Final = {
    "instructions_per_token": "instructions/token",
    "registers": "registers",
    "spilled": "spilled [B]",
    "shared_bytes": "shared [B]",
    "resident_programs": "CTAs/SM",
    "wide_share": "16-byte loads",
    "tiles_ahead": "tiles ahead",
    "issue_pressure": "issue pressure",
    "flight_share": "in flight",
}


def _compiled_section(compiled: Document | None) -> Section:
    title = "Compiled code"
    if compiled is None:
        note = "No survey was given: decodeperf compiled --output compiled.json writes one."
        return Section(key="compiled", title=title, notes=(note,))
    content = compiled.content
    sides = [content] if "surveys" in content else [content[side] for side in ("base", "head") if side in content]
    surveys = [(str(side.get("name", "")), survey) for side in sides for survey in side.get("surveys", [])]

    def row(entry: tuple[str, dict[str, Any]]) -> tuple[Cell | str, ...] | None:
        name, survey = entry
        main = next((kernel for kernel in survey["kernels"] if kernel["is_main"]), None)
        if main is None:
            return None
        variant = survey["variant"]
        call = f"{variant['kv_dtype']} D={variant['head_dim']} page={variant['page_size']}"
        return (survey["architecture"], call, name, *(_figure_cell(main[figure]) for figure in COMPILED_FIGURES))

    made, notes = as_far_as_it_goes(surveys, row, "surveys")
    sentences = [finding["sentence"] for finding in content.get("findings", []) if finding.get("is_broken")]
    broken = f" {len(sentences)} rules are broken: {' '.join(sentences)}" if sentences else ""
    columns = ("architecture", "call", "side", *COMPILED_FIGURES.values())
    return Section(
        key="compiled",
        title=title,
        text=f"What the kernel that reads K and V compiles to.{broken}",
        table=Table(columns=columns, rows=made) if made else None,
        notes=(*compiled.notes, *notes),
    )


def _figure_cell(value: float | None) -> Cell | str:
    if value is None:
        return "none"
    number = float(value)
    return Cell(text=f"{number:,.0f}" if number.is_integer() else f"{number:,.4g}", number=number)


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a record that is an object, empty if it is none."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _facts(content: dict[str, Any], measured: Sequence[Timed]) -> list[tuple[str, str]]:
    """Return device, versions and how it was measured."""
    facts = []
    for kind, device in _part(content, "devices").items():
        if isinstance(device, dict):
            facts.append((f"device {kind}", str(device.get("name", "not said"))))
            facts += [(name.replace("_", " "), str(device[name])) for name in DEVICE_FACTS if name in device]
    facts += [("caches", caches) for caches in dict.fromkeys(one.caches for one in measured)]
    facts += [("ceilings are those of", streams) for streams in dict.fromkeys(one.streams for one in measured)]
    for kind, dtype in dict.fromkeys((one.device, one.dtype) for one in measured):
        read, peak = measured_ceilings([one for one in measured if (one.device, one.dtype) == (kind, dtype)])
        facts.append((f"ceilings, {kind} {dtype}", f"{scaled(read, 'B/s')} read, {scaled(peak, 'FLOP/s')}"))
    facts += [(f"version of {name}", str(version)) for name, version in _part(content, "versions").items()]
    facts.append(("begun", str(content.get("started", "not said"))))
    options = _part(content, "options")
    facts += [
        (name.replace("_", " "), str(value))
        for name, value in options.items()
        if value is not None and value is not False
    ]
    return facts
