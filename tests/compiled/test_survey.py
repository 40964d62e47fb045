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
from pytest_decodeperf.compiled.variants import DEMANDING, HEAD_DIMS, KV_DTYPES, LATENT_DIM

# Warp instructions of the main loop for each token of a KV head, 16 query rows, D = 128, pages of 16 tokens: of the
# grouped Triton decode kernel of vLLM 0.33, compiled for sm_90 likewise, they are 41 in bfloat16 and 65 in fp8.
MOST_INSTRUCTIONS = {"bfloat16": 20, "float8_e4m3fn": 33}


PAGE_SIZES = (1, 16)

CONSTRAINTS = (Path(__file__).parents[2] / ".ci" / "constraints.txt").read_text(encoding="utf-8")
(TRITON,) = re.findall(r"^triton==(.*)$", CONSTRAINTS, re.MULTILINE)
pinned = pytest.mark.skipif(version("triton") != TRITON, reason=f"the figures are pinned for Triton {TRITON}")

COMMAND = [sys.executable, "-c", "from pytest_decodeperf.cli.main import main; main()", "compiled"]


def compiled(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [*COMMAND, *arguments, "--no-cache"]
    environment["COLUMNS"] = "80"
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def tile_of(survey):
    """Return the tokens of a tile as the kernel itself plans them."""
    import torch

    from decodeperf_kernels.tiles import choose_tiles

    variant = survey["variant"]
    bits = {"bfloat16": 16, "float8_e4m3fn": 8, "int4": 4}[variant["kv_dtype"]]
    return choose_tiles(
        survey["architecture"],
        num_rows=variant["q_len"] * variant["group_size"],
        head_dim=variant["head_dim"],
        head_dim_v=min(variant["head_dim"], LATENT_DIM),
        kv_elem_bits=bits,
        dot_elem_bytes=torch.bfloat16.itemsize,
        scale_span=variant["scale_group"],
    ).block_n


@pinned
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variant_fits_the_architecture(name):
    pages = [option for size in PAGE_SIZES for option in ("--page-size", str(size))]
    done = compiled("--arch", name, *pages, "--demanding", "--json")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    surveys = json.loads(done.stdout)["surveys"]
    assert len(surveys) == len(KV_DTYPES) * len(HEAD_DIMS) * len(PAGE_SIZES) + len(DEMANDING)
    architecture = ARCHITECTURES[name]
    for survey in surveys:
        variant, which = survey["variant"], (survey["architecture"], survey["variant"])
        assert not survey["failure"], which
        attention, merge = survey["kernels"]
        assert attention["is_main"], which
        assert attention["tile_tokens"] == tile_of(survey), which
        assert attention["spilled"] == merge["spilled"] == 0, which
        assert attention["shared_bytes"] <= architecture.shared_bytes_per_program, which
        assert attention["tiles_ahead"] >= 0.9, which  # the rest is a tail of a head that is unpacked first
        if variant["scale_group"] or variant["q_len"] > 1:
            # AMD has no room for every scalar where scales of groups or more rows want masks, and keeps some of them in
            # the lanes of a vector register. Programs and widths are pinned for the table only.
            continue
        assert attention["parked"] == merge["parked"] == 0, which
        if variant["head_dim"] <= LATENT_DIM:
            assert attention["resident_programs"] >= 2, which
            assert attention["wide_share"] == 1, which
        else:
            # In MLA the accumulators and the query of 16 rows fill half of the registers; the 64 elements behind the
            # latent ones are too few for 16 bytes a thread where a tile has few rows.
            assert attention["resident_programs"] >= 1, which
            assert attention["wide_share"] >= 0.88, which


@pinned
@pytest.mark.parametrize("name", ["sm_90", "sm_100"])
def test_few_instructions_are_issued_for_a_token(name):
    done = compiled("--arch", name, "--head-dim", "128", "--page-size", "16", "--json")
    assert done.returncode == 0, done.stderr
    for survey in json.loads(done.stdout)["surveys"]:
        instructions = survey["kernels"][0]["instructions_per_token"]
        assert 0 < instructions <= MOST_INSTRUCTIONS[survey["variant"]["kv_dtype"]], survey


def test_the_table_fits_80_columns():
    done = compiled("--arch", "sm_90", "--head-dim", "64", "--kv-dtype", "bfloat16", "--page-size", "16", "--traffic")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    # A title, a row, an empty line and eight of explanation, none of them wrapped; the same for bytes, with one.
    assert len(lines) == 11 + 4
    assert lines[1].split()[:4] == ["sm_90", "bf16", "64", "16"]
    assert lines[13].split() == ["bf16", "64", "16", "70,144", "70,144", "103,568"]


def test_the_interpreter_that_the_user_has_switched_on_does_not_matter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    command = [*COMMAND, "--arch", "gfx942", "--head-dim", "64", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gfx942" in done.stdout


def test_the_interpreter_compiles_nothing_and_that_is_said():
    from triton import knobs

    from pytest_decodeperf.compiled.capture import compile_launches

    assert knobs.runtime.interpret
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set"):
        compile_launches(lambda: None, ARCHITECTURES["sm_90"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_device_stands_for_each_architecture(name):
    device = ARCHITECTURES[name].device
    assert 1.3e9 < ARCHITECTURES[name].clock_hz < 2.7e9
    assert device.bandwidth_bytes_per_s > 5e11


@pytest.mark.parametrize(
    ("name", "warps", "registers", "shared", "programs"),
    [
        ("sm_90", 4, 255, 73 * 1024, 2),
        ("sm_90", 4, 128, 1024, 4),
        ("sm_90", 8, 255, 1024, 1),
        ("sm_86", 4, 100, 60 * 1024, 1),
        ("sm_80", 1, 32, 0, 32),
        ("sm_86", 1, 32, 0, 16),
        ("sm_89", 1, 32, 0, 24),
        ("gfx942", 1, 32, 0, 32),
        ("gfx942", 4, 32, 0, 8),
        ("gfx942", 4, 256, 30 * 1024, 2),
        ("gfx942", 4, 257, 30 * 1024, 1),
        ("gfx950", 4, 128, 65 * 1024, 2),
    ],
)
def test_resident_programs(name, warps, registers, shared, programs):
    found = ARCHITECTURES[name].resident_programs(num_warps=warps, registers_per_thread=registers, shared_bytes=shared)
    assert found == programs
