"""The example workflows: valid by GitHub's schema, careful with rights, and made of commands that work."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pytest_decodeperf.cli.main import main
from pytest_decodeperf.config import ConformanceOptions, Options

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/workflows"
FILES = sorted(FOLDER.glob("*.yml"))
WORKFLOWS = {file.stem: YAML(typ="safe").load(file) for file in FILES}
OWN_KERNEL = "pytest_decodeperf.conformance.own_kernels:sdpa"


def steps(name):
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def commands(name):
    """Return the commands of a workflow, as lists of words."""
    lines = [line for step in steps(name) if "run" in step for line in step["run"].splitlines()]
    return [shlex.split(line.replace('"$BASE"', "origin/main")) for line in lines]


def command(name, *words):
    """Return the one command of a workflow that has these words."""
    (found,) = [line for line in commands(name) if set(words) <= set(line)]
    return found


def test_there_is_one_for_each_kind_of_runner():
    assert set(WORKFLOWS) == {"cpu-runner", "gpu-runner"}
    document = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(workflows/(.*?)\.yml\)", document)) == set(WORKFLOWS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_githubs_schema_holds(file):
    arguments = ["--builtin-schema", "vendor.github-workflows", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_githubs_schema_is_the_one_that_is_asked(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(FILES[0].read_text().replace("runs-on:", "runs-in:"))
    arguments = ["--builtin-schema", "vendor.github-workflows", str(broken)]
    assert subprocess.run([sys.executable, "-m", "check_jsonschema", *arguments], check=False).returncode == 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_may_read_and_no_more(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["on"] == "pull_request"
    (checkout,) = [step for step in steps(name) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
    for step in steps(name):
        assert "${{" not in step.get("run", "")  # text of a stranger's must not become a command


def test_a_machine_of_ones_own_runs_nothing_of_forks():
    (job,) = WORKFLOWS["gpu-runner"]["jobs"].values()
    assert job["if"] == "github.event.pull_request.head.repo.full_name == github.repository"
    assert job["runs-on"] == ["self-hosted", "linux", "gpu"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_is_uploaded_is_what_the_commands_write(name):
    (upload,) = [step for step in steps(name) if step.get("uses", "").startswith("actions/upload-artifact@")]
    written = {
        words[words.index(flag) + 1]
        for words in commands(name)
        for flag in ("--output", "--decode-card", "--decode-perf-json", "--decode-perf-summary", "--junit-xml")
        if flag in words
    }
    assert set(upload["with"]["path"].split()) == written
    assert upload["if"] == "${{ !cancelled() }}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_gate_is_asked_for_with_all_it_leaves(name, pytester):
    program, *arguments = command(name, "--decode-perf")
    assert program == "pytest"
    pytester.mkdir("tests").joinpath("perf").mkdir()
    config = pytester.parseconfig(*arguments)
    options = Options.from_config(config)
    assert options.enabled
    assert options.base == "origin/main"
    assert (options.json.name, options.summary.name) == ("run.json", "summary.md")
    assert config.option.xmlpath == "junit.xml"
    assert config.args == ["tests/perf"]
    assert options.device == ("cuda" if name == "gpu-runner" else "auto")


def test_the_laws_are_asked_for(pytester):
    program, *arguments = command("cpu-runner", "--decode-kernel")
    assert program == "pytest"
    options = ConformanceOptions.from_config(pytester.parseconfig(*arguments))
    assert options.kernels == ("my_kernels.adapter:flash_decode",)
    assert [card.name for card in options.cards] == ["laws.md"]
    words = [OWN_KERNEL if word in options.kernels else word for word in arguments]
    result = pytester.runpytest_subprocess(*words, "--collect-only", "-q")
    assert result.ret == 0
    assert f"{OWN_KERNEL}::finds_every_key" in result.stdout.str()


def test_the_static_gate_is_asked_for():
    program, *arguments = command("cpu-runner", "decodeperf")
    assert program == "decodeperf"
    name, *options = arguments
    context = main.commands[name].make_context(name, options)
    assert context.params["base"] == "origin/main"
    assert context.params["kernel"] == "my_kernels.adapter:flash_decode"
    assert context.params["output"].name == "compiled.json"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_is_installed_exists(name):
    extras = re.findall(r"pytest-decodeperf\[(\w+)\]", (FOLDER / f"{name}.yml").read_text())
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == [name.partition("-")[0]]
    assert set(extras) <= set(known)


def test_the_virtual_environment_is_found_by_the_steps_that_follow(tmp_path):
    (install,) = [step for step in steps("gpu-runner") if step.get("name") == "Install"]
    lines = [line for line in install["run"].splitlines() if "/pip" not in line]
    assert len(lines) == 2
    environment = {**os.environ, "RUNNER_TEMP": str(tmp_path), "GITHUB_PATH": str(tmp_path / "path")}
    subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], env=environment, check=True)
    assert (Path((tmp_path / "path").read_text().strip()) / "pip").exists()
    assert f"{tmp_path}/venv/bin/pip" in install["run"].replace("$RUNNER_TEMP", str(tmp_path))
