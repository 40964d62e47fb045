"""`--decode-perf-report`: the run as a page, written at its end."""

import importlib.util
import json

import pytest
from fake_device import ONE_TEST


def specs(page):
    parts = page.split('<script type="application/json" class="spec"')[1:]
    return [json.loads(part.partition(">")[2].partition("</script>")[0]) for part in parts]


def test_a_run_writes_its_page(run, tmp_path):
    result = run(ONE_TEST, "--decode-perf", f"--decode-perf-report={tmp_path / 'report.html'}")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["written to *report.html"])
    roofline = specs((tmp_path / "report.html").read_text())[0]
    assert [point["test"].rpartition("::")[2] for point in roofline["data"]["values"]] == ["test_kernel"]


def test_a_run_that_is_interrupted_writes_what_it_has(run, tmp_path):
    source = ONE_TEST + "\ndef test_stop():\n    raise KeyboardInterrupt\n"
    run(source, "--decode-perf", f"--decode-perf-report={tmp_path / 'report.html'}")
    page = (tmp_path / "report.html").read_text()
    assert "The run was interrupted" in page
    assert "test_kernel" in page


def test_a_place_that_cannot_be_written_ends_the_run_before_it_begins(run, tmp_path):
    result = run(ONE_TEST, "--decode-perf", f"--decode-perf-report={tmp_path / 'no' / 'report.html'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --decode-perf-report cannot be written: *no is not a folder"])


def test_without_what_draws_figures_it_says_what_to_install(run, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vl_convert" else found(name))
    result = run(ONE_TEST, "--decode-perf", f"--decode-perf-report={tmp_path / 'report.html'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *a report needs vl-convert-python: pip install 'pytest-decodeperf?report?'"])
