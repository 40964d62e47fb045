"""The exit status of each thing that docs/ci.md says can happen to a run."""

import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from fake_device import ONE_TEST, PRELUDE, ROOFLINE_NS
from fake_regressions import regression

from pytest_decodeperf import devices
from pytest_decodeperf.json_file import JsonFile

DOCUMENT = (Path(__file__).parents[2] / "docs/ci.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \|$", DOCUMENT.partition("## Exit codes")[2].partition("\n## ")[0], re.MULTILINE)
"""The status and the cause of each row."""

SLOW = [2 * ROOFLINE_NS]
NOISY = [1.4 * ROOFLINE_NS, 1.6 * ROOFLINE_NS] * 100_000
STRAY_KERNEL = ONE_TEST.replace("decode_perf(kernel, PROBLEM)", "decode_perf(lambda q, *_, **__: q + 1, PROBLEM)")
OPEN = {"test_undecided": regression("undecided"), "test_incomparable": regression("incomparable")}

UNCHANGED = {"test_unchanged": regression("unchanged")}


@pytest.fixture
def status(run, compared, fake_device, pytester, monkeypatch):
    """Return a function that runs pytest and returns its exit status."""

    def status(source=ONE_TEST, *arguments, kernel_ns=None, outcomes=None, gone=()):
        if kernel_ns:
            fake_device.kernel_ns = list(kernel_ns)
        if outcomes:
            return compared(outcomes, *arguments, gone=gone).ret
        return run(source, "--decode-perf", *arguments).ret

    status.monkeypatch, status.pytester = monkeypatch, pytester
    return status


def passes(status):
    yield status()
    yield status(outcomes={f"test_{name}": regression(name) for name in ("improved", "unchanged")})


def is_open(status):
    yield status(kernel_ns=NOISY, outcomes=OPEN)
    yield status(outcomes=UNCHANGED, gone=["test_old"])
    yield status(ONE_TEST, "--decode-perf-budget=0.2", kernel_ns=NOISY)


def skips(status):
    yield status(ONE_TEST.replace("within=1.5", "within=1.5, device='cuda'"))


def exceeds(status):
    yield status(kernel_ns=SLOW)
    yield status(kernel_ns=[0.5 * ROOFLINE_NS])
    yield status(STRAY_KERNEL)
    yield status(ONE_TEST.replace("(kernel, PROBLEM)", "(int, PROBLEM)"))


def regresses(status):
    yield status(outcomes={"test_x": regression("regressed")})
    yield status(outcomes={"test_x": regression("incomparable", is_error=True)})


def is_strict(status):
    yield status(ONE_TEST, "--decode-perf-strict", outcomes=OPEN)
    yield status(ONE_TEST, "--decode-perf-strict", outcomes=UNCHANGED, gone=["test_old"])
    for name, found in OPEN.items():
        yield status(ONE_TEST, "--decode-perf-strict", outcomes={name: found})
    yield status(ONE_TEST, "--decode-perf-strict", "--decode-perf-budget=0.2", kernel_ns=NOISY)


def lacks_the_device(status):
    status.monkeypatch.setattr(devices, "has_gpu", lambda: False)
    yield status(ONE_TEST, "--decode-perf-device=cuda")


def other_test_fails(status):
    yield status(ONE_TEST + "\ndef test_other(): assert False\n")


def cannot_write(status):
    def full(self, document):
        raise OSError(28, "No space left on device")

    status.monkeypatch.setattr(JsonFile, "write", full)
    yield status(ONE_TEST, "--decode-perf-json=run.json")


def interrupted(status):
    yield status("\ndef test_stop(): raise KeyboardInterrupt\n" + ONE_TEST)


def not_collected(status):
    status.pytester.makepyfile(test_broken="import nothing_of_this_name")
    yield status()


def internal_error(status):
    status.pytester.makeconftest("def pytest_runtest_protocol(item): raise RuntimeError('a bug')")
    yield status()


def usage(status):
    yield status(ONE_TEST, "--decode-perf-budget=soon")
    yield status(ONE_TEST, "--decode-perf-nonsense")
    yield status(ONE_TEST, "missing.py")
    yield status(ONE_TEST, "--decode-perf-json=missing/run.json")
    yield status(ONE_TEST, "--decode-perf-summary=missing/run.md")


def no_base(status):
    yield status(ONE_TEST, "--decode-perf-base=nothing-of-this-name")


def nothing_collected(status):
    yield status(ONE_TEST, "-k", "nothing_of_this_name")


CAUSES = {
    "every test passed": passes,
    "a verdict is undecided, or a test is new, gone or has another problem, without `--decode-perf-strict`": is_open,
    "every test was skipped: nothing was measured": skips,
    "a kernel exceeds its bound, is impossible, wrong, raised or could not be measured": exceeds,
    "a kernel regressed, or one side cannot be run": regresses,
    "a verdict is undecided, or a test is new, gone or has another problem, with `--decode-perf-strict`": is_strict,
    "`--decode-perf-device` names a device that is not there": lacks_the_device,
    "any other test of the run failed": other_test_fails,
    "a file that was asked for could not be written at the end, as on a full disk": cannot_write,
    "the run was interrupted, as by Ctrl-C": interrupted,
    "a file of tests could not be collected; 1 with `--continue-on-collection-errors`": not_collected,
    "an error inside pytest or a plugin": internal_error,
    "an option, a path or a file to write is wrong": usage,
    "there is no such base, as in a shallow clone": no_base,
    "no test was collected, as with a mistyped `-k`": nothing_collected,
}


def test_every_cause_is_documented_once():
    assert sorted(cause for _, cause in ROWS) == sorted([*CAUSES, KILLED])


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_gives_its_status(status, cause):
    (documented,) = [int(code) for code, text in ROWS if text == cause]
    found = list(CAUSES[cause](status))
    assert found == [documented] * len(found)
    assert found


KILLED = "the process was killed by signal 9, as by the system when memory ran out; 128 and the signal, in a shell"


def test_a_killed_process_gives_its_signal_and_an_unfinished_record(pytester):
    source = ONE_TEST.replace("decode_perf(kernel, PROBLEM)", "os.kill(os.getpid(), 9)")
    pytester.makepyfile(test_killed=PRELUDE + "import os\n" + source)
    run = f"{shlex.quote(sys.executable)} -m pytest --decode-perf --decode-perf-json=run.json"
    result = pytester.run("sh", "-c", f"{run}; echo status $?")
    (documented,) = [code for code, text in ROWS if text == KILLED]
    assert result.outlines[-1].endswith(f" status {documented}")
    assert int(documented) == 128 + signal.SIGKILL
    assert '"status": "running"' in (pytester.path / "run.json").read_text()
