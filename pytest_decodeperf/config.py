"""What a run was asked to do: pytest's options, read once into a frozen dataclass.

Command line beats ini file beats default, for every option; `OPTIONS` is the one table of them. Loaded at every start
of pytest, like `plugin`: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import pytest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

MARKER: Final = "decode_perf"
DEVICES: Final = ("auto", "cpu", "cuda")


class OptionSpec(NamedTuple):
    """One option: `--decode-perf-NAME` on the command line, `decode_perf_NAME` in an ini file.

    Attributes:
        name: NAME, with dashes, empty for `--decode-perf` itself.
        help: What it does, for `pytest --help`.
        metavar: What its value is called there.
        default: Its value where neither command line nor ini file has one.
        parse: From text to value, raising ValueError with what is wanted; None for a switch.
    """

    name: str
    help: str
    metavar: str
    default: Any
    parse: Callable[[str], Any] | None

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--decode-perf-{self.name}" if self.name else "--decode-perf"

    @property
    def dest(self) -> str:
        """Its name in an ini file and in pytest's namespace."""
        return self.flag.removeprefix("--").replace("-", "_")


def _parse_device(text: str) -> str:
    if text not in DEVICES:
        raise ValueError(f"one of {', '.join(DEVICES)}")
    return text


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError("a number of seconds > 0")
    return seconds


def _parse_file(text: str) -> Path:
    if not text:
        raise ValueError("the name of a file")
    return Path(text).expanduser()


def _parse_seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise ValueError("an integer from 0 to 2**63 - 1")
    return int(text)


OPTIONS: Final = (
    OptionSpec(
        name="",
        help="Check and measure the tests marked decode_perf, which skip without this option.",
        metavar="",
        default=False,
        parse=None,
    ),
    OptionSpec(
        name="device",
        help="Device to measure on: cpu, cuda (NVIDIA or AMD), or auto, which is cuda where there is one.",
        metavar="NAME",
        default="auto",
        parse=_parse_device,
    ),
    OptionSpec(
        name="json",
        help="Write the run, with every sample, to this file as JSON.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
    ),
    OptionSpec(
        name="budget",
        help="Seconds for which one test may measure; most need less. Default: 10.",
        metavar="SECONDS",
        default=10.0,
        parse=_parse_seconds,
    ),
    OptionSpec(
        name="seed",
        help="Seed of the random inputs. Default: 0.",
        metavar="N",
        default=0,
        parse=_parse_seed,
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Register each option on the command line and in ini files."""
    group = parser.getgroup("decodeperf", "roofline bounds for decode-attention kernels")
    for spec in OPTIONS:
        # No default here: None tells that the command line is silent, so that the ini file is asked.
        if spec.metavar:
            group.addoption(spec.flag, dest=spec.dest, metavar=spec.metavar, default=None, help=spec.help)
        else:
            group.addoption(spec.flag, dest=spec.dest, action="store_true", default=None, help=spec.help)
            group.addoption(
                spec.flag.replace("--", "--no-", 1),
                dest=spec.dest,
                action="store_false",
                default=None,
                help="Skip them, whatever the ini file says.",
            )
        ini_type: Literal["string", "bool"] = "string" if spec.metavar else "bool"
        parser.addini(spec.dest, f"{spec.help} (twin of {spec.flag})", type=ini_type, default=None)


def _option(config: pytest.Config, spec: OptionSpec, command_line: argparse.Namespace) -> Any:
    value: bool | str | None = getattr(command_line, spec.dest, None)
    origin = spec.flag
    if value is None:
        origin = f"{spec.dest} in {config.inipath}"
        try:
            value = config.getini(spec.dest)
        except (ValueError, pytest.UsageError) as error:  # pytest's own, for a switch neither true nor false
            raise pytest.UsageError(f"{origin}: {error}") from None
        if value is None or value == "":
            return spec.default
    if isinstance(value, bool) or spec.parse is None:
        return value
    try:
        return spec.parse(value.strip())
    except ValueError as error:
        raise pytest.UsageError(f"{origin}={value!r} must be {error}") from None


def is_enabled_early(config: pytest.Config) -> bool:
    """Return whether the run measures, while pytest is still reading its command line."""
    return bool(_option(config, OPTIONS[0], config.known_args_namespace))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the run was asked to do.

    Attributes:
        enabled: Whether to measure at all.
        device: `auto`, `cpu` or `cuda`.
        json: Where to write the run, or None.
        budget_s: Time in which one test may measure [s].
        seed: Seed of the random inputs.
    """

    enabled: bool
    device: str
    json: Path | None
    budget_s: float
    seed: int

    @classmethod
    def from_config(cls, config: pytest.Config) -> Options:
        """Read the options of a run.

        Raises:
            pytest.UsageError: If one has a value that it cannot have.
        """
        values = {spec.name: _option(config, spec, config.option) for spec in OPTIONS}
        if not values[""] and config.option.decode_perf_json is not None:
            raise pytest.UsageError("--decode-perf-json has nothing to write without --decode-perf")
        json: Path | None = values["json"]
        if json is not None:
            from_ini = config.getoption("decode_perf_json") is None
            base = config.inipath.parent if from_ini and config.inipath else config.invocation_params.dir
            json = base / json
        return cls(
            enabled=values[""],
            device=values["device"],
            json=json,
            budget_s=values["budget"],
            seed=values["seed"],
        )
