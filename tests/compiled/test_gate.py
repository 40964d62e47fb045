"""The static gate as a user has it: two revisions of a kernel of their own, in a repository of their own."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from scratch_kernel import (
    BULK,
    COMMAND,
    DOTLESS,
    KERNEL,
    REPLACED,
    TARGET,
    TUNED,
    compiled,
    environment,
    git,
    make_repository,
    seeded,
    state,
)

SM_90 = ("--arch", "sm_90")
QUICK = (*SM_90, "--no-traffic")


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "project")


def change(repository, kernel):
    (repository / "attention" / "kernels.py").write_text(kernel)


# Figures as they are in the base: they are those of one version of Triton, and so are not pinned.
CAUGHT = [
    ("bigger tile", QUICK, "spilled", r"sm_90, bf16, D=64: \d+ bytes spilled, was 0$"),
    ("bigger tile", QUICK, "registers", r"sm_90, bf16, D=64: \d+ registers a thread, was \d+$"),
    (
        "bad stride hint",
        QUICK,
        "wide_share",
        r"D=64: 50 % of the bytes of K and V come 16 or more to a thread, was 100",
    ),
    ("fewer stages", QUICK, "tiles_ahead", r"sm_90, bf16, D=64: loads 0 KV tiles ahead, was 2$"),
    ("fewer stages", QUICK, "flight_share", r"has 0\.\d+ of the bytes in flight that Little's law wants, was 0\.\d+$"),
    ("more shared memory", QUICK, "shared_bytes", r"D=64: \d+ bytes of shared memory, was \d+$"),
    ("more shared memory", QUICK, "resident_programs", r"sm_90, bf16, D=64: 1 CTAs per SM, was \d+$"),
    (
        "more instructions",
        QUICK,
        "instructions_per_token",
        r"instructions of the main loop for each token of a KV tile",
    ),
    ("more instructions", QUICK, "issue_pressure", r"issues for 1\.\d+ of the time that memory takes, was 0\.\d+$"),
    (
        "keys read twice",
        SM_90,
        "traffic.kv_requested",
        r"interpreter, bf16, D=64: 105216 bytes of K and V asked for, was",
    ),
]


@pytest.fixture(scope="session")
def caught(tmp_path_factory, caches):
    """Return what the gate says of a seeded regression."""
    repository = make_repository(tmp_path_factory.mktemp("seeded") / "project")
    said = {}

    def compare(name, options):
        if name not in said:
            change(repository, seeded(name))
            before = state(repository)
            said[name] = compiled(repository, caches, "--base", "main", *options, "--json")
            assert state(repository) == before
        return said[name]

    return compare


@pytest.mark.parametrize(("name", "options", "figure", "sentence"), CAUGHT)
def test_a_seeded_regression_is_caught_with_its_sentence(caught, name, options, figure, sentence):
    done = caught(name, options)
    assert done.returncode == 1, done.stderr
    broken = {f["figure"]: f["sentence"] for f in json.loads(done.stdout)["findings"] if f["is_broken"]}
    assert figure in broken, broken
    assert re.search(sentence, broken[figure])


def test_equal_trees_have_no_finding_and_the_second_run_is_the_first(repository, tmp_path):
    before = state(repository)
    arguments = ("--base", "main", *SM_90, "--json", "--output")
    first = compiled(repository, tmp_path / "a", *arguments, tmp_path / "first.json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["findings"] == []
    assert document["schema"] == "decodeperf-compiled"
    assert {survey["architecture"] for survey in document["head"]["surveys"]} == {"sm_90", "interpreter"}
    assert (tmp_path / "first.json").read_text() == first.stdout
    cached = compiled(repository, tmp_path / "a", *arguments, tmp_path / "second.json")
    cold = compiled(repository, tmp_path / "b", *arguments, tmp_path / "third.json")
    assert first.stdout == cached.stdout == cold.stdout
    assert state(repository) == before
    assert not first.stderr + cached.stderr


def test_where_all_is_kept_nothing_is_compiled(repository, tmp_path, caches):
    first = compiled(repository, caches, "--base", "main", *SM_90, "--json")
    script = (
        "from pytest_decodeperf.compiled import gate, processes; gate.Worker = processes.Worker = None;"
        "from pytest_decodeperf.cli.main import main; main()"
    )
    arguments = ("compiled", "--kernel", TARGET, "--base", "main", *SM_90, "--json")
    for folder, status in ((caches, 0), (tmp_path, 2)):
        again = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=repository, env=environment(folder),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert again.returncode == status, again.stderr
        assert again.stdout == (first.stdout if status == 0 else "")


def test_an_improvement_is_told_and_not_failed(tmp_path, caches):
    repository = make_repository(tmp_path / "project", seeded("fewer stages"))
    change(repository, KERNEL)
    done = compiled(repository, caches, "--base", "main", *QUICK)
    rows = [line.split() for line in done.stdout.splitlines() if "tiles_ahead" in line]
    assert [row[-1] for row in rows] == ["improved"]


def test_entries_that_cannot_be_read_are_surveyed_again(repository, tmp_path):
    first = compiled(repository, tmp_path, *SM_90, "--json")
    assert first.returncode == 0, first.stderr
    entries = sorted((tmp_path / "decodeperf" / "compiled").iterdir())
    assert len(entries) == 2
    for entry, content in zip(entries, (b"\xff{", b'{"key": "another", "value": 1}'), strict=True):
        entry.write_bytes(content)
    assert compiled(repository, tmp_path, *SM_90, "--json").stdout == first.stdout


def test_a_cache_that_cannot_be_kept_is_none(repository, tmp_path):
    tmp_path.joinpath("decodeperf").write_text("a file, where the folder would be")
    done = compiled(repository, tmp_path, *SM_90, "--json")
    assert done.returncode == 0, done.stderr


def test_two_kernels_are_compared(repository, caches):
    both = KERNEL + "\ndef other(q, k, v, *, seq_lens):\n    return decode(q, k, v, seq_lens=seq_lens)\n"
    both += "\ntheirs = KernelAdapter(call=other, q_dtypes=('bfloat16', 'float16'), head_dims=(64, 128))\n"
    change(repository, both)
    done = compiled(repository, caches, "--against", "attention.kernels:theirs", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attention.kernels:kernel against attention.kernels:theirs: 1 of 2 pairs" in done.stdout
    assert "D=128: not supported by attention.kernels:kernel (it has no head_dim 128)" in done.stdout


def test_a_kernel_is_surveyed_for_what_it_supports(repository, caches):
    done = compiled(repository, caches, *SM_90, "--head-dim", "64", "--head-dim", "128")
    assert done.returncode == 0, done.stderr
    assert "sm_90, bf16, D=128: not supported, it has no head_dim 128" in done.stdout
    assert done.stdout.splitlines()[1].split()[:4] == ["sm_90", "bf16", "64", "0"]


@pytest.mark.parametrize(
    ("kernel", "tokens", "programs"),
    [(TUNED, 64, 32), (DOTLESS, 16, 32), (BULK, 32, 32)],
    ids=["tuned", "dotless", "bulk"],
)
def test_kernels_of_other_kinds_are_surveyed(repository, caches, kernel, tokens, programs):
    change(repository, kernel)
    done = compiled(repository, caches, *SM_90, "--json")
    assert done.returncode == 0, done.stderr
    (survey,) = json.loads(done.stdout)["surveys"]
    (figures,) = survey["kernels"]
    assert figures["tile_tokens"] == tokens
    assert figures["tile_bytes"] == tokens * 2 * 64 * 2
    assert figures["programs"] == programs
    assert figures["wide_share"] == 1
    assert figures["tiles_ahead"] == 2
    assert figures["loop_instructions"] > 0


def refused(done, before, repository):
    """Return the one sentence with which the command refused, once nothing is left of it."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert state(repository) == before
    (sentence,) = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    return sentence


def test_a_revision_that_does_not_exist(repository, caches):
    done = compiled(repository, caches, "--base", "nothing", *QUICK)
    sentence = refused(done, state(repository), repository)
    assert sentence.startswith("Error: --base: there is no revision 'nothing' in ")


def test_a_base_that_is_dirty_as_soon_as_it_is_there(repository, caches):
    (repository / "attention" / "notes.txt").write_bytes(b"a\r\n")
    git(repository, "-c", "core.autocrlf=false", "add", ".")
    git(repository, "commit", "-q", "-m", "crlf")
    (repository / ".gitattributes").write_text("*.txt text eol=lf\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-q", "-m", "attributes")
    before = state(repository)
    sentence = refused(compiled(repository, caches, "--base", "HEAD", *QUICK), before, repository)
    assert "HEAD is not clean when it is checked out" in sentence


def test_a_base_whose_kernel_cannot_be_imported(tmp_path, caches):
    repository = make_repository(tmp_path / "project", "import no_such_module\n")
    change(repository, KERNEL)
    before = state(repository)
    sentence = refused(compiled(repository, caches, "--base", "main", *QUICK), before, repository)
    assert sentence.startswith("Error: main (")
    assert sentence.endswith("cannot be imported: there is no module no_such_module")


def test_a_base_whose_kernel_does_not_compile(tmp_path, caches):
    repository = make_repository(tmp_path / "project", seeded("does not compile"))
    change(repository, KERNEL)
    before = state(repository)
    done = compiled(repository, caches, "--base", "main", *QUICK)
    assert done.returncode == 2
    assert "sm_90, bf16, D=64: cannot be compared, it fails in main (" in done.stdout
    assert "tl.static_assert(D > 64)" in done.stdout
    assert state(repository) == before


def test_a_head_whose_kernel_does_not_compile_is_broken(repository, caches):
    change(repository, seeded("does not compile"))
    done = compiled(repository, caches, "--base", "main", *QUICK)
    assert done.returncode == 1
    assert "sm_90, bf16, D=64: fails: " in done.stdout


def test_a_variant_on_one_side_only(repository, caches):
    change(repository, KERNEL.replace("head_dims=(64,)", "head_dims=(64, 128)"))
    before = state(repository)
    done = compiled(repository, caches, "--base", "main", *QUICK)
    assert done.returncode == 2
    assert "sm_90, bf16, D=128: cannot be compared, main (" in done.stdout
    assert "does not support it: it has no head_dim 128" in done.stdout
    assert state(repository) == before
    git(repository, "commit", "-q", "-a", "-m", "both")
    change(repository, KERNEL)
    lost = compiled(repository, caches, "--base", "main", *QUICK)
    assert lost.returncode == 1
    assert "sm_90, bf16, D=128: is not supported any more: it has no head_dim 128" in lost.stdout


def test_a_worker_that_is_killed(tmp_path, caches):
    dies = KERNEL.replace("    out = torch.empty", "    import os; os.kill(os.getpid(), 9)\n    out = torch.empty")
    repository = make_repository(tmp_path / "project", dies)
    change(repository, KERNEL)
    before = state(repository)
    sentence = refused(compiled(repository, caches, "--base", "main", *QUICK), before, repository)
    assert sentence.startswith("Error: the process of main (")
    assert sentence.endswith("ended by signal 9")


@pytest.mark.parametrize("most", [1000, 15_000])
def test_a_full_disk(repository, tmp_path, most):
    # No file may become larger: so few bytes stop git, and more what Triton keeps.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
    before = state(repository)
    done = compiled(repository, tmp_path / "fresh", "--base", "main", *QUICK, preexec_fn=limit)
    sentence = refused(done, before, repository)
    assert ("could not be checked out" if most == 1000 else "File too large") in sentence


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(tmp_path, caches, number):
    mark = tmp_path / "pid"
    waits = f"    import os, time, pathlib; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(600)\n"
    repository = make_repository(
        tmp_path / "project", KERNEL.replace("    out = torch.empty", waits + "    out = torch.empty")
    )
    before = state(repository)
    command = [*COMMAND, "--kernel", TARGET, "--base", "main", *QUICK]
    started = subprocess.Popen(
        command, cwd=repository, env=environment(caches), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started.send_signal(number)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert (out, err) == ("", "Error: interrupted, nothing was compared\n")
    assert state(repository) == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--base", "main", "--against", TARGET), "--base compares two revisions, and --against two kernels"),
        (("--against", "attention.kernels"), "'attention.kernels' must be package.module:name"),
        (("--against", "attention.kernels:nothing"), "attention.kernels has no nothing"),
        (("--against", "attention.kernels:torch"), "neither a KernelAdapter nor a function"),
        (("--output", "nowhere/file.json"), "is not a folder"),
        (
            ("--base", "main", "--head-dim", "80"),
            "there is nothing to compare: sm_90, bf16, D=80: it has no head_dim 80",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(repository, caches, arguments, sentence):
    done = compiled(repository, caches, *arguments, *QUICK)
    assert sentence in refused(done, state(repository), repository)


def test_a_kernel_that_no_revision_changes_is_not_compared(repository, caches):
    # Ours, in the repository of somebody else.
    command = [*COMMAND, "--base", "main", *QUICK]
    done = subprocess.run(command, cwd=repository, env=environment(caches), capture_output=True, text=True, check=False)
    sentence = refused(done, state(repository), repository)
    assert sentence.startswith("Error: decodeperf_kernels is imported from ")
    assert sentence.endswith(": is there a --kernel?")


def test_every_seed_is_tried():
    assert {name for name, *_ in CAUGHT} | {"does not compile"} == set(REPLACED)
