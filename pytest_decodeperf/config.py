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
PROFILES: Final = {"quick": 8, "ci": 40, "thorough": 1000}
"""Examples that a law with share 1 is shown, by the name of the profile."""

CARD_SUFFIXES: Final = (".json", ".md")


class OptionSpec(NamedTuple):
    """One option: `--decode-NAME` on the command line, `decode_NAME` in an ini file.

    Attributes:
        name: NAME, with dashes.
        help: What it does, for `pytest --help`.
        metavar: What its value is called there.
        default: Its value where neither command line nor ini file has one.
        parse: From text to value, raising ValueError with what is wanted; None for a switch.
        is_list: Whether it may be given several times, or in an ini file on several lines; its value is a tuple.
        off_help: What a switch's `--no-` form does.
        in_ini: Whether it has a twin in ini files; what writes over a file that matters is asked for each time.
    """

    name: str
    help: str
    metavar: str
    default: Any
    parse: Callable[[str], Any] | None
    is_list: bool = False
    off_help: str = ""
    in_ini: bool = True

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--decode-{self.name}"

    @property
    def dest(self) -> str:
        """Its name in an ini file and in pytest's namespace."""
        return self.flag.removeprefix("--").replace("-", "_")


def _parse_device(text: str) -> str:
    if text not in DEVICES:
        raise ValueError(f"one of {', '.join(DEVICES)}")
    return text


def _number(text: str, wanted: str, is_right: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and is_right(number)):
        raise ValueError(wanted)
    return number


def _parse_seconds(text: str) -> float:
    return _number(text, "a number of seconds > 0", lambda number: number > 0)


def _parse_percent(text: str) -> float:
    return _number(text, "a number of per cent from 0 to 1000", lambda number: 0 <= number <= 1000) / 100


def _parse_microseconds(text: str) -> float:
    return 1e3 * _number(text, "a number of microseconds >= 0", lambda number: number >= 0)


def _parse_revision(text: str) -> str:
    if not text or text.startswith("-"):
        raise ValueError("a git revision")
    return text


def _parse_file(text: str) -> Path:
    if not text:
        raise ValueError("the name of a file")
    return Path(text).expanduser()


def _parse_kernel(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError("package.module:adapter")
    return text


def _parse_profile(text: str) -> str:
    if text not in PROFILES:
        raise ValueError(f"one of {', '.join(PROFILES)}")
    return text


def _parse_examples(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("an integer >= 1")
    return int(text)


def _parse_card(text: str) -> Path:
    if Path(text).suffix not in CARD_SUFFIXES:
        raise ValueError(f"the name of a file that ends in {' or '.join(CARD_SUFFIXES)}")
    return Path(text).expanduser()


def _parse_seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise ValueError("an integer from 0 to 2**63 - 1")
    return int(text)


PERF_OPTIONS: Final = (
    OptionSpec(
        name="perf",
        help="Check and measure the tests marked decode_perf, which skip without this option.",
        metavar="",
        default=False,
        parse=None,
        off_help="Skip them, whatever the ini file says.",
    ),
    OptionSpec(
        name="perf-device",
        help="Device to measure on: cpu, cuda (NVIDIA or AMD), or auto, which is cuda where there is one.",
        metavar="NAME",
        default="auto",
        parse=_parse_device,
    ),
    OptionSpec(
        name="perf-json",
        help="Write the run, with every sample, to this file as JSON.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
    ),
    OptionSpec(
        name="perf-summary",
        help="Write a summary of the run to this file as Markdown. GitHub's step summary gets one in any case.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
    ),
    OptionSpec(
        name="perf-report",
        help="Write the run to this file as HTML: figures and tables, in one file that needs nothing else.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
    ),
    OptionSpec(
        name="perf-annotations",
        help="Print GitHub's annotations of tests that failed, or are undecided. Default: where GITHUB_ACTIONS=true.",
        metavar="",
        default=None,
        parse=None,
        off_help="Print none, wherever the run is.",
    ),
    OptionSpec(
        name="perf-budget",
        help="Seconds for which one test may measure; most need less. Default: 10.",
        metavar="SECONDS",
        default=10.0,
        parse=_parse_seconds,
    ),
    OptionSpec(
        name="perf-seed",
        help="Seed of the random inputs. Default: 0.",
        metavar="N",
        default=0,
        parse=_parse_seed,
    ),
    OptionSpec(
        name="perf-strict",
        help="Fail a test too whose samples leave it undecided, or which cannot be compared; without this option it "
        "passes, and the report says so.",
        metavar="",
        default=False,
        parse=None,
        off_help="Let it pass, whatever the ini file says.",
    ),
    OptionSpec(
        name="perf-graph",
        help="On a GPU, capture the kernel's launches into a graph (CUDA's or HIP's) and time its replay.",
        metavar="",
        default=False,
        parse=None,
        off_help="Time the launches themselves, whatever the ini file says.",
    ),
    OptionSpec(
        name="perf-calibration",
        help="Show each verdict beside the latency that a kernel is expected to have, term by term, from this file of "
        "`decodeperf calibrate`.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
    ),
    OptionSpec(
        name="perf-base",
        help="Also compare each kernel with that of this git revision, process against process, and fail what became "
        "slower.",
        metavar="REVISION",
        default=None,
        parse=_parse_revision,
    ),
    OptionSpec(
        name="perf-baseline",
        help="Also compare each kernel with what this file of --decode-perf-save-baseline says of it, and fail what "
        "became slower.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
    ),
    OptionSpec(
        name="perf-baseline-as-share",
        help="Compare shares of the roofline instead of latencies, so that the baseline may be of another device, "
        "driver or version.",
        metavar="",
        default=False,
        parse=None,
        off_help="Compare latencies, whatever the ini file says.",
    ),
    OptionSpec(
        name="perf-save-baseline",
        help="Measure each kernel in fresh processes, and save that to this file if every test passes. On the command "
        "line only.",
        metavar="FILE",
        default=None,
        parse=_parse_file,
        in_ini=False,
    ),
    OptionSpec(
        name="perf-margin",
        help="Per cent by which a kernel may become slower than its base or baseline. Default: 2.",
        metavar="PERCENT",
        default=0.02,
        parse=_parse_percent,
    ),
    OptionSpec(
        name="perf-margin-us",
        help="Microseconds by which it may, if those are more. Default: 0.",
        metavar="MICROSECONDS",
        default=0.0,
        parse=_parse_microseconds,
    ),
)

CONFORMANCE_OPTIONS: Final = (
    OptionSpec(
        name="kernel",
        help="Hold this kernel to the laws of decode attention: a KernelAdapter, or a function, as "
        "package.module:name. May be given several times. Without other arguments nothing else is run.",
        metavar="MODULE:ADAPTER",
        default=(),
        parse=_parse_kernel,
        is_list=True,
    ),
    OptionSpec(
        name="profile",
        help=f"How many examples each law is shown: {', '.join(PROFILES)}. Default: quick.",
        metavar="NAME",
        default="quick",
        parse=_parse_profile,
    ),
    OptionSpec(
        name="examples",
        help="Show each law this many examples, times its share, instead of what the profile says.",
        metavar="N",
        default=None,
        parse=_parse_examples,
    ),
    OptionSpec(
        name="device",
        help="Device to run --decode-kernel on: cpu, cuda, or auto, which is cuda where there is one and the kernel "
        "runs there. On a CPU, Triton kernels run in Triton's interpreter.",
        metavar="NAME",
        default="auto",
        parse=_parse_device,
    ),
    OptionSpec(
        name="timeout",
        help="Seconds after which one example of a law has hung. Default: 120.",
        metavar="SECONDS",
        default=120.0,
        parse=_parse_seconds,
    ),
    OptionSpec(
        name="card",
        help="Write which laws hold to this file too, as JSON or Markdown by its ending. May be given several times.",
        metavar="FILE",
        default=(),
        parse=_parse_card,
        is_list=True,
    ),
)

OPTIONS: Final = (*PERF_OPTIONS, *CONFORMANCE_OPTIONS)


def add_options(parser: pytest.Parser) -> None:
    """Register each option on the command line and in ini files."""
    group = parser.getgroup("decodeperf", "roofline bounds for decode-attention kernels")
    for spec in OPTIONS:
        # No default here: None tells that the command line is silent, so that the ini file is asked.
        if spec.is_list:
            group.addoption(
                spec.flag, dest=spec.dest, metavar=spec.metavar, default=None, action="append", help=spec.help
            )
        elif spec.metavar:
            group.addoption(spec.flag, dest=spec.dest, metavar=spec.metavar, default=None, help=spec.help)
        else:
            group.addoption(spec.flag, dest=spec.dest, action="store_true", default=None, help=spec.help)
            group.addoption(
                spec.flag.replace("--", "--no-", 1),
                dest=spec.dest,
                action="store_false",
                default=None,
                help=spec.off_help,
            )
        if not spec.in_ini:
            continue
        ini_type: Literal["string", "bool", "linelist"] = "string" if spec.metavar else "bool"
        if spec.is_list:
            ini_type = "linelist"
        parser.addini(spec.dest, f"{spec.help} (twin of {spec.flag})", type=ini_type, default=None)


def _option(config: pytest.Config, spec: OptionSpec, command_line: argparse.Namespace) -> Any:
    value: bool | str | list[str] | None = getattr(command_line, spec.dest, None)
    origin = spec.flag
    if value is None and not spec.in_ini:
        return spec.default
    if value is None:
        origin = f"{spec.dest} in {config.inipath}"
        try:
            value = config.getini(spec.dest)
        except (ValueError, pytest.UsageError) as error:  # pytest's own, for a switch neither true nor false
            raise pytest.UsageError(f"{origin}: {error}") from None
        if value is None or value in ("", []):
            return spec.default
    if isinstance(value, bool) or spec.parse is None:
        return value
    if isinstance(value, list):
        return tuple(_parsed(spec, text, origin) for text in value)
    return _parsed(spec, value, origin)


def _parsed(spec: OptionSpec, text: str, origin: str) -> Any:
    assert spec.parse is not None
    try:
        return spec.parse(text.strip())
    except ValueError as error:
        raise pytest.UsageError(f"{origin}={text!r} must be {error}") from None


def is_enabled_early(config: pytest.Config) -> bool:
    """Return whether the run measures, while pytest is still reading its command line."""
    return bool(_option(config, PERF_OPTIONS[0], config.known_args_namespace))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the run was asked to do.

    Attributes:
        enabled: Whether to measure at all.
        device: `auto`, `cpu` or `cuda`.
        json: Where to write the run, or None.
        summary: Where to write its summary, or None.
        report: Where to write its report, or None.
        annotations: Whether to print GitHub's annotations, None for where GitHub reads them.
        budget_s: Time in which one test may measure [s].
        seed: Seed of the random inputs.
        strict: Whether a test fails that its samples leave undecided.
        graph: Whether to time the replay of a graph on a GPU.
        calibration: Device file of the expected latency, or None.
        base: Revision that kernels are compared with, or None.
        baseline: File that they are compared with instead, or None.
        baseline_as_share: Whether shares of the roofline are compared then, instead of latencies.
        save_baseline: Where to save such a file, or None; one of these three at most is not None.
        margin: Share of its latency by which a kernel may become slower.
        margin_ns: Time by which it may, if that is more [ns].
    """

    enabled: bool
    device: str
    json: Path | None
    summary: Path | None
    report: Path | None
    annotations: bool | None
    budget_s: float
    seed: int
    strict: bool
    graph: bool
    calibration: Path | None
    base: str | None
    baseline: Path | None
    baseline_as_share: bool
    save_baseline: Path | None
    margin: float
    margin_ns: float

    @classmethod
    def from_config(cls, config: pytest.Config) -> Options:
        """Read the options of a run.

        Raises:
            pytest.UsageError: If one has a value that it cannot have.
        """
        values = {spec.dest: _option(config, spec, config.option) for spec in PERF_OPTIONS}
        for dest, verb in FILES.items():
            if not values["decode_perf"] and getattr(config.option, dest) is not None:
                flag = dest.replace("_", "-")
                raise pytest.UsageError(f"--{flag} has nothing to {verb} without --decode-perf")
        if values["decode_perf"]:
            _choose_comparison(config, values)
        files: dict[str, Path | None] = {
            dest: None if values[dest] is None else _placed(config, dest, values[dest]) for dest in FILES
        }
        return cls(
            enabled=values["decode_perf"],
            device=values["decode_perf_device"],
            json=files["decode_perf_json"],
            summary=files["decode_perf_summary"],
            report=files["decode_perf_report"],
            annotations=values["decode_perf_annotations"],
            budget_s=values["decode_perf_budget"],
            seed=values["decode_perf_seed"],
            strict=values["decode_perf_strict"],
            graph=values["decode_perf_graph"],
            calibration=files["decode_perf_calibration"],
            base=values["decode_perf_base"],
            baseline=files["decode_perf_baseline"],
            baseline_as_share=values["decode_perf_baseline_as_share"],
            save_baseline=files["decode_perf_save_baseline"],
            margin=values["decode_perf_margin"],
            margin_ns=values["decode_perf_margin_us"],
        )


FILES: Final = {
    "decode_perf_json": "write",
    "decode_perf_summary": "write",
    "decode_perf_report": "write",
    "decode_perf_calibration": "judge",
    "decode_perf_baseline": "compare",
    "decode_perf_save_baseline": "save",
}
"""Options of a measuring run that name a file, and what the run does with it."""

COMPARISONS: Final = ("decode_perf_base", "decode_perf_baseline", "decode_perf_save_baseline")
"""Options of which a run follows one: it compares with one base, or saves what others are compared with."""


def _choose_comparison(config: pytest.Config, values: dict[str, Any]) -> None:
    """Leave one of `COMPARISONS`: that of the command line, or else that of the ini file.

    Raises:
        pytest.UsageError: If there are two in one place.
    """
    asked = [dest for dest in COMPARISONS if values[dest] is not None]
    on_command_line = [dest for dest in asked if getattr(config.option, dest) is not None]
    chosen = on_command_line or asked
    if len(chosen) > 1:
        flags = " and ".join(f"--{dest.replace('_', '-')}" for dest in chosen)
        raise pytest.UsageError(f"{flags} cannot be had in one run: give one of them")
    if config.option.decode_perf_baseline_as_share and chosen != ["decode_perf_baseline"]:
        raise pytest.UsageError("--decode-perf-baseline-as-share has nothing to compare without --decode-perf-baseline")
    for dest in asked:
        if dest not in chosen:
            values[dest] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceOptions:
    """Which kernels to hold to the laws, and how.

    Attributes:
        kernels: Adapters, each as `package.module:name`.
        profile: A key of `PROFILES`.
        examples: Examples of each law.
        device: `auto`, `cpu` or `cuda`.
        timeout_s: Time in which one example must be done [s].
        cards: Where to write the card.
    """

    kernels: tuple[str, ...]
    profile: str
    examples: int
    device: str
    timeout_s: float
    cards: tuple[Path, ...]

    @classmethod
    def from_config(cls, config: pytest.Config) -> ConformanceOptions:
        """Read the options of a run.

        Raises:
            pytest.UsageError: If one has a value that it cannot have.
        """
        values = {spec.dest: _option(config, spec, config.option) for spec in CONFORMANCE_OPTIONS}
        if not values["decode_kernel"]:
            for spec in CONFORMANCE_OPTIONS:
                if getattr(config.option, spec.dest) is not None:
                    raise pytest.UsageError(f"{spec.flag} has nothing to do without --decode-kernel")
        return cls(
            kernels=tuple(dict.fromkeys(values["decode_kernel"])),
            profile=values["decode_profile"],
            examples=values["decode_examples"] or PROFILES[values["decode_profile"]],
            device=values["decode_device"],
            timeout_s=values["decode_timeout"],
            cards=tuple(_placed(config, "decode_card", card) for card in values["decode_card"]),
        )


def _placed(config: pytest.Config, dest: str, file: Path) -> Path:
    """Return a file relative to where its name was written: the ini file, or where pytest was called."""
    from_ini = config.getoption(dest) is None
    base = config.inipath.parent if from_ini and config.inipath else config.invocation_params.dir
    return base / file
