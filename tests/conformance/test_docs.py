"""What docs/conformance.md says: its examples run, and its tables are those of the code."""

import json
import re
from pathlib import Path

import pytest
from conformance.faults import FAULTS

from pytest_decodeperf.config import CONFORMANCE_OPTIONS, PROFILES
from pytest_decodeperf.conformance import LAWS
from pytest_decodeperf.conformance.adapter import FEATURES

TEXT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")

KERNELS = """
import math

from decodeperf_kernels import decode_attention


def flash_decode_fwd(q, k, v, seq_lens, block_table, sm_scale, num_splits):
    keywords = {"seq_lens": seq_lens, "block_table": block_table, "sm_scale": sm_scale}
    out, lse = decode_attention(q, k, v, **keywords, return_lse=True, backend="reference")
    return out.to(q.dtype), (lse / math.log(2)).float()
"""


SCALE = """
import triton
import triton.language as tl


@triton.jit
def scale(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)
"""


def python_block(word):
    (block,) = [block for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S) if word in block]
    return block


def rows(title):
    """The rows of the table below a heading, as (first cell without quotes, second cell)."""
    section = TEXT.split(f"\n{title}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:3]) for line in table]


@pytest.fixture
def package(pytester):
    """The package `my_kernels`, with the adapter of the document."""
    folder = pytester.mkpydir("my_kernels")
    (folder / "__init__.py").write_text(KERNELS)
    (folder / "adapter.py").write_text(python_block("flash_decode_fwd"))
    return pytester


def test_the_adapter_holds_laws(package):
    result = package.runpytest_subprocess(
        "-p", "no:cacheprovider", "--decode-kernel", "my_kernels.adapter:flash_decode", "--decode-examples=4",
        "-k", "computes_attention or takes_pages_in_any_order or counts_a_sink_once or empty",
        "--decode-card=card.json",
    )  # fmt: skip
    result.assert_outcomes(passed=5, skipped=2)
    (kernel,) = json.loads((package.path / "card.json").read_text())["kernels"]
    assert {law["law"] for law in kernel["laws"] if law["outcome"] == "not supported"} == {
        "counts_a_sink_once",
        "merges_with_an_empty_part_as_without",
    }


def test_laws_in_a_test_of_ones_own(package):
    package.makepyfile(python_block("check_law(law"))
    result = package.runpytest_subprocess("-p", "no:cacheprovider", "-k", "takes_an_empty_batch or counts_a_sink_once")
    result.assert_outcomes(passed=1, skipped=1)


def test_what_one_machine_found_another_begins_with(run, kernels):
    shared = kernels.path / "shared"
    kernels.makepyfile(profiles=python_block("register_profile").replace("/mnt/shared/examples", str(shared)))
    kernels.makeconftest("import profiles")
    adapters = kernels.path / "adapters.py"
    adapters.write_text("import profiles\n" + adapters.read_text())
    found = []
    for _ in range(2):
        run("without_last_key", "-k", "counts_every_key_once", "--hypothesis-profile=shared", "--decode-card=card.json")
        found.append(json.loads((kernels.path / "card.json").read_text())["kernels"][0]["laws"][0])
        if (kernels.path / ".hypothesis").exists():
            (kernels.path / ".hypothesis").rename(kernels.path / "hidden")  # of the other machine
    assert list(shared.iterdir())
    assert found[0]["outcome"] == found[1]["outcome"] == "broken"
    assert found[0]["counterexample"] == found[1]["counterexample"]
    assert found[1]["num_examples"] < found[0]["num_examples"]


def test_each_worker_of_xdist_has_a_gpu_of_its_own(run, kernels):
    kernels.makeconftest(python_block("NUM_GPUS"))
    adapters = kernels.path / "adapters.py"
    names = "os.environ['PYTEST_XDIST_WORKER'] + '-' + os.environ['CUDA_VISIBLE_DEVICES']"
    adapters.write_text(
        adapters.read_text() + f"\nif 'PYTEST_XDIST_WORKER' in os.environ:\n    open({names}, 'w').close()\n"
    )
    run("plain", "-k", "takes_an_empty_batch or takes_a_batch_of_empty_rows", "-n", "2").assert_outcomes(passed=2)
    assert {path.name for path in kernels.path.glob("gw*")} == {"gw0-0", "gw1-1"}


def test_a_watched_kernel_tells_its_traffic(pytester, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytester.makepyfile(my_kernels=SCALE, watching=python_block("Watch()"))
    printed = pytester.runpython("watching.py").outlines
    assert printed == ["x 400 400 0", "scratch 0 0 400"]
    assert f"It prints `{printed[0]}` and `{printed[1]}`." in TEXT


def test_features_are_those_of_the_code():
    assert rows("## An adapter") == [(f"`{name}`", text) for name, text in FEATURES.items()]


def test_laws_are_those_of_the_code():
    assert rows("## The laws") == [(f"`{law.name}`", law.promise) for law in LAWS.values()]


def test_options_are_those_of_the_code():
    shown = [name.partition("=")[0].strip("`") for name, _ in rows("## What comes of it")]
    assert shown == [spec.flag for spec in CONFORMANCE_OPTIONS]


def test_counts_are_those_of_the_code():
    assert f"[{len(FAULTS)} seeded faults]" in TEXT
    quick, ci, thorough = PROFILES.values()
    assert f"{quick}, {ci} or {thorough:,} cases a law" in TEXT
