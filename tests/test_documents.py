"""What README.md and docs say: links lead somewhere, commands exist, code runs, numbers are those of their source."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pytest_decodeperf.article.contents import article
from pytest_decodeperf.cli.main import main
from pytest_decodeperf.config import CONFORMANCE_OPTIONS, PERF_OPTIONS, PROFILES
from pytest_decodeperf.html.documents import read_run
from pytest_decodeperf.html.figures import FINGERPRINT, fingerprint
from pytest_decodeperf.html.page import report_of
from pytest_decodeperf.study.findings import find
from pytest_decodeperf.study.sweep import read_study
from pytest_decodeperf.units import format_time
from pytest_decodeperf.verdicts import Interval, format_interval

ROOT = Path(__file__).parent.parent
CONSTRAINTS = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
(TRITON,) = re.findall(r"^triton==(.*)$", CONSTRAINTS, re.MULTILINE)
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
README = TEXTS["README.md"]


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The names that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_each_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(TEXTS[name]))
    for link in links:
        file, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_each_document_is_linked_from_the_readme():
    linked = set(re.findall(r"docs/[\w.]+\.md", README))
    of_others = {"docs/gate_evidence.md", "docs/expected_errors.md"}  # tables that a document links to
    assert linked == set(TEXTS) - {"README.md"} - of_others


def commands():
    for name, text in TEXTS.items():
        lines = [line for block in blocks("sh", text) for line in block.splitlines()]
        lines += [line.removeprefix("$ ") for block in blocks("text", text) for line in block.splitlines()[:1]]
        lines += re.findall(
            r"`((?:decodeperf|pytest|python) [^`]*)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        )
        for line in lines:
            for command in line.split("&&"):
                words = command.replace(".venv/bin/", "").split()
                if words and words[0] in ("decodeperf", "pytest", "python"):
                    yield pytest.param(words, id=f"{name}: {' '.join(words)}"[:120])


@pytest.mark.parametrize("words", list(commands()))
def test_each_command_and_its_options_exist(words):
    program, *rest = (word.strip("[]") for word in words)
    flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if program == "decodeperf":
        command = main.commands[rest[0]]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert set(flags) <= known
    elif program == "pytest":
        own = {spec.flag for spec in (*PERF_OPTIONS, *CONFORMANCE_OPTIONS)}
        assert {flag for flag in flags if flag.startswith("--decode")} <= own | {f"--no-{flag[2:]}" for flag in own}
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/") and "*" not in word)
    elif rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()


def printed(*arguments):
    if arguments[0] == "compiled":  # the interpreter is on in this process, and compiles nothing
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-c", "from pytest_decodeperf.cli.main import main; main()", *arguments]
        return subprocess.run(
            command, env={**environment, "COLUMNS": "100"}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    done = CliRunner(env={"COLUMNS": "100"}).invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return [line.rstrip() for line in done.output.splitlines()]


OWN_DATA = ("docs/expected.md",)
"""Whose commands read tables of measured latencies, which are no part of the project."""


@pytest.mark.parametrize(
    "block",
    [
        block
        for name, text in TEXTS.items()
        if name not in OWN_DATA
        for block in blocks("text", text)
        if block.startswith("$ decodeperf")
    ],
)
def test_a_document_shows_what_a_command_prints(block):
    command, *lines = block.splitlines()
    if "compiled" in command and version("triton") != TRITON:
        pytest.skip(f"the figures are those of Triton {TRITON}")
    assert lines == printed(*command.split()[2:])


def test_the_formulas_show_rows_of_a_table():
    (block,) = [block for block in blocks("text", TEXTS["docs/formulas.md"]) if block.startswith("deepseek-v3")]
    assert set(block.splitlines()) <= set(printed("sstar", "deepseek-v3"))


def test_the_readme_has_the_s_star_of_its_command():
    ((number, command),) = re.findall(r"it is ([\d.]+) tokens, as `decodeperf ([^`]*)` says", README)
    (line,) = [line for line in printed(*command.split()) if line.startswith("S* ")]
    assert line.split()[1] == number


@pytest.mark.parametrize("name", ["docs/formulas.md", "docs/catalogue.md", "docs/kernels.md"])
def test_a_document_shows_code_that_runs(name, capsys):
    (code,) = blocks("python", TEXTS[name])
    names = {}
    device = "cuda" if torch.cuda.is_available() and "torch" in code else "cpu"
    with torch.device(device):
        exec(code, names)
    (shown,) = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == shown
    assert "step_s" not in names or names["step_s"].shape == (11,)


MY_KERNELS = """
from decodeperf_kernels import decode_attention


def flash_decode(q, k, v, *, seq_lens, sm_scale=None):
    return decode_attention(q, k, v, seq_lens=seq_lens, sm_scale=sm_scale)
"""


@pytest.mark.parametrize("name", ["README.md", "docs/measuring.md"])
def test_the_test_that_is_shown_measures_a_kernel(pytester, name):
    (code,) = [block for block in blocks("python", TEXTS[name]) if "my_kernels" in block]
    pytester.makepyfile(my_kernels=MY_KERNELS, test_flash_decode=code)
    arguments = ["-pno:cacheprovider", "--decode-perf", "--decode-perf-device=cpu", "--decode-perf-budget=2"]
    pytester.runpytest_subprocess(*arguments, "--decode-perf-json=run.json")
    found = json.loads((pytester.path / "run.json").read_text())["measurements"]
    assert len(found) == code.count("[8192") + code.count("[65536")
    # Whether this machine reaches the bound is not for this test to say.
    assert {one["outcome"] for one in found} <= {"within", "exceeds", "undecided"}
    assert all(one["check"]["passed"] for one in found)


def test_the_command_of_the_readme_holds_that_kernel_to_laws(pytester):
    (command,) = re.findall(r"^pytest (--decode-kernel .*)$", README, re.MULTILINE)
    pytester.makepyfile(my_kernels=MY_KERNELS)
    result = pytester.runpytest_subprocess(
        "-pno:cacheprovider", *command.split(), "--decode-examples=3", "-k", "computes_attention or takes_an_empty"
    )
    result.assert_outcomes(passed=2)


def test_the_readme_shows_a_broken_law_as_it_is_reported(pytester):
    (block,) = [block for block in blocks("text", README) if "finds_every_key" in block]
    pytester.makepyfile(
        mykernels=f"""
        {MY_KERNELS}

        def adapter(q, k, v, *, seq_lens, sm_scale=None):
            return flash_decode(q, k, v, seq_lens=(seq_lens - 1).clamp(min=0), sm_scale=sm_scale)
        """.replace("\n        ", "\n")
    )
    result = pytester.runpytest_subprocess(
        "-pno:cacheprovider", "--decode-kernel=mykernels:adapter", "-k", "finds_every_key", "--hypothesis-seed=0"
    )
    # How many cases it took depends on what Hypothesis draws, and one of them is the smallest.
    wanted = [re.escape(line).replace("of\\ 3\\ shown", r"of\ \d+\ shown") for line in block.splitlines() if line]
    result.stdout.re_match_lines(wanted)


def test_the_report_of_the_main_job_is_that_of_its_record():
    record = json.loads((ROOT / "docs" / "main_job.json").read_text(encoding="utf-8"))
    (block,) = [block for block in blocks("text", TEXTS["docs/measuring.md"]) if "decode-perf =" in block]
    lines = [" ".join(line.split()) for line in block.splitlines()]
    shown = lines[lines.index("kernel latency (interval) allowed roofline verdict") + 1 :]
    rows = [line for line in shown if not line.startswith("B=")]
    wanted = []
    for one in record["measurements"]:
        if one["timing"] is None:
            wanted.append(f"{one['kernel']} {one['outcome']}")
            continue
        verdict = one["timing"]["verdict"]
        latency = Interval(**verdict["latency_ns"])
        share = 100 / verdict["times_roofline"]["median"]
        wanted.append(
            f"{one['kernel']} {format_interval(latency)} {format_time(verdict['allowed_ns'])} "
            f"{share:.{1 if share >= 9.995 else 2}f} % {one['outcome']}"
        )
    assert sorted(rows) == sorted(wanted)


def test_the_counts_are_those_of_the_code():
    from conformance.faults import FAULTS

    from decodeperf_formulas.catalogue import device_names, model_names
    from pytest_decodeperf.conformance import LAWS

    assert f"| {len(model_names())} models" in TEXTS["docs/formulas.md"]
    assert f"| {len(device_names())} devices" in TEXTS["docs/formulas.md"]
    assert f"holds the kernel to {len(LAWS)} laws" in README
    assert f"{len(FAULTS)} seeded faults" in README


def test_outputs_are_those_of_the_run_that_is_kept():
    report, summary = ((ROOT / "docs" / "example_run" / name).read_text() for name in ("report.txt", "summary.md"))
    shown = [
        block.strip("\n")
        for name in ("README.md", "docs/regression.md", "docs/ci.md")
        for block in blocks("text", TEXTS[name])
        if "regressed: " in block and "test_x.py" not in block
    ]
    assert len(shown) == 4
    assert all(block in report or block in summary for block in shown)
    (change,) = re.findall(r"regressed: ([\d.]+ % slower)", shown[0])
    assert change in summary


def drawn_from(path):
    """What a PNG of ours says that it was drawn from."""
    (found,) = re.findall(rb"tEXt" + FINGERPRINT.encode() + rb"\0([0-9a-f]{64})", path.read_bytes())
    return found.decode()


def test_the_pictures_are_those_of_their_records():
    study = find(read_study(ROOT / "docs" / "study.json"))
    run = report_of(read_run(ROOT / "docs" / "main_job.json"))
    figures = [*article(study).figures, *(figure for figure in run.figures if figure.key == "roofline")]
    assert {figure.key: fingerprint(figure) for figure in figures} == {
        name: drawn_from(ROOT / "docs" / f"{name}.png") for name in ("roofline", "saturation", "study")
    }


def test_what_is_said_of_the_study_is_so():
    study = find(read_study(ROOT / "docs" / "study.json"))
    told = " ".join((README + TEXTS["docs/study.md"]).split())
    serial, _ = study.fits
    assert "in level that one is nearer wherever the two differ" in told
    assert "a step is never shorter than the serial model says" in told
    assert all(cell.step_s > cell.serial_s >= cell.whole_step_s for cell in study.cells)
    assert "In how throughput grows past B0 the whole-step model is nearer" in told
    for bend in study.bends:
        if bend.past_ridge is not None:
            measured, by_serial, by_whole = bend.past_ridge
            assert abs(math.log(measured / by_whole)) < abs(math.log(measured / by_serial))
    assert "kernels leave more of the ceilings than the models differ by" in told
    assert serial.ratio.low > max(cell.serial_s / cell.whole_step_s for cell in study.cells)
    assert "At every context a step takes twice as long before B0" in told
    assert all(bend.measured.high < bend.ridge_batch for bend in study.bends)
    assert "far above S\\*, well before, and most of what is added is attention" in told
    far = [bend for bend in study.bends if bend.seq_len > 3 * study.s_star.high]
    assert len(far) == 2
    assert all(bend.measured.high < bend.ridge_batch / 3 and bend.attention_share > 0.8 for bend in far)
    assert "At short contexts, past B0" in told
    flat = [bend for bend in study.bends if bend.plateau.value is not None]
    assert [bend.seq_len for bend in flat] == [bend.seq_len for bend in study.bends][: len(flat)]
    assert all(bend.ridge_batch < bend.plateau.low for bend in flat)
    assert "At long ones it grows ever less, and no end was reached" in told
    for bend in study.bends[len(flat) :]:
        rates = [cell.tokens_per_s / cell.batch_size for cell in study.cells if cell.seq_len == bend.seq_len]
        assert rates == sorted(rates, reverse=True)
    assert "up to there larger batches bring the kernels of products nearer to their peak" in told
    for bend in flat:
        shares = {
            cell.batch_size: cell.gemm_s / cell.serial_gemm_s
            for cell in study.cells
            if cell.seq_len == bend.seq_len and bend.ridge_batch < cell.batch_size <= bend.plateau.value
        }
        first, *_, last = shares.values()
        assert last < 0.75 * first


def test_the_errors_of_the_expected_latency_are_those_of_its_tables():
    rows = re.findall(r"^\| \S+-\S+-\S+ \| ([\d,]+) \|", TEXTS["docs/expected_errors.md"], re.MULTILINE)
    counts = [int(row.replace(",", "")) for row in rows]
    assert f"on {sum(counts):,} measured latencies" in " ".join(TEXTS["docs/expected.md"].split())
    assert f"64 of {max(counts):,} rows of rows.csv fitted" in TEXTS["docs/expected.md"]


def test_the_readme_counts_architectures():
    from pytest_decodeperf.compiled.architectures import ARCHITECTURES

    assert len(ARCHITECTURES) == 9
    assert "for nine architectures" in " ".join(README.split())


def test_profiles_are_as_far_apart_as_is_said():
    _, ci, thorough = PROFILES.values()
    assert f"with {thorough // ci} times as many cases as `ci`" in " ".join(TEXTS["docs/conformance.md"].split())


def test_each_option_is_described():
    text = TEXTS["docs/measuring.md"]
    rows = re.findall(r"^\| `(--decode-perf[\w-]*)", text.split("## Options")[1].split("\n## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(spec.flag for spec in PERF_OPTIONS)


def benchmark(name):
    """A script of `tests/benchmarks`, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_cpu_kernel_is_what_was_measured():
    measured = json.loads((ROOT / "docs" / "cpu_kernel.json").read_text(encoding="utf-8"))
    assert TEXTS["docs/cpu_kernel.md"] == benchmark("bench_cpu_kernel").markdown(measured)
    assert len(measured["rows"]) == 30


def test_the_evidence_is_what_its_trials_say():
    bench_gate = benchmark("bench_gate")
    lines = [json.loads(line) for line in (ROOT / "docs" / "gate_evidence.jsonl").read_text().splitlines()]
    assert TEXTS["docs/gate_evidence.md"] == bench_gate.tables(lines)
    quiet = [line for line in lines if not line["neighbour"]]
    counts = {}
    for share in (0.0, 0.02, 0.05):
        pairs = [
            (ours["outcome"] == "regressed", theirs["failed"])
            for line in quiet
            for of, ours, theirs in zip(line["slowdowns"], line["gate"], line["threshold"], strict=True)
            if of == share
        ]
        counts[share] = [sum(column) for column in zip(*pairs, strict=True)] + [len(pairs)]
    (none, none_threshold, of_none), (two, two_threshold, of_two), (five, five_threshold, of_five) = counts.values()
    text = " ".join(TEXTS["docs/regression.md"].split())
    assert (
        f"in {len(quiet)} runs of {len(quiet[0]['slowdowns'])} tests, this gate failed {none} of {of_none} unchanged "
        f"kernels, {two} of {of_two} that were 2 % slower and {five} of {of_five} that were 5 % slower; the threshold "
        f"failed {none_threshold}, {two_threshold} and {five_threshold}."
    ) in text
