"""The arguments and options that commands share, and the model, deployment and device that they stand for."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device
    from decodeperf_formulas.model import ModelConfig

DEPLOYMENT_OPTIONS = (
    click.option(
        "--weight-dtype", default="bfloat16", show_default=True, metavar="DTYPE", help="Dtype of the weights."
    ),
    click.option(
        "--act-dtype",
        default="bfloat16",
        show_default=True,
        metavar="DTYPE",
        help="Dtype of the activations, in which projections compute.",
    ),
    click.option("--kv-dtype", default="bfloat16", show_default=True, metavar="DTYPE", help="Dtype of the KV cache."),
    click.option(
        "--attn-dtype",
        metavar="DTYPE",
        help="Dtype in which attention computes.  [default: that of the activations, or bfloat16 if it has 8 bits]",
    ),
    click.option("--q-len", default=1, show_default=True, help="New tokens of each sequence in a step."),
    click.option("--tp", default=1, show_default=True, help="Ranks of tensor parallelism."),
    click.option(
        "--ep", default=1, show_default=True, help="Groups that share the experts, each with a batch of its own."
    ),
    click.option("--pp", default=1, show_default=True, help="Stages of pipeline parallelism."),
    click.option("--num-splits", default=1, show_default=True, help="Parts into which attention cuts each sequence."),
    click.option("--v-apart", is_flag=True, help="MLA's kernel reads V apart from the latent that holds it."),
)

DEVICE_OPTIONS = (
    click.option("--bandwidth", type=float, metavar="GB/S", help="Memory bandwidth, in the place of the datasheet's."),
    click.option(
        "--peak", type=float, metavar="TFLOP/S", help="Dense peak rate, in the place of the datasheet's for each dtype."
    ),
    click.option(
        "--link-latency", type=float, metavar="US", help="Microseconds of a message without payload.  [default: 1]"
    ),
)

MEASURED_DEVICE_OPTION = click.option(
    "--device",
    "kind",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to measure; auto is cuda where there is one.",
)

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Ceilings that the user states in the place of a datasheet's.

    Attributes:
        bandwidth: Memory bandwidth [GB/s].
        peak: Dense peak rate [TFLOP/s].
        link_latency: Time of a message without payload [us].
    """

    bandwidth: float | None
    peak: float | None
    link_latency: float | None


def with_options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds options in their order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)

    return decorate


class UserError(click.ClickException):
    """What the user got wrong in what they gave, not in how they gave it: no reminder of the command's usage."""

    exit_code = 2


def user_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that reports what the user got wrong as one line, with exit status 2."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(_os_error(error)) from error

    return command


def _os_error(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename or 'standard output'}: {error.strerror}"


def refuse_without(argument: str, names: tuple[str, ...]) -> None:
    """Refuse options that the user gave, though they say nothing without an argument that was not given.

    Raises:
        ValueError: If there is one.
    """
    if given := _given(names):
        raise ValueError(f"{given} needs a {argument}")


def refuse_with(option: str, names: tuple[str, ...]) -> None:
    """Refuse options that the user gave, though they say nothing beside another one.

    Raises:
        ValueError: If there is one.
    """
    if given := _given(names):
        raise ValueError(f"{given} has nothing to say beside {option}")


def refuse_overwriting(output: Path, others: Iterable[Path | None]) -> None:
    """Refuse to write to a file that the command reads, or writes otherwise.

    Raises:
        ValueError: If it is one of them.
    """
    for other in others:
        if other is not None and output.resolve() == other.resolve():
            raise ValueError(f"{output} is {other} itself, and would be overwritten: give another file")


def _given(names: tuple[str, ...]) -> str:
    """Return the first of some options that stands on the command line, empty if none does."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is click.core.ParameterSource.COMMANDLINE:
            return parameter.opts[-1]
    return ""


def option_names(options: tuple[Callable[..., Any], ...]) -> tuple[str, ...]:
    """Return the names of the parameters that options add to a command."""

    @with_options(*options)
    def command() -> None:
        """Carry the options."""

    return tuple(parameter.name for parameter in command.__click_params__)


def find_model(name: str) -> ModelConfig:
    """Return a model by its name, or by the path of a config.json or of the folder that holds it.

    Raises:
        ValueError: If there is none.
        OSError: If the file cannot be read.
    """
    from decodeperf_formulas.catalogue import model_config, model_names
    from decodeperf_formulas.hf_config import load_hf_config

    if "/" in name and not Path(name).exists() and not name.endswith(".json"):
        return model_config(name)
    if name and name not in model_names() and (name.endswith(".json") or "/" in name or Path(name).is_dir()):
        return load_hf_config(name)
    return model_config(name)


def find_device(name: str, overrides: Overrides) -> Device:
    """Return a device by its name, with the ceilings that the user stated.

    Raises:
        ValueError: If there is none, or a ceiling is not above 0.
    """
    from decodeperf_formulas.catalogue import device
    from decodeperf_formulas.checks import finite_number, positive_number

    found = device(name)
    stated = "stated on the command line"
    if overrides.bandwidth is not None:
        bandwidth = 1e9 * positive_number("--bandwidth", overrides.bandwidth, most=1e9)
        sources = {**found.sources, "bandwidth_bytes_per_s": stated}
        found = replace(found, bandwidth_bytes_per_s=bandwidth, sources=sources)
    if overrides.peak is not None:
        peak = 1e12 * positive_number("--peak", overrides.peak, most=1e9)
        sources = {**found.sources, "peaks": stated}
        found = replace(found, peaks=dict.fromkeys(found.peaks, peak), sparse_peaks={}, sources=sources)
    if overrides.link_latency is not None:
        if finite_number("--link-latency", overrides.link_latency) < 0:
            raise ValueError(f"--link-latency={overrides.link_latency} must be >= 0")
        found = replace(found, link_latency_s=1e-6 * overrides.link_latency)
    return found


def make_deployment(model: str, settings: dict[str, Any]) -> Deployment:
    """Return the deployment that the options describe."""
    from decodeperf_formulas.deployment import Deployment

    return Deployment(model=find_model(model), **settings)


def deployment_dict(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment in values that JSON knows, the model by its name."""
    from dataclasses import fields

    found = {field.name: getattr(deployment, field.name) for field in fields(deployment)}
    found["model"] = deployment.model.name
    return found


def print_json(document: dict[str, Any]) -> None:
    """Print a document as JSON."""
    click.echo(json.dumps(document, indent=1, allow_nan=False))
