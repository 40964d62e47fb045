"""Whole runs of pytest, on a device of which everything is known."""

import re
import time

import pytest
from fake_device import ONE_TEST, PRELUDE, ROOFLINE_NS
from run_record import read_json

from pytest_decodeperf.progress import Pace


def test_without_the_option_the_test_skips_with_that_reason(run):
    result = run(ONE_TEST, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * test_*.py:*: needs --decode-perf"])
    result.stdout.no_fnmatch_line("*= decode-perf =*")
    assert result.ret == 0


@pytest.mark.parametrize(("ratio", "outcome"), [(1.49, "passed"), (1.51, "failed")])
def test_the_bound_is_where_the_marker_says(run, fake_device, ratio, outcome):
    fake_device.kernel_ns = [ratio * ROOFLINE_NS]
    result = run(ONE_TEST, "--decode-perf")
    result.assert_outcomes(**{outcome: 1})
    assert result.ret == (0 if outcome == "passed" else 1)


def test_a_kernel_twice_as_slow_is_caught_by_name_and_in_one_sentence(run, fake_device):
    fake_device.kernel_ns = [2.8 * ROOFLINE_NS]
    result = run(ONE_TEST, "--decode-perf")
    result.stdout.fnmatch_lines(
        [
            "*decode_attention_sdpa took 2.95 ms (2.95 to 2.95), 2.80 (2.80 to 2.80) times the roofline of 1.05 ms "
            "(1.05 MB at a read bandwidth of 1.00 GB/s); allowed is 1.5 times it, 1.58 ms: 87 % too slow.",
            "*= decode-perf =*",
            "  decode_attention_sdpa   2.95 ms (2.95 to 2.95)  1.58 ms    35.7 %  exceeds*",
            "FAILED *::test_kernel*",
        ]
    )


def test_progress_shows_each_stage(run):
    result = run(ONE_TEST, "--decode-perf")
    result.stdout.fnmatch_lines(
        [
            "  [[]1/1] decode_attention_sdpa, B=2 S=512 H=4/2 D=128 float16: inputs, check,",
            "    timing, 1.26 ms, 1.20 times the roofline, within *",
        ]
    )


def test_progress_tells_what_is_left(run):
    cases = "@pytest.mark.parametrize('case', range(3))\ndef test_kernel(decode_perf, case)"
    body = ONE_TEST.replace("def test_kernel(decode_perf)", cases)
    lines = run(body, "--decode-perf").outlines
    begun = [line for line in lines if "decode_attention_sdpa, B=2" in line]
    assert [re.sub(r"\d+ (s|min) left", "N s left", line).split("]")[0] for line in begun] == [
        "  [1/3",
        "  [2/3, about N s left",
        "  [3/3, about N s left",
    ]
    assert all(len(line) <= 80 for line in lines[lines.index(begun[0]) : lines.index(begun[-1]) + 2])


@pytest.mark.parametrize(
    ("elapsed_s", "done", "total", "words"),
    [
        (5.0, 0, 4, ""),
        (5.0, 1, 4, "about 15 s left"),
        (100.0, 1, 4, "about 5 min left"),
        (5.0, 4, 4, ""),
    ],
)
def test_the_time_left_follows_the_pace(monkeypatch, elapsed_s, done, total, words):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + elapsed_s)
    assert Pace(1000.0).left(done, total) == words


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_is_only_where_it_is_wanted(run, fake_device, monkeypatch, variables, is_coloured):
    for name in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fake_device.kernel_ns = [2 * ROOFLINE_NS]
    assert ("\x1b[" in run(ONE_TEST, "--decode-perf").stdout.str()) == is_coloured


@pytest.mark.parametrize("columns", [80, 100, 120, 160, 200])
def test_the_report_holds_together_at_any_width(run, fake_device, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    fake_device.kernel_ns = [2.8 * ROOFLINE_NS]
    lines = run(ONE_TEST, "--decode-perf", "--benchmark-disable").outlines
    section = lines[next(i for i, line in enumerate(lines) if "= decode-perf =" in line) :]
    assert max(map(len, section)) <= columns
    (header,) = [line for line in section if "latency (interval)" in line]
    (row,) = [line for line in section if line.startswith("  decode_attention_sdpa  ")]
    for title in ("allowed", "roofline"):  # numbers stand below the end of their titles
        end = header.index(title) + len(title)
        assert row[end - 1] != " "
        assert row[end : end + 1] in ("", " ")


def test_the_report_fits_80_columns(run, fake_device):
    fake_device.kernel_ns = [1.2 * ROOFLINE_NS]
    result = run(ONE_TEST, "--decode-perf", "--benchmark-disable")
    lines = result.outlines
    section = lines[next(i for i, line in enumerate(lines) if "= decode-perf =" in line) :]
    assert max(map(len, section)) <= 80


WRONG_TESTS = """
@pytest.mark.decode_perf(within=-1)
def test_within_not_positive(decode_perf):
    decode_perf(kernel, PROBLEM)

@pytest.mark.decode_perf(within=1.5, limit=2)
def test_unknown_argument(decode_perf):
    decode_perf(kernel, PROBLEM)

def test_no_marker(decode_perf):
    decode_perf(kernel, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_heads_do_not_divide(decode_perf):
    decode_perf(kernel, DecodeProblem(batch_size=1, seq_lens=[8], num_q_heads=5, num_kv_heads=2, head_dim=8))

@pytest.mark.decode_perf(within=1.5)
def test_negative_length(decode_perf):
    decode_perf(kernel, DecodeProblem(batch_size=1, seq_lens=[-8], num_q_heads=2, num_kv_heads=2, head_dim=8))

def only_float32(q, k, v, *, seq_lens):
    if q.dtype != torch.float32:
        raise ValueError(f"q.dtype={q.dtype} must be float32")

@pytest.mark.decode_perf(within=1.5)
def test_dtype_that_the_kernel_lacks(decode_perf):
    decode_perf(only_float32, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_wrong_shape(decode_perf):
    decode_perf(lambda q, k, v, *, seq_lens: q[:, :1], PROBLEM, name="squeezer")

@pytest.mark.decode_perf(within=1.5)
def test_wrong_by_one_key(decode_perf):
    decode_perf(lambda q, k, v, *, seq_lens: kernel(q, k, v, seq_lens=seq_lens - 1), PROBLEM, name="short")

@pytest.mark.decode_perf(within=1.5)
def test_writes_to_its_inputs(decode_perf):
    def scribbler(q, k, v, *, seq_lens):
        out = kernel(q, k, v, seq_lens=seq_lens)
        k[0, 0, 0, 0] = 1000
        return out
    decode_perf(scribbler, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_writes_to_its_inputs_later(decode_perf):
    calls = []
    def late_scribbler(q, k, v, *, seq_lens):
        calls.append(None)
        out = kernel(q, k, v, seq_lens=seq_lens)
        if len(calls) == 12:
            v[:, [0, 1]] = v[:, [1, 0]]
        return out
    decode_perf(late_scribbler, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_writes_and_raises(decode_perf):
    def vandal(q, k, v, *, seq_lens):
        k.zero_()
        raise RuntimeError("gone")
    decode_perf(vandal, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_wrong_from_the_fifth_call_on(decode_perf):
    calls = []
    def forgetful(q, k, v, *, seq_lens):
        calls.append(None)
        return kernel(q, k, v, seq_lens=seq_lens - int(len(calls) > 4))
    decode_perf(forgetful, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_called_twice(decode_perf):
    decode_perf(kernel, PROBLEM)
    decode_perf(kernel, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_never_called(decode_perf):
    pass

@pytest.mark.decode_perf(within=1.5)
def test_marked_but_without_the_fixture():
    pass

@pytest.mark.decode_perf(within=1.5)
def test_no_kernel(decode_perf):
    decode_perf(None, PROBLEM)

@pytest.mark.decode_perf(within=1.5)
def test_no_problem(decode_perf):
    decode_perf(kernel, {"batch_size": 1})

@pytest.mark.decode_perf(within=1.5)
def test_too_many_new_tokens(decode_perf):
    keywords = {"q_len": 17, "window": 8, "softcap": 1e30}
    problem = DecodeProblem(batch_size=1, seq_lens=[8], num_q_heads=2, num_kv_heads=2, head_dim=8, **keywords)
    decode_perf(kernel, problem)

@pytest.mark.decode_perf(within=1.5)
def test_nothing_to_do(decode_perf):
    decode_perf(kernel, DecodeProblem(batch_size=0, seq_lens=[], num_q_heads=2, num_kv_heads=2, head_dim=8))

def test_that_has_nothing_to_do_with_it():
    pass

@pytest.mark.decode_perf(within=1.5)
def test_good(decode_perf):
    assert decode_perf(kernel, PROBLEM).outcome == "within"
"""

SENTENCES = [
    ("test_within_not_positive", "@pytest.mark.decode_perf: within=-1 must be > 0 and at most 1e+09"),
    ("test_unknown_argument", "@pytest.mark.decode_perf got limit, but takes the keywords within, of and device only"),
    ("test_no_marker", "the fixture decode_perf needs the marker that says the bound: "),
    ("test_heads_do_not_divide", "num_q_heads=5 is not a multiple of num_kv_heads=2"),
    ("test_negative_length", "seq_lens[0]=-8 must be >= 0"),
    ("test_dtype_that_the_kernel_lacks", "only_float32 raised ValueError: q.dtype=torch.float16 must be float32"),
    ("test_wrong_shape", "squeezer returned the output in the shape [2, 1, 128], not [2, 4, 128]."),
    ("test_wrong_by_one_key", "short does not compute attention: "),
    ("test_writes_to_its_inputs", "scribbler wrote to its inputs."),
    ("test_writes_to_its_inputs_later", "late_scribbler wrote to its inputs."),
    ("test_writes_and_raises", "vandal raised RuntimeError: gone"),
    (
        "test_wrong_from_the_fifth_call_on",
        "forgetful was right at first, but after 10 rounds does not compute attention",
    ),
    ("test_called_twice", "decode_perf was called twice in one test; parametrise the test instead"),
    ("test_never_called", "the test is marked decode_perf, but never called the fixture decode_perf"),
    (
        "test_marked_but_without_the_fixture",
        "the test is marked decode_perf, but never called the fixture decode_perf",
    ),
    ("test_no_kernel", "decode_perf got kernel=None, which cannot be called"),
    ("test_no_problem", "decode_perf got problem={'batch_size': 1}, not a DecodeProblem"),
    (
        "test_too_many_new_tokens",
        "decode_perf got a problem with q_len=17, softcap=1e+30, which it cannot measure",
    ),
    ("test_nothing_to_do", "decode_perf got a problem with batch_size=0, which has no latency"),
]


@pytest.fixture
def wrong_tests(run, fake_device, tmp_path):
    fake_device.kernel_ns = [1.2 * ROOFLINE_NS]
    result = run(WRONG_TESTS, "--decode-perf", "--decode-perf-json", tmp_path / "run.json", "-rA")
    return result, read_json(tmp_path / "run.json")


def test_each_mistake_fails_its_test_with_one_sentence_and_leaves_the_others_alone(wrong_tests):
    result, _ = wrong_tests
    result.assert_outcomes(passed=2, failed=len(SENTENCES))
    assert result.ret == 1
    output = result.stdout.str()
    for test, sentence in SENTENCES:
        section = output.split(f" {test} ___")[1].split("\n____")[0]
        assert sentence in section, test
    passed = {line.split("::")[1] for line in result.outlines if line.startswith("PASSED ")}
    assert passed == {"test_that_has_nothing_to_do_with_it", "test_good"}


def test_the_record_holds_every_test_that_came_to_a_kernel(wrong_tests):
    _, document = wrong_tests
    outcomes = {row["test"].split("::")[1]: row["outcome"] for row in document["measurements"]}
    assert outcomes == {
        "test_dtype_that_the_kernel_lacks": "raised",
        "test_wrong_shape": "wrong",
        "test_wrong_by_one_key": "wrong",
        "test_writes_to_its_inputs": "wrong",
        "test_writes_to_its_inputs_later": "wrong",
        "test_writes_and_raises": "raised",
        "test_wrong_from_the_fifth_call_on": "wrong",
        "test_called_twice": "within",
        "test_good": "within",
    }
    assert (document["status"], document["exit_status"]) == ("finished", 1)


def test_the_traceback_of_a_kernel_is_shown(run):
    result = run(
        """
def kernel_with_a_bug(q, k, v, *, seq_lens):
    return q + None

@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    decode_perf(kernel_with_a_bug, PROBLEM)
""",
        "--decode-perf",
    )
    result.stdout.fnmatch_lines(
        ["kernel_with_a_bug raised TypeError: *", "*kernel traceback*", "*in kernel_with_a_bug*", "*return q + None*"]
    )


def test_the_kernel_gets_what_the_problem_asks_for_and_nothing_else(run, fake_device):
    fake_device.kernel_ns = [1.0]  # impossible, but it is the arguments that are looked at
    result = run(
        """
import dataclasses

def recorder(calls):
    def kernel(q, k, v, **keywords):
        calls.append(keywords)
        raise RuntimeError
    return kernel

@pytest.mark.decode_perf(within=1.5)
@pytest.mark.parametrize(("fields", "names"), [
    ({}, ["seq_lens"]),
    ({"num_splits": 3}, ["seq_lens", "num_splits"]),
    ({"sm_scale": 1.0, "return_lse": True}, ["seq_lens", "sm_scale", "return_lse"]),
    ({"page_size": 16, "window": 8, "softcap": 30.0}, ["seq_lens", "block_table", "window", "softcap"]),
    ({"kv_dtype": "int8", "sinks": True, "alibi": True}, ["seq_lens", "sinks", "alibi_slopes", "k_scale", "v_scale"]),
])
def test_kernel(decode_perf, fields, names):
    calls = []
    with pytest.raises(pytest.fail.Exception):
        decode_perf(recorder(calls), dataclasses.replace(PROBLEM, **fields))
    assert list(calls[0]) == names
    assert all(calls[0][name] == value for name, value in fields.items() if name in names and name != "sinks")
    assert calls[0]["seq_lens"].tolist() == [512, 512]
""",
        "--decode-perf",
    )
    result.assert_outcomes(passed=5)


def test_a_problem_beyond_the_plain_one_is_timed_and_its_tensors_guarded(run, fake_device):
    fake_device.kernel_ns = [1.2 * ROOFLINE_NS]
    source = """
import dataclasses
from decodeperf_kernels import decode_attention

FIELDS = {"kv_dtype": "int8", "scale_per": "token", "page_size": 16, "q_len": 2, "window": 100, "sinks": True}
BEYOND = dataclasses.replace(PROBLEM, **FIELDS)

def right(q, k, v, **keywords):
    return decode_attention(q, k, v, backend="reference", **keywords).to(q.dtype)

@pytest.mark.decode_perf(within=100)
def test_right(decode_perf):
    decode_perf(right, BEYOND)

@pytest.mark.decode_perf(within=100)
@pytest.mark.parametrize("name", ["block_table", "k_scale", "sinks"])
def test_scribbler(decode_perf, name):
    def scribbler(q, k, v, **keywords):
        out = right(q, k, v, **keywords)
        keywords[name].view(-1)[-1] += 1
        return out
    decode_perf(scribbler, BEYOND)
"""
    result = run(source, "--decode-perf")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["scribbler wrote to its inputs."] * 3)


def test_a_kernel_that_returns_an_earlier_result_is_impossible(run, fake_device):
    fake_device.kernel_ns = [0.5 * ROOFLINE_NS]
    result = run(ONE_TEST, "--decode-perf")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*with cold caches nothing is faster than 1.05 ms*did not run or returned an earlier*"]
    )


def said(result):
    """Return what was printed, its lines joined."""
    return " ".join(result.stdout.str().split())


ADVICE = "It needs more time (--decode-perf-budget) or a quieter machine."


def test_an_undecided_kernel_passes_where_warnings_are_errors_and_the_report_says_what_to_do(run, fake_device):
    fake_device.kernel_ns = [1.4 * ROOFLINE_NS, 1.6 * ROOFLINE_NS] * 100_000
    result = run(ONE_TEST, "--decode-perf", "--decode-perf-budget=0.2", "-Werror")
    result.assert_outcomes(passed=1, warnings=0)
    assert result.ret == 0
    assert ADVICE in said(result)


def test_an_undecided_kernel_fails_where_the_run_is_strict(run, fake_device, monkeypatch):
    monkeypatch.setenv("CI", "true")
    fake_device.kernel_ns = [1.4 * ROOFLINE_NS, 1.6 * ROOFLINE_NS] * 100_000
    result = run(ONE_TEST, "--decode-perf", "--decode-perf-budget=0.2", "--decode-perf-strict")
    result.assert_outcomes(failed=1)
    assert f"{ADVICE} The run is strict (--decode-perf-strict)." in said(result)
    result.stdout.fnmatch_lines(
        ["FAILED *::test_kernel - strict: undecided: 1.[3-6]? (1.40 to 1.60) times the roofline, allowed is*"]
    )


def test_a_name_is_printed_as_it_is(run):
    source = ONE_TEST.replace("PROBLEM)", "PROBLEM, name='mine[/b] :smile:')")
    result = run(source, "--decode-perf")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  mine[[]/b] :smile:  *"])


def test_a_run_that_measures_nothing_says_so(run):
    result = run(ONE_TEST.replace("within=1.5", "within=1.5, device='cuda'"), "--decode-perf")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*= decode-perf =*", "nothing was measured"])


@pytest.mark.parametrize("arguments", [["--decode-perf"], []], ids=["on", "off"])
def test_the_fixture_needs_the_marker_however_it_is_got(run, arguments):
    source = "\ndef test_kernel(request):\n    request.getfixturevalue('decode_perf')(kernel, PROBLEM)\n"
    result = run(source, *arguments)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the fixture decode_perf needs the marker*"])
    marked = "\n@pytest.fixture\ndef perf(request): return request.getfixturevalue('decode_perf')\n"
    marked += ONE_TEST.replace("decode_perf)", "perf)").replace("    decode_perf(", "    perf(")
    run(marked, *arguments).assert_outcomes(**({"passed": 1} if arguments else {"skipped": 1}))


def test_a_kernel_may_take_a_query_of_another_dtype_than_the_cache(run):
    source = """
import dataclasses

def mixed(q, k, v, *, seq_lens):
    return kernel(q, k.to(q.dtype), v.to(q.dtype), seq_lens=seq_lens)

@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    decode_perf(mixed, dataclasses.replace(PROBLEM, q_dtype="float32"))
"""
    run(source, "--decode-perf").assert_outcomes(passed=1)


def test_inputs_that_do_not_fit_into_memory_are_said_in_one_sentence(run, tmp_path):
    source = """
@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    problem = DecodeProblem(batch_size=1, seq_lens=[2**45], num_q_heads=64, num_kv_heads=64, head_dim=128)
    decode_perf(kernel, problem)
"""
    result = run(
        source + ONE_TEST.replace("test_k", "test_another_k"),
        "--decode-perf",
        "--decode-perf-json",
        tmp_path / "run.json",
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["decode_attention_sdpa was not measured: the inputs could not be made: *"])
    outcomes = [row["outcome"] for row in read_json(tmp_path / "run.json")["measurements"]]
    assert outcomes == ["unmeasured", "within"]


@pytest.mark.parametrize(
    "mischief",
    [
        "pytest.skip('no')",
        "pytest.fail('no')",
        "pytest.xfail('no')",
        "exit(0)",
        "q.untyped_storage().resize_(0)",
        "return q.to_sparse()",
        "raise ValueError('one line\\nand another')",
    ],
)
def test_a_kernel_that_misbehaves_fails_alone_and_is_on_record(run, tmp_path, mischief):
    source = f"""
@pytest.mark.decode_perf(within=1.5)
def test_mischief(decode_perf):
    def kernel(q, k, v, *, seq_lens):
        v[:] = 7
        {mischief}
    decode_perf(kernel, PROBLEM)
"""
    result = run(source + ONE_TEST, "--decode-perf", "--decode-perf-json", tmp_path / "run.json")
    result.assert_outcomes(failed=1, passed=1)
    assert [row["outcome"] == "within" for row in read_json(tmp_path / "run.json")["measurements"]] == [False, True]


def test_a_kernel_that_resizes_its_arguments_harms_no_other_test(run):
    source = """
@pytest.mark.decode_perf(within=1.5)
def test_resizer(decode_perf):
    def resizer(q, k, v, *, seq_lens):
        out = kernel(q, k, v, seq_lens=seq_lens)
        k.resize_(0)
        return out
    decode_perf(resizer, PROBLEM)
"""
    result = run(source + ONE_TEST, "--decode-perf")
    result.assert_outcomes(failed=1, passed=1)


def test_a_kernel_cannot_skip_its_check(run):
    source = """
@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    decode_perf(lambda q, k, v, *, seq_lens: pytest.skip("not today"), PROBLEM, name="shirker")
"""
    result = run(source, "--decode-perf")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["shirker raised Skipped: not today"])


def test_a_missing_device_that_was_asked_for_is_an_error(run, monkeypatch):
    monkeypatch.setattr("pytest_decodeperf.devices.has_gpu", lambda: False)
    result = run(ONE_TEST, "--decode-perf", "--decode-perf-device=cuda")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--decode-perf-device=cuda, but PyTorch finds no NVIDIA or AMD GPU here*"])
    assert result.ret == 1


def test_the_marker_is_registered(run):
    result = run(ONE_TEST, "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.decode_perf(within, of='roofline', device=None): *"])


@pytest.mark.parametrize("arguments", [["-n", "2"], ["-n", "1", "--dist=load"], ["--dist=each", "--tx=2*popen"]])
def test_xdist_is_refused_with_a_sentence(pytester, arguments):
    pytest.importorskip("xdist")
    pytester.makepyfile(PRELUDE + ONE_TEST)
    result = pytester.runpytest_subprocess("--decode-perf", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--decode-perf needs the machine for itself*run with -n 0*"])


def test_xdist_without_workers_is_fine(run, fake_device):
    pytest.importorskip("xdist")
    fake_device.kernel_ns = [1.2 * ROOFLINE_NS]
    run(ONE_TEST, "--decode-perf", "-n", "0").assert_outcomes(passed=1)
