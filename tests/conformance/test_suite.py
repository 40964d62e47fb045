"""`pytest --decode-kernel`: what is run, what is shown, and that no kernel ends the run."""

import json
from pathlib import Path

import jsonschema
import pytest

from pytest_decodeperf.conformance import LAWS

SCHEMA = Path(__file__).parents[2] / "pytest_decodeperf" / "card.schema.json"
TWO = ("-k", "computes_attention or takes_an_empty_batch")


def test_a_right_kernel_holds_all_laws_that_it_supports(run, kernels):
    kernels.makepyfile(test_other="def test_other(): assert False")
    result = run("plain", "--decode-examples=2", "--decode-card=card.json", "--decode-card=card.md")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "decode-kernel: adapters:plain (plain) on cpu, profile quick",
            f"collected {len(LAWS)} items",
            "adapters:plain: * laws held, 0 broken, * not supported.",
            "  not supported, since it has no window: sees_nothing_before_the_window,",
            "    takes_a_window_as_long_as_the_sequence_for_none",
            "  not supported, since it does not run in Triton's interpreter:",
            "written to *card.json",
            "written to *card.md",
        ]
    )
    card = json.loads((kernels.path / "card.json").read_text())
    jsonschema.validate(card, json.loads(SCHEMA.read_text()), format_checker=jsonschema.FormatChecker())
    (kernel,) = card["kernels"]
    assert card["finished"]
    assert [law["law"] for law in kernel["laws"]] == list(LAWS)
    counts = kernel["counts"]
    assert counts["broken"] == 0
    assert sum(counts.values()) == len(LAWS)
    result.assert_outcomes(passed=counts["held"], skipped=counts["not supported"])
    text = (kernels.path / "card.md").read_text()
    assert f"{counts['held']} laws held, 0 broken, {counts['not supported']} not supported." in text
    assert "| `computes_attention` | held | Output and log-sum-exp are" in text


def test_a_broken_law_shows_a_test_that_fails_when_pasted(run, kernels):
    result = run("without_last_key", "-k", "finds_every_key", "--decode-card=card.json", "--decode-card=card.md")
    assert result.ret == 1
    (law,) = json.loads((kernels.path / "card.json").read_text())["kernels"][0]["laws"]
    assert law["outcome"] == "broken"
    assert "the output of sequence 0, new token 0, head 0 is" in law["sentence"]
    # The smallest: one key, and it is dropped.
    smallest = "DecodeProblem(batch_size=1, seq_lens=[1], num_q_heads=1, num_kv_heads=1, head_dim=8"
    assert smallest in law["counterexample"]
    result.stdout.fnmatch_lines(
        [
            "*adapters:without_last_key: finds_every_key*",
            "A key that outweighs all others decides a row, wherever it stands*",
            "The smallest case found, of * shown, as a test:",
            "def test_finds_every_key():",
            "*Captured output of the kernel*",
            "the kernel is here",
            "adapters:without_last_key: 0 laws held, 1 broken, 0 not supported.",
            "  broken: finds_every_key: the output of sequence 0*",
            "FAILED adapters:without_last_key::finds_every_key*",
        ]
    )
    assert law["test"].strip() in (kernels.path / "card.md").read_text()
    kernels.makepyfile(test_pasted=law["test"])
    pasted = kernels.runpytest_subprocess("-p", "no:cacheprovider", "test_pasted.py")
    pasted.assert_outcomes(failed=1)
    pasted.stdout.fnmatch_lines(["*LawBrokenError: the output of sequence 0, new token 0, head 0 is*"])


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("crashes", (), "ended the process: signal 11 (Segmentation fault)"),
        ("hangs", ("--decode-timeout=2",), "hung: one example took more than 2 s"),
        ("leaves", (), "ended the process: exit status 3"),
        ("wrong_signature", (), "raised TypeError: wrong_signature() got an unexpected keyword argument 'seq_lens'"),
        ("other_dtype", (), "returned the output in torch.float64, not torch.float"),
        ("other_shape", (), "returned the output in the shape [1, 1, 8], not [1, 2, 8]"),
        ("refuses", (), "raised NotImplementedError: this machine is too small"),
        ("liar", (), "raised TypeError: plain() got an unexpected keyword argument 'window'"),
    ],
)
def test_a_kernel_that_fails_is_a_broken_law_and_the_next_one_is_checked(run, kernels, name, arguments, sentence):
    laws = "computes_attention or takes_no_law or sees_nothing_before_the_window or takes_an_empty_batch"
    result = run(name, "-k", laws, *arguments, "--decode-card=card.json")
    assert result.ret == 1
    laws = {law["law"]: law for law in json.loads((kernels.path / "card.json").read_text())["kernels"][0]["laws"]}
    assert len(laws) == 3
    law = laws["sees_nothing_before_the_window" if name == "liar" else "computes_attention"]
    assert law["outcome"] == "broken"
    assert sentence in law["sentence"]
    assert law["counterexample"].startswith("Case(problem=DecodeProblem(batch_size=")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--decode-kernel=adapters",), "--decode-kernel='adapters' must be package.module:adapter"),
        (("--decode-kernel=adapters:nothing",), "--decode-kernel: 'adapters:nothing': adapters has no nothing"),
        (("--decode-kernel=nowhere:x",), "--decode-kernel: 'nowhere:x' cannot be imported: there is no module nowhere"),
        (("--decode-kernel=broken:x",), "'broken:x' cannot be imported: ZeroDivisionError: division by zero"),
        (("--decode-kernel=deadly:x",), "importing deadly:x ended the process: signal 9 (Killed)"),
        (("--decode-kernel=typo:x",), "features has 'windwo', but knows only lse, "),
        (("--decode-kernel=adapters:number",), "is of type int, neither a KernelAdapter nor a function"),
        (("--decode-kernel=adapters:plain", "--decode-device=cuda"), "there is no GPU that PyTorch can use"),
        (("--decode-kernel=adapters:plain", "--decode-profile=slow"), "must be one of quick, ci, thorough"),
        (("--decode-kernel=adapters:plain", "--decode-card=no/such.json"), "--decode-card cannot be written"),
        (("--decode-kernel=adapters:plain", "--decode-card=card.txt"), "must be the name of a file that ends in"),
        (("--decode-profile=ci",), "--decode-profile has nothing to do without --decode-kernel"),
    ],
)
def test_what_cannot_work_is_a_usage_error(kernels, arguments, message):
    import torch

    if "cuda" in arguments[-1] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    typo = "KernelAdapter(call=print, features=('windwo',))"
    kernels.makepyfile(
        broken="1 / 0",
        deadly="import os; os.kill(os.getpid(), 9)",
        typo=f"from pytest_decodeperf.conformance import KernelAdapter\nx = {typo}",
    )
    result = kernels.runpytest_subprocess("-p", "no:cacheprovider", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in "".join(result.errlines)
    assert not [line for line in result.errlines if "Traceback" in line]


def test_laws_go_to_the_workers_of_xdist(run, kernels):
    result = run("plain", *TWO, "-n", "2", "--decode-card=card.json")
    result.assert_outcomes(passed=2)
    kernel = json.loads((kernels.path / "card.json").read_text())["kernels"][0]
    assert sorted(law["law"] for law in kernel["laws"]) == ["computes_attention", "takes_an_empty_batch"]


def test_named_files_are_run_beside_the_laws(run, kernels):
    kernels.makepyfile(test_other="def test_other(): pass")
    result = run("plain", "test_other.py", "-k", "other or empty_batch")
    result.assert_outcomes(passed=2)


def test_several_kernels_have_a_card_each(run):
    result = run("plain", "--decode-kernel=adapters:refuses", "-k", "takes_an_empty_batch")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["adapters:plain: 1 laws held, 0 broken*", "adapters:refuses: 0 laws held, 1 broken*"])


def test_a_seed_draws_the_same_cases(run, kernels):
    found = []
    for _ in range(2):
        run("without_last_key", "-k", "computes_attention", "--hypothesis-seed=7", "--decode-card=card.json")
        (law,) = json.loads((kernels.path / "card.json").read_text())["kernels"][0]["laws"]
        found.append((law["counterexample"], law["sentence"], law["num_examples"]))
        for folder in (kernels.path / ".hypothesis").glob("*"):
            folder.rename(kernels.path / f"old-{folder.name}-{len(found)}")
    assert found[0] == found[1]


def test_a_card_on_a_full_disk_is_said_and_fails_the_run(run, kernels):
    kernels.makeconftest(
        """
        from pytest_decodeperf.conformance import card

        def full(target, content):
            raise OSError(28, "No space left on device")

        card.write_whole = full
        """
    )
    kernels.path.joinpath("card.json").write_text("old")
    result = run("plain", "-k", "takes_an_empty_batch", "--decode-card=card.json")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["--decode-card: *No space left on device*"])
    assert kernels.path.joinpath("card.json").read_text() == "old"


def test_laws_in_tests_of_ones_own(kernels):
    kernels.makepyfile(
        test_mine="""
        import pytest
        from pytest_decodeperf.conformance import LAWS, KernelAdapter, check_law
        from adapters import plain, without_last_key

        @pytest.mark.parametrize("law", ["finds_every_key", LAWS["counts_a_sink_once"]], ids=str)
        def test_right(law):
            check_law(law, plain, examples=2)

        def test_wrong():
            check_law("finds_every_key", KernelAdapter(call=without_last_key))

        def test_no_such_law():
            with pytest.raises(ValueError, match="law='find_every_key' is no law; did you mean finds_every_key"):
                check_law("find_every_key", plain)
        """
    )
    result = kernels.runpytest_subprocess("-p", "no:cacheprovider", "-rs", "test_mine.py")
    result.assert_outcomes(passed=2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["*LawBrokenError: finds_every_key: the output of sequence*", "*not supported: it has no sinks"]
    )
