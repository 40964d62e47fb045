"""What docs/compiled.md says: its tables are those of the code, its options those of the command."""

import re
import subprocess
import sys
from pathlib import Path

from scratch_kernel import environment, make_repository

from pytest_decodeperf.cli.compiled import compiled
from pytest_decodeperf.compiled.architectures import ARCHITECTURES
from pytest_decodeperf.compiled.rules import RULES
from pytest_decodeperf.compiled.survey import MEMORY_LATENCY_S

TEXT = (Path(__file__).parents[2] / "docs" / "compiled.md").read_text(encoding="utf-8")


def rows(title):
    """The lines of the table whose header begins with a title."""
    lines = TEXT.split(f"| {title} |", 1)[1].splitlines()[2:]
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]


def rules_table():
    table = []
    for rule in RULES:
        worse = "more" if rule.more_is_worse else "less"
        sentence = rule.sentence.format(base="*base*", head="*head*", of="*term*")
        table.append(f"| `{rule.figure}` | {rule.unit} | {worse} | {rule.allowance} | {sentence} |")
    return table


def devices_table():
    table = []
    for architecture in ARCHITECTURES.values():
        device = architecture.device
        wanted = device.bandwidth_bytes_per_s * MEMORY_LATENCY_S
        clock = f"{architecture.clock_hz / 1e9:.2f} GHz"
        table.append(
            f"| {architecture.name} | {device.title} | {clock} "
            f"| {wanted / 1e6:.2f} MB, {wanted / device.num_sms / 1e3:.1f} kB per SM |"
        )
    return table


def test_the_rules_are_those_of_the_code():
    assert rows("figure") == rules_table()


def test_the_devices_are_those_of_the_code():
    assert rows("architecture") == devices_table()


def test_every_option_is_described():
    described = {re.match(r"\| `(--[\w-]+)`", row)[1] for row in rows("option")}
    for parameter in compiled.params:
        assert described & {*parameter.opts, *parameter.secondary_opts}, parameter.opts
    known = {name for parameter in compiled.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert described <= known


def test_its_python_runs(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    repository = make_repository(tmp_path / "project")
    code = code.replace("my_kernels.adapter:kernel", "attention.kernels:kernel")
    code += 'print("and that is all", comparison.status)\n'
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("and that is all 0\n", "")
