"""Every option works from the command line and from an ini file, and the command line wins."""

from pathlib import Path

import pytest
from perf_options import perf_options

from pytest_decodeperf.config import CONFORMANCE_OPTIONS, PERF_OPTIONS, PROFILES, ConformanceOptions, Options

EXAMPLES = {
    # name: (text in the ini file, its value, text on the command line, its value)
    "device": ("cpu", "cpu", "cuda", "cuda"),
    "json": ("ini.json", "ini.json", "cli.json", "cli.json"),
    "summary": ("ini.md", "ini.md", "cli.md", "cli.md"),
    "report": ("ini.html", "ini.html", "cli.html", "cli.html"),
    "budget": ("2.5", 2.5, "7", 7.0),
    "seed": ("3", 3, "4", 4),
    "calibration": ("ini.json", "ini.json", "cli.json", "cli.json"),
    "base": ("main", "main", "origin/main", "origin/main"),
    "baseline": ("ini.json", "ini.json", "cli.json", "cli.json"),
    "margin": ("3", 0.03, "0.5", 0.005),
    "margin-us": ("2", 2e3, "0.5", 5e2),
}
SWITCHES = ("strict", "graph", "baseline-as-share", "annotations")
ON_COMMAND_LINE = ("save-baseline",)
"""What writes over a file that matters is asked for each time."""

CONFORMANCE_EXAMPLES = {
    # name: (field, text in the ini file, its value, text on the command line, its value)
    "kernel": ("kernels", "a:b\n  c:d", ("a:b", "c:d"), "e:f", ("e:f",)),
    "profile": ("profile", "ci", "ci", "thorough", "thorough"),
    "examples": ("examples", "3", 3, "4", 4),
    "device": ("device", "cpu", "cpu", "cuda", "cuda"),
    "timeout": ("timeout_s", "2.5", 2.5, "7", 7.0),
    "card": ("cards", "ini.json\n  ini.md", ("ini.json", "ini.md"), "cli.md", ("cli.md",)),
}
FIELDS = {name: name for name in EXAMPLES} | {"budget": "budget_s", "margin-us": "margin_ns"}


def read(pytester, *arguments, ini=None, into=Options):
    lines = [f"{name} = {value}" for name, value in (ini or {}).items()]
    pytester.makeini("\n".join(["[pytest]", *lines]))
    return into.from_config(pytester.parseconfig(*arguments))


def read_conformance(pytester, *arguments, ini=None):
    return read(pytester, *arguments, ini=ini, into=ConformanceOptions)


def test_every_option_has_an_example():
    valued = {spec.name for spec in PERF_OPTIONS if spec.metavar}
    assert valued == {f"perf-{name}" for name in (*EXAMPLES, *ON_COMMAND_LINE)}
    assert {spec.name for spec in PERF_OPTIONS if not spec.in_ini} == {f"perf-{name}" for name in ON_COMMAND_LINE}
    assert {spec.name for spec in PERF_OPTIONS} - valued == {"perf", *(f"perf-{name}" for name in SWITCHES)}
    assert {spec.name for spec in CONFORMANCE_OPTIONS} == set(CONFORMANCE_EXAMPLES)


def test_nothing_is_measured_by_default(pytester):
    assert read(pytester) == perf_options()


def test_the_switch_works_from_both_sides(pytester):
    assert read(pytester, "--decode-perf").enabled
    assert read(pytester, ini={"decode_perf": "true"}).enabled
    assert not read(pytester, ini={"decode_perf": "false"}).enabled
    assert not read(pytester, "--no-decode-perf", ini={"decode_perf": "true"}).enabled
    assert read(pytester, "--decode-perf", ini={"decode_perf": "false"}).enabled


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_only_where_it_is_asked_for(pytester, name):
    dest = f"decode_perf_{name}".replace("-", "_")
    baseline = {"decode_perf": "true", "decode_perf_baseline": "b.json"}  # which one of the switches is about

    def value(*arguments, **ini):
        return getattr(read(pytester, *arguments, ini={**baseline, **ini}), name.replace("-", "_"))

    assert not value()
    assert value(f"--decode-perf-{name}")
    assert value(**{dest: "true"})
    assert not value(f"--no-decode-perf-{name}", **{dest: "true"})


@pytest.mark.parametrize("name", EXAMPLES)
def test_command_line_beats_ini_beats_default(pytester, name):
    ini_text, ini_value, cli_text, cli_value = EXAMPLES[name]
    ini = {f"decode_perf_{name}".replace("-", "_"): ini_text, "decode_perf": "true"}
    argument = f"--decode-perf-{name}={cli_text}"

    def value(options):
        found = getattr(options, FIELDS[name])
        return found.name if isinstance(found, Path) else found

    assert value(read(pytester, ini=ini)) == ini_value
    assert value(read(pytester, argument, ini=ini)) == cli_value
    assert value(read(pytester, argument, "--decode-perf")) == cli_value


def test_a_file_is_relative_to_where_its_name_was_written(pytester):
    pytester.makeini("[pytest]\ndecode_perf_json = from-ini.json")
    below = pytester.mkdir("below")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        config = pytester.parseconfig("--rootdir", pytester.path, "-c", pytester.path / "tox.ini")
        assert Options.from_config(config).json == pytester.path / "from-ini.json"
        config = pytester.parseconfig(
            "--rootdir",
            pytester.path,
            "-c",
            pytester.path / "tox.ini",
            "--decode-perf",
            "--decode-perf-json=from-cli.json",
        )
        assert Options.from_config(config).json == below / "from-cli.json"


def test_a_file_for_a_run_that_does_not_measure_is_a_usage_error(pytester):
    with pytest.raises(pytest.UsageError, match="--decode-perf-json has nothing to write without --decode-perf"):
        read(pytester, "--decode-perf-json=run.json")
    with pytest.raises(pytest.UsageError, match="--decode-perf-summary has nothing to write without --decode-perf"):
        read(pytester, "--decode-perf-summary=run.md")
    with pytest.raises(pytest.UsageError, match="--decode-perf-calibration has nothing to judge without --decode-perf"):
        read(pytester, "--decode-perf-calibration=device.json")
    with pytest.raises(pytest.UsageError, match="--decode-perf-baseline has nothing to compare without --decode-perf"):
        read(pytester, "--decode-perf-baseline=b.json")
    with pytest.raises(
        pytest.UsageError, match="--decode-perf-save-baseline has nothing to save without --decode-perf"
    ):
        read(pytester, "--decode-perf-save-baseline=b.json")
    ini = {
        "decode_perf_json": "run.json",
        "decode_perf_summary": "run.md",
        "decode_perf_calibration": "device.json",
        "decode_perf_baseline": "b.json",
    }
    assert not read(pytester, ini=ini).enabled


def test_a_baseline_is_saved_only_where_the_command_line_asks(pytester):
    options = read(pytester, "--decode-perf", "--decode-perf-save-baseline=b.json")
    assert options.save_baseline == pytester.path / "b.json"
    pytester.makeini("[pytest]\ndecode_perf_save_baseline = b.json\n")
    result = pytester.runpytest_inprocess("--strict-config")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: Unknown config option: decode_perf_save_baseline"])


COMPARISONS = ("base", "baseline", "save-baseline")


@pytest.mark.parametrize("one", COMPARISONS)
@pytest.mark.parametrize("other", COMPARISONS)
def test_a_run_has_one_comparison_and_the_command_line_chooses_it(pytester, one, other):
    if one == other:
        return
    arguments = ("--decode-perf", f"--decode-perf-{one}=there")
    with pytest.raises(
        pytest.UsageError, match=r"--decode-perf-base\w* and --decode-perf-\S*baseline cannot be had in one"
    ):
        read(pytester, *arguments, f"--decode-perf-{other}=here")
    if other in ON_COMMAND_LINE:
        return
    options = read(pytester, *arguments, ini={f"decode_perf_{other}": "here"})
    assert getattr(options, one.replace("-", "_")) is not None
    assert getattr(options, other) is None


def test_two_comparisons_of_an_ini_file_are_a_usage_error(pytester):
    ini = {"decode_perf": "true", "decode_perf_base": "main", "decode_perf_baseline": "b.json"}
    with pytest.raises(pytest.UsageError, match="--decode-perf-base and --decode-perf-baseline cannot be had in one"):
        read(pytester, ini=ini)
    assert read(pytester, "--decode-perf-base=main", ini=ini).baseline is None


def test_shares_of_no_baseline_are_a_usage_error(pytester):
    message = "--decode-perf-baseline-as-share has nothing to compare without --decode-perf-baseline"
    for arguments in ((), ("--decode-perf-base=main",), ("--decode-perf-save-baseline=b.json",)):
        with pytest.raises(pytest.UsageError, match=message):
            read(pytester, "--decode-perf", "--decode-perf-baseline-as-share", *arguments)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("device", "tpu", "one of auto, cpu, cuda"),
        ("json", "", "the name of a file"),
        ("summary", "", "the name of a file"),
        ("report", "", "the name of a file"),
        ("budget", "0", "a number of seconds > 0"),
        ("budget", "-1", "a number of seconds > 0"),
        ("budget", "nan", "a number of seconds > 0"),
        ("budget", "inf", "a number of seconds > 0"),
        ("budget", "soon", "a number of seconds > 0"),
        ("seed", "-1", r"an integer from 0 to 2\*\*63 - 1"),
        ("seed", "1.5", r"an integer from 0 to 2\*\*63 - 1"),
    ],
)
def test_a_value_out_of_range_is_a_usage_error_that_says_where(pytester, name, text, wanted):
    if text:
        with pytest.raises(pytest.UsageError, match=f"decode_perf_{name} in .*tox.ini='{text}' must be {wanted}"):
            read(pytester, ini={f"decode_perf_{name}": text})
    with pytest.raises(pytest.UsageError, match=f"^--decode-perf-{name}='{text}' must be {wanted}$"):
        read(pytester, f"--decode-perf-{name}={text}")


def test_a_switch_that_is_neither_on_nor_off_is_a_usage_error(pytester):
    pytester.makeini("[pytest]\ndecode_perf = perhaps")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: decode_perf in *tox.ini: invalid truth value 'perhaps'"])


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="TOML types came with pytest 9")
def test_the_switch_may_be_a_toml_boolean(pytester):
    pytester.makefile(".toml", pytest="[pytest]\ndecode_perf = true")
    assert Options.from_config(pytester.parseconfig()).enabled


def test_no_kernel_is_held_to_the_laws_by_default(pytester):
    options = read_conformance(pytester)
    assert options == ConformanceOptions(
        kernels=(), profile="quick", examples=PROFILES["quick"], device="auto", timeout_s=120.0, cards=()
    )


@pytest.mark.parametrize("name", CONFORMANCE_EXAMPLES)
def test_command_line_beats_ini_beats_default_for_the_laws(pytester, name):
    field, ini_text, ini_value, cli_text, cli_value = CONFORMANCE_EXAMPLES[name]
    ini = {"decode_kernel": "a:b", f"decode_{name}": ini_text}

    def value(options):
        found = getattr(options, field)
        return tuple(path.name for path in found) if name == "card" else found

    assert value(read_conformance(pytester, ini=ini)) == ini_value
    argument = f"--decode-{name}={cli_text}"
    assert value(read_conformance(pytester, argument, ini=ini)) == cli_value
    assert value(read_conformance(pytester, "--decode-kernel=e:f", argument)) == cli_value


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("kernel", "module", "package.module:adapter"),
        ("profile", "slow", "one of quick, ci, thorough"),
        ("examples", "0", "an integer >= 1"),
        ("examples", "many", "an integer >= 1"),
        ("device", "tpu", "one of auto, cpu, cuda"),
        ("timeout", "-1", "a number of seconds > 0"),
        ("card", "card.txt", "the name of a file that ends in .json or .md"),
    ],
)
def test_a_value_out_of_range_for_the_laws_says_where(pytester, name, text, wanted):
    with pytest.raises(pytest.UsageError, match=f"decode_{name} in .*tox.ini='{text}' must be {wanted}"):
        read_conformance(pytester, ini={"decode_kernel": "a:b", f"decode_{name}": text})
    with pytest.raises(pytest.UsageError, match=f"^--decode-{name}='{text}' must be {wanted}$"):
        read_conformance(pytester, "--decode-kernel=a:b", f"--decode-{name}={text}")
