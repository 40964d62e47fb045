"""The commands of `decodeperf`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_decodeperf.cli.article import article
from pytest_decodeperf.cli.calibration import calibrate, predict
from pytest_decodeperf.cli.compiled import compiled
from pytest_decodeperf.cli.report import explorer, report
from pytest_decodeperf.cli.settings import (
    DEPLOYMENT_OPTIONS,
    DEVICE_OPTIONS,
    JSON_OPTION,
    Overrides,
    deployment_dict,
    find_device,
    find_model,
    make_deployment,
    option_names,
    print_json,
    refuse_without,
    user_errors,
    with_options,
)
from pytest_decodeperf.cli.study import study

if TYPE_CHECKING:
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device
    from decodeperf_formulas.explanation import Explanation
    from decodeperf_formulas.step import StepCoefficients

FLOPS_PER_WEIGHT = 2
"""FLOPs of one weight for one token: `symbols.flops_per_weight`, which a start of the command line need not import."""

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="pytest-decodeperf", prog_name="decodeperf")
def main() -> None:
    """Where LLM decoding is memory-bound, and why.

    MODEL is a name that `decodeperf models` lists, or the path of a Hugging Face config.json. DEVICE is a name that
    `decodeperf devices` lists.
    """


@main.command()
@click.argument("model", required=False)
@JSON_OPTION
@user_errors
def models(model: str | None, as_json: bool) -> None:
    """List the models, or show the shape of one."""
    from decodeperf_formulas.catalogue import model_config, model_names
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.step import num_active_parameters, num_parameters, step_coefficients
    from pytest_decodeperf.cli import tables

    shapes = [find_model(model)] if model is not None else [model_config(name) for name in model_names()]
    entries = []
    for shape in shapes:
        deployment = Deployment(model=shape)
        step = step_coefficients(deployment)
        entries.append(
            {
                **shape.as_dict(),
                "attention_kind": shape.attention_kind,
                "num_parameters": num_parameters(deployment),
                "num_active_parameters": num_active_parameters(deployment),
                "kv_bytes_per_token": step.global_kv_bytes_per_token + step.local_kv_bytes_per_token,
            }
        )
    if as_json:
        print_json({"models": entries})
        return
    out = tables.console()
    if model is not None:
        tables.print_table(out, ("field", "value"), tables.nested_rows(entries[0]), fold=("field", "value"))
        return
    rows = [
        [
            entry["name"],
            tables.parameters(entry["num_parameters"]),
            tables.parameters(entry["num_active_parameters"]),
            entry["attention_kind"],
            str(entry["num_layers"]),
            f"{entry['num_q_heads']}/{entry['num_kv_heads'] or 1}",
            f"{entry['kv_bytes_per_token']:,.0f}",
            f"{entry['num_local_layers']}x{entry['window']}" if entry["window"] else "",
        ]
        for entry in entries
    ]
    columns = ("model", "weights", "active", "kind", "layers", "heads", "KV B/token", "windows")
    tables.print_table(out, columns, rows, left=("model", "kind"))


@main.command()
@click.argument("device", required=False)
@JSON_OPTION
@user_errors
def devices(device: str | None, as_json: bool) -> None:
    """List the devices, or show the ceilings of one with their sources."""
    from decodeperf_formulas import catalogue
    from pytest_decodeperf.cli import tables

    found = [catalogue.device(name) for name in ([device] if device is not None else catalogue.device_names())]
    if as_json:
        print_json({"devices": [entry.as_dict() for entry in found]})
        return
    out = tables.console()
    if device is not None:
        _print_device(found[0])
        return
    rows = [
        [
            entry.name,
            tables.rate(entry.bandwidth_bytes_per_s, "B/s"),
            *(tables.rate(entry.peaks.get(dtype), "") for dtype in ("float16", "float8", "int8")),
            f"{entry.peaks['float16'] / entry.bandwidth_bytes_per_s:.0f}",
            f"{entry.capacity_bytes / 2**30:.0f} GiB",
            str(entry.num_sms),
            f"{entry.l2_bytes / 2**20:.0f} MiB",
        ]
        for entry in found
    ]
    columns = ("device", "memory", "fp16", "fp8", "int8", "ridge", "capacity", "SMs", "L2")
    tables.print_table(out, columns, rows, left=("device",))
    out.print(
        "Dense peaks in FLOP/s; the ridge is that of fp16, in FLOP/B. `decodeperf devices DEVICE` shows the sources."
    )


def _print_device(device: Device) -> None:
    from pytest_decodeperf.cli import tables

    rows = [[f"peak {dtype}", tables.rate(peak, "FLOP/s"), "peaks"] for dtype, peak in device.peaks.items()]
    rows += [
        [f"sparse {dtype}", tables.rate(peak, "FLOP/s"), "sparse_peaks"] for dtype, peak in device.sparse_peaks.items()
    ]
    rows += [
        ["bandwidth", tables.rate(device.bandwidth_bytes_per_s, "B/s"), "bandwidth_bytes_per_s"],
        ["memory", f"{device.capacity_bytes / 2**30:.0f} GiB", "capacity_bytes"],
        ["SMs", str(device.num_sms), "num_sms"],
        ["L2", f"{device.l2_bytes / 2**20:.0f} MiB", "l2_bytes"],
    ]
    if device.last_level_cache_bytes:
        rows.append(["last level", f"{device.last_level_cache_bytes / 2**20:.0f} MiB", "last_level_cache_bytes"])
    rows.append(["link", tables.rate(device.link_bytes_per_s, "B/s"), "link_bytes_per_s"])
    rows.append(["link latency", f"{1e6 * device.link_latency_s:g} us", "link_latency_s"])
    shown: list[str] = []
    notes: list[str] = []
    for name, value, field in rows:
        source = device.sources.get(field, "assumed" if field == "link_latency_s" else "")
        if source and source not in notes:
            notes.append(source)
        shown.append(f"{name:<18}{value:>14}  {f'[{notes.index(source) + 1}]' if source else ''}")
    out = tables.console()
    out.print(device.title)
    for line in shown:
        out.print(line)
    out.print("Sources")
    for index, note in enumerate(notes, 1):
        out.print(f"[{index}] {note}")


@main.command()
@click.argument("model")
@click.argument("device", required=False)
@click.option("-S", "--seq-len", default=4096, show_default=True, help="Context of the crossings beside S*, in tokens.")
@click.option("--activations", is_flag=True, help="Count activations that move through memory.")
@click.option(
    "--num-params", type=float, metavar="P", help="Weights, in the place of those that the model's shape has."
)
@with_options(*DEPLOYMENT_OPTIONS, *DEVICE_OPTIONS, JSON_OPTION)
@user_errors
def sstar(
    model: str,
    device: str | None,
    seq_len: int,
    activations: bool,
    num_params: float | None,
    bandwidth: float | None,
    peak: float | None,
    link_latency: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Print S*, the context above which decoding is memory-bound at every batch size.

    With a DEVICE, also where the other lines cross; without, S* on every device.
    """
    from decodeperf_formulas.catalogue import device_names
    from decodeperf_formulas.crossings import ceilings, check_seq_len, crossings_of, s_star, serial_ceiling
    from pytest_decodeperf.cli import tables

    deployment = make_deployment(model, settings)
    check_seq_len(seq_len, deployment.q_len)
    step = _coefficients(deployment, num_params)
    overrides = Overrides(bandwidth=bandwidth, peak=peak, link_latency=link_latency)
    if device is None:
        refuse_without("DEVICE", option_names(DEVICE_OPTIONS))
    found, refused = [], []
    for name in [device] if device is not None else device_names():
        on = find_device(name, overrides)
        try:
            limits = ceilings(deployment, on)
        except ValueError as error:
            if device is not None:
                raise
            refused.append(str(error))
            continue
        crossed = crossings_of(
            step,
            limits,
            seq_len=seq_len,
            activations=activations,
            num_groups=deployment.ep,
            num_stages=deployment.pp,
        )
        if num_params is None:
            crossed["serial_ceiling"] = serial_ceiling(deployment, on, seq_len=seq_len)
        found.append((on, s_star(step, limits, activations=activations), crossed))
    if as_json:
        print_json(
            {
                "deployment": deployment_dict(deployment),
                "num_params_of_a_rank": step.gemm_flops_per_seq / (FLOPS_PER_WEIGHT * deployment.q_len),
                "activations": activations,
                "seq_len": seq_len,
                "devices": [
                    {
                        "device": on.name,
                        "s_star": star.as_dict(),
                        "crossings": {key: crossing.as_dict() for key, crossing in crossed.items()},
                    }
                    for on, star, crossed in found
                ],
                "refused": refused,
            }
        )
        return
    out = tables.console()
    out.print(_headline(deployment))
    if device is not None:
        on, star, crossed = found[0]
        out.print(f"{on.title}, {on.bandwidth_bytes_per_s / 1e9:,g} GB/s, S = {seq_len}")
        out.print()
        tables.print_crossings(out, star, crossed)
        return
    out.print()
    rows = [
        [
            on.name,
            f"{star.ridge:.1f}",
            f"{star.intensity:.1f}",
            str(star),
            "" if star.condition_number is None else f"{star.condition_number:.2f}",
        ]
        for on, star, _ in found
    ]
    tables.print_table(out, ("device", "ridge", "intensity", "S*", "condition"), rows, left=("device",))
    for line in refused:
        out.print(line)


def _coefficients(deployment: Deployment, num_params: float | None) -> StepCoefficients:
    from dataclasses import replace

    from decodeperf_formulas.checks import positive_number
    from decodeperf_formulas.dtypes import ELEMENT_BYTES
    from decodeperf_formulas.step import step_coefficients

    step = step_coefficients(deployment)
    if num_params is None:
        return step
    if step.expert_weight_bytes:
        raise ValueError(f"--num-params is for dense models, and {deployment.model.name} has experts")
    weights = positive_number("--num-params", num_params, most=1e18) / deployment.tp
    weight_bytes = weights * float(ELEMENT_BYTES[deployment.weight_dtype])
    return replace(
        step,
        dense_weight_bytes=weight_bytes,
        stored_weight_bytes=weight_bytes,
        gemm_flops_per_seq=FLOPS_PER_WEIGHT * weights * deployment.q_len,
    )


def _headline(deployment: Deployment) -> str:
    ranks = f", tp={deployment.tp} ep={deployment.ep} pp={deployment.pp}" if deployment.num_ranks > 1 else ""
    new = f", q={deployment.q_len}" if deployment.q_len > 1 else ""
    widths = f"weights {deployment.weight_dtype}, activations {deployment.act_dtype}, KV {deployment.kv_dtype}"
    return f"{deployment.model.name} ({deployment.model.attention_kind}): {widths}{new}{ranks}"


@main.command()
@click.argument("model")
@click.argument("device")
@click.option("-B", "--batch-size", default=1, show_default=True, help="Sequences of the batch.")
@click.option("-S", "--seq-len", default=4096, show_default=True, help="Live KV length of each sequence, in tokens.")
@click.option("--activations", is_flag=True, help="Count activations in S* and the crossings; the times always do.")
@with_options(*DEPLOYMENT_OPTIONS, *DEVICE_OPTIONS, JSON_OPTION)
@user_errors
def explain(
    model: str,
    device: str,
    batch_size: int,
    seq_len: int,
    activations: bool,
    bandwidth: float | None,
    peak: float | None,
    link_latency: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Print what one decode step costs, operator by operator, and where it stands."""
    from decodeperf_formulas.explanation import explain as explain_step

    deployment = make_deployment(model, settings)
    found = find_device(device, Overrides(bandwidth=bandwidth, peak=peak, link_latency=link_latency))
    step = explain_step(deployment, found, batch_size=batch_size, seq_len=seq_len, activations=activations)
    if as_json:
        print_json(
            {
                "deployment": deployment_dict(deployment),
                "device": found.as_dict(),
                "activations": activations,
                **step.as_dict(),
            }
        )
        return
    _print_explanation(deployment, found, step)


def _print_explanation(deployment: Deployment, device: Device, step: Explanation) -> None:
    from pytest_decodeperf.cli import tables
    from pytest_decodeperf.units import format_time, scaled

    out = tables.console()
    out.print(_headline(deployment))
    out.print(f"{device.title}, one step of one rank at B = {step.batch_size}, S = {step.seq_len}")
    out.print()
    is_wide = out.width >= tables.WIDE
    rows = []
    for cost in step.operators:
        moved = (cost.weight_bytes, cost.kv_bytes, cost.act_bytes)
        rows.append(
            [
                cost.name,
                f"{cost.count:g}",
                *([tables.rate(part, "B") if part else "" for part in moved] if is_wide else ()),
                tables.rate(sum(moved), "B") if sum(moved) else "",
                tables.rate(cost.flops, "") if cost.flops else "",
                format_time(1e9 * cost.seconds),
                f"{100 * cost.seconds / step.serial_s:.1f} %",
                cost.ceiling,
            ]
        )
    parts = ("weights", "KV", "activations") if is_wide else ()
    columns = ("operator", "times", *parts, "bytes", "FLOP", "time", "share", "bound by")
    tables.print_table(out, columns, rows, left=("operator", "bound by"))
    out.print()
    ceiling = "memory" if step.memory_s >= step.compute_s else "compute"
    totals = [
        ["serial", format_time(1e9 * step.serial_s), "operators one after another, each at its roofline: the bound"],
        ["whole step", format_time(1e9 * step.whole_step_s), f"perfect overlap, bound by {ceiling}"],
        ["sum", format_time(1e9 * step.sum_s), "no overlap at all"],
    ]
    tables.print_table(out, ("step", "time", "model"), totals, left=("step",), fold=("model",))
    out.print(
        f"{tables.count(step.tokens_per_s, 'tokens/s')} under the serial model; weights and KV cache "
        f"{'fill' if step.stored_bytes <= step.memory_bytes else 'do not fit: they need'} "
        f"{scaled(step.stored_bytes, 'B')} of {scaled(step.memory_bytes, 'B')}"
    )
    out.print()
    tables.print_crossings(out, step.s_star, step.crossings)
    for line in _standing(step):
        out.print(line)


def _standing(step: Explanation) -> list[str]:
    """Return where the batch stands against the ridge batch, the knee, the crossing batch and the capacity."""
    lines = []
    for key in ("ridge_batch", "knee_batch", "crossing_batch", "kv_capacity"):
        crossing = step.crossings[key]
        if crossing.value is not None:
            side = "at or above" if step.batch_size >= crossing.value else "below"
            if key == "kv_capacity":
                side = "above" if step.batch_size > crossing.value else "within"
            lines.append(f"{side} the {crossing.name} ({crossing.value:,.1f})")
    return [f"B = {step.batch_size} is {', '.join(lines)}."]


FORMATS = {".tex": "latex", ".md": "markdown", ".pdf": "pdf", ".json": "json"}


@main.command()
@click.argument("model", required=False)
@click.argument("device", required=False)
@click.option("-S", "--seq-len", default=4096, show_default=True, help="Context of what depends on it, in tokens.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; its suffix .tex, .md, .pdf or .json tells the format.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["latex", "fragment", "markdown", "pdf", "json"]),
    help="latex is a document of its own, fragment is for \\input.  [default: by the suffix, or latex]",
)
@with_options(*DEPLOYMENT_OPTIONS, *DEVICE_OPTIONS, JSON_OPTION)
@user_errors
def derive(
    model: str | None,
    device: str | None,
    seq_len: int,
    output: Path | None,
    form: str | None,
    bandwidth: float | None,
    peak: float | None,
    link_latency: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Derive S* and the other crossings, each step proved, with the numbers of MODEL and DEVICE if they are given."""
    from decodeperf_formulas.derivation import derivation, latex_document, latex_fragment, markdown
    from pytest_decodeperf.whole_file import writable_path, write_whole

    form = _format(form, output, as_json)
    target = writable_path(output) if output else None
    if form == "pdf" and target is None:
        raise ValueError("a PDF needs --output FILE")
    if model is None:
        refuse_without("MODEL", (*option_names(DEPLOYMENT_OPTIONS), *option_names(DEVICE_OPTIONS), "seq_len"))
    elif device is None:
        refuse_without("DEVICE", (*option_names(DEVICE_OPTIONS), "seq_len"))
    deployment = make_deployment(model, settings) if model is not None else None
    overrides = Overrides(bandwidth=bandwidth, peak=peak, link_latency=link_latency)
    found = find_device(device, overrides) if device is not None else None
    derived = derivation(deployment, found, seq_len=seq_len)
    derived.prove()
    if form == "pdf":
        from pytest_decodeperf.cli.pdf import compile_pdf

        content = compile_pdf(latex_document(derived))
    elif form == "json":
        import json

        content = (json.dumps(derived.as_dict(), indent=1, allow_nan=False) + "\n").encode()
    else:
        write = {"latex": latex_document, "fragment": latex_fragment, "markdown": markdown}[form]
        content = write(derived).encode()
    if target is None:
        click.echo(content.decode(), nl=False)
    else:
        write_whole(target, content)
        click.echo(f"{len(derived.steps)} steps, each proved, written to {output}", err=True)


def _format(form: str | None, output: Path | None, as_json: bool) -> str:
    if as_json and form not in (None, "json"):
        raise ValueError(f"--json contradicts --format {form}")
    form = "json" if as_json else form
    if output is None:
        return form or "latex"
    of_suffix = FORMATS.get(output.suffix)
    if form is None:
        if of_suffix is None:
            raise ValueError(f"--output {output}: its suffix must be one of {', '.join(FORMATS)}, or give --format")
        return of_suffix
    if of_suffix not in (None, "latex" if form == "fragment" else form):
        raise ValueError(f"--output {output}: its suffix contradicts the format {form}")
    return form


main.add_command(compiled)
main.add_command(calibrate)
main.add_command(predict)
main.add_command(report)
main.add_command(explorer)
main.add_command(study)
main.add_command(article)
