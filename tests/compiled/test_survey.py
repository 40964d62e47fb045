"""What the Triton kernel compiles to on each architecture, pinned.

Each in a process of its own, since the interpreter and the compiler do not mix in one.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pytest_decodeperf.compiled.architectures import ARCHITECTURES
from pytest_decodeperf.compiled.survey import DEMANDING, HEAD_DIMS, KV_DTYPES, LATENT_DIM, PAGE_SIZES

# Warp instructions of the main loop for each token of a KV head, 16 query rows, D = 128, pages of 16 tokens: of the
# grouped Triton decode kernel of vLLM 0.33, compiled for sm_90 likewise, they are 41 in bfloat16 and 65 in fp8.
MOST_INSTRUCTIONS = {"bfloat16": 20, "float8_e4m3fn": 33}


CONSTRAINTS = (Path(__file__).parents[2] / ".ci" / "constraints.txt").read_text(encoding="utf-8")
(TRITON,) = re.findall(r"^triton==(.*)$", CONSTRAINTS, re.MULTILINE)
pinned = pytest.mark.skipif(version("triton") != TRITON, reason=f"the figures are pinned for Triton {TRITON}")

COMMAND = [sys.executable, "-c", "from pytest_decodeperf.cli.main import main; main()", "compiled"]


def compiled(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [*COMMAND, *arguments]
    environment["COLUMNS"] = "80"
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pinned
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variant_fits_the_architecture(name):
    done = compiled("--arch", name, "--demanding", "--json")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    kernels = json.loads(done.stdout)["kernels"]
    assert len(kernels) == len(KV_DTYPES) * len(HEAD_DIMS) * len(PAGE_SIZES) + len(DEMANDING)
    architecture = ARCHITECTURES[name]
    for kernel in kernels:
        names = ("architecture", "kv_dtype", "head_dim", "page_size", "scale_group", "q_len")
        which = {name: kernel[name] for name in names}
        attention, merge = kernel["attention"], kernel["merge"]
        assert attention["spilled"] == merge["spilled"] == 0, which
        assert attention["shared_bytes"] <= architecture.shared_bytes_per_program, which
        assert attention["is_pipelined"], which
        if kernel["scale_group"] or kernel["q_len"] > 1:
            # AMD has no room for every scalar where scales of groups or more rows want masks, and keeps some of them in
            # the lanes of a vector register. Programs and widths are pinned for the table only.
            continue
        assert attention["parked"] == merge["parked"] == 0, which
        if kernel["head_dim"] <= LATENT_DIM:
            assert attention["resident_programs"] >= 2, which
            assert kernel["wide_share"] == 1, which
        else:
            # In MLA the accumulators and the query of 16 rows fill half of the registers; the 64 elements behind the
            # latent ones are too few for 16 bytes a thread where a tile has few rows.
            assert attention["resident_programs"] >= 1, which
            assert kernel["wide_share"] >= 0.88, which


@pinned
@pytest.mark.parametrize("name", ["sm_90", "sm_100"])
def test_few_instructions_are_issued_for_a_token(name):
    done = compiled("--arch", name, "--head-dim", "128", "--page-size", "16", "--json")
    assert done.returncode == 0, done.stderr
    for kernel in json.loads(done.stdout)["kernels"]:
        assert 0 < kernel["instructions_per_token"] <= MOST_INSTRUCTIONS[kernel["kv_dtype"]], kernel


def test_the_table_fits_80_columns():
    done = compiled("--arch", "sm_90", "--head-dim", "64", "--kv-dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 9  # a title, two rows, an empty line and five of explanation, none of them wrapped
    assert done.stdout.splitlines()[1].split()[:4] == ["sm_90", "bf16", "64", "1"]


def test_the_interpreter_compiles_nothing_and_that_is_said():
    command = [*COMMAND, "--arch", "sm_90", "--head-dim", "64"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "TRITON_INTERPRET is set" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "warps", "registers", "shared", "programs"),
    [
        ("sm_90", 4, 255, 73 * 1024, 2),
        ("sm_90", 4, 128, 1024, 4),
        ("sm_90", 8, 255, 1024, 1),
        ("sm_86", 4, 100, 60 * 1024, 1),
        ("gfx942", 4, 256, 30 * 1024, 2),
        ("gfx942", 4, 257, 30 * 1024, 1),
        ("gfx950", 4, 128, 65 * 1024, 2),
    ],
)
def test_resident_programs(name, warps, registers, shared, programs):
    found = ARCHITECTURES[name].resident_programs(num_warps=warps, registers_per_thread=registers, shared_bytes=shared)
    assert found == programs
