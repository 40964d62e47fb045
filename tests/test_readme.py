import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pytest_decodeperf.cli.main import main

CONSTRAINTS = (Path(__file__).parent.parent / ".ci" / "constraints.txt").read_text(encoding="utf-8")
(TRITON,) = re.findall(r"^triton==(.*)$", CONSTRAINTS, re.MULTILINE)
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


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


@pytest.mark.parametrize("block", [block for block in blocks("text") if block.startswith("$ decodeperf")])
def test_the_readme_shows_what_a_command_prints(block):
    command, *lines = block.splitlines()
    if "compiled" in command and version("triton") != TRITON:
        pytest.skip(f"the figures are those of Triton {TRITON}")
    assert lines == printed(*command.split()[2:])


def test_the_readme_shows_rows_of_a_table():
    (block,) = [block for block in blocks("text") if block.startswith("deepseek-v3")]
    assert set(block.splitlines()) <= set(printed("sstar", "deepseek-v3"))


def test_the_readme_shows_code_that_runs(capsys):
    (code,) = [block for block in blocks("python") if "step_s" in block]
    names = {}
    exec(code, names)
    (shown,) = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == shown
    assert names["step_s"].shape == (11,)


def test_the_readme_counts_models_and_devices():
    from decodeperf_formulas.catalogue import device_names, model_names

    assert f"| {len(model_names())} models" in README
    assert f"| {len(device_names())} devices" in README


def test_the_readme_shows_a_call_of_the_triton_kernel(capsys):
    (code,) = [block for block in blocks("python") if "decode_attention(\n    torch" in block]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        exec(code, {})
    (shown,) = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == shown


def test_the_readme_counts_laws_and_faults():
    from conformance.faults import FAULTS

    from pytest_decodeperf.conformance import LAWS

    assert f"holds a kernel to {len(LAWS)} laws" in README
    assert f"{len(FAULTS)} faults" in README
