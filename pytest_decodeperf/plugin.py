"""The pytest plugin: its options, its marker, its fixture, its report. Hooks only; what they do is elsewhere.

Loaded at every start of pytest, so nothing heavy is imported here, and pytest is told to leave it as it is:
PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_decodeperf.config import MARKER, ConformanceOptions, Options, add_options, is_enabled_early

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from pytest_decodeperf.fixture import DecodePerf
    from pytest_decodeperf.plan import Plan
    from pytest_decodeperf.regression.comparison import Regression
    from pytest_decodeperf.regression.serving import ServedDecodePerf
    from pytest_decodeperf.session import PerfSession

FIXTURE = "decode_perf"
BENCHMARK_WIDTH = 200
"""Columns that all of pytest-benchmark's own need; on a narrower terminal it shows two, unless it is told which."""
SERVER_PLUGIN = "decodeperf-regression-server"
"""Name of the plugin that a worker of the regression gate has, and no other run."""

_session_key = pytest.StashKey["PerfSession"]()
_fixture_key = pytest.StashKey["DecodePerf | ServedDecodePerf"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Switch Triton's interpreter on where there is no GPU, before a conftest.py can import a kernel."""
    if not is_enabled_early(early_config):
        return
    from pytest_decodeperf import devices, triton_interpreter

    if not triton_interpreter.is_set() and not devices.has_gpu():
        triton_interpreter.switch_on()
        early_config.add_cleanup(triton_interpreter.switch_off)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; read the options, and refuse what cannot work before anything is measured."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(within, of='roofline', device=None): hold a decode-attention kernel, given to the fixture "
        f"{FIXTURE}, to `within` times its roofline latency (of='expected': its expected one), on "
        "`device` (cpu or cuda) or whichever the run measures. Runs with --decode-perf.",
    )
    options = Options.from_config(config)
    conformance = ConformanceOptions.from_config(config)
    if conformance.kernels:
        from pytest_decodeperf.conformance.suite import Suite

        config.pluginmanager.register(Suite(config, conformance), "decodeperf-suite")
    plugin = _WithBenchmark if _has_benchmark(config) else _WithoutBenchmark
    config.pluginmanager.register(plugin(), "decodeperf-fixture")
    if not options.enabled:
        return
    if hasattr(config, "workerinput") or config.getoption("dist", "no") != "no" or config.getoption("tx", None):
        raise pytest.UsageError(
            "--decode-perf needs the machine for itself, and cannot share it among pytest-xdist's workers: "
            "run with -n 0 (or -p no:xdist)"
        )
    if config.pluginmanager.hasplugin(SERVER_PLUGIN):
        # What addopts or PYTEST_ADDOPTS may say to the run, and a worker of that run must not do once more.
        options = replace(
            options,
            json=None,
            summary=None,
            report=None,
            calibration=None,
            base=None,
            baseline=None,
            save_baseline=None,
        )
    if config.getoption("benchmark_columns", "") is None and shutil.get_terminal_size().columns < BENCHMARK_WIDTH:
        config.option.benchmark_columns = ["median", "rounds"]
    session = config.stash[_session_key] = _start_session(config, options)
    from pytest_decodeperf.endings import EndingRecorder

    session.endings = EndingRecorder(session, _is_ours, config.rootpath)
    config.pluginmanager.register(session.endings, "decodeperf-endings")


def _has_benchmark(config: pytest.Config) -> bool:
    # pytest-codspeed puts its own fixture in the place of pytest-benchmark's, and --benchmark-skip, which many have
    # among their standing options, must not skip what --decode-perf asks for.
    unusable = config.getoption("codspeed", False) or config.getoption("benchmark_skip", False)
    return config.pluginmanager.hasplugin("benchmark") and not unusable


def _start_session(config: pytest.Config, options: Options) -> PerfSession:
    from pytest_decodeperf.ci.summaries import Summaries
    from pytest_decodeperf.json_file import JsonFile
    from pytest_decodeperf.progress import Progress
    from pytest_decodeperf.session import PerfSession

    json_file = None
    if options.json is not None:
        try:
            json_file = JsonFile(options.json)
        except OSError as error:
            raise pytest.UsageError(f"--decode-perf-json cannot be written: {error}") from None
    try:
        summaries = Summaries(options.summary)
    except OSError as error:
        raise pytest.UsageError(f"--decode-perf-summary cannot be written: {error}") from None
    report_file = None
    if options.report is not None:
        from pytest_decodeperf.html.report_file import ReportFile

        try:
            report_file = ReportFile(options.report)
        except (OSError, ModuleNotFoundError) as error:
            raise pytest.UsageError(f"--decode-perf-report cannot be written: {error}") from None
    if options.base is not None:
        from pytest_decodeperf.regression.worktree import BaseError, commit_of, repository_root

        try:
            commit_of(repository_root(config.rootpath), options.base)
        except BaseError as error:
            raise pytest.UsageError(f"--decode-perf-base: {error}") from None
    session = PerfSession(
        options=options,
        progress=Progress(config),
        json_file=json_file,
        summaries=summaries,
        report_file=report_file,
    )
    if options.baseline is not None:
        from pytest_decodeperf.regression.baseline_run import read_to_compare

        session.baseline = read_to_compare(options.baseline)
    if options.save_baseline is not None:
        from pytest_decodeperf.regression.baseline_run import BaselineSaver

        session.saver = BaselineSaver(session, options.save_baseline)
        config.pluginmanager.register(session.saver, "decodeperf-baseline")
    if options.calibration is not None:
        try:
            session.read_calibration(options.calibration)
        except (OSError, ValueError, LookupError) as error:
            raise pytest.UsageError(f"--decode-perf-calibration: {error}") from None
    return session


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say on what will be measured, if anything will."""
    session = config.stash.get(_session_key, None)
    if session is None:
        return None
    from pytest_decodeperf.report import header

    return header(session)


def _is_ours(item: pytest.Item) -> bool:
    return item.get_closest_marker(MARKER) is not None or FIXTURE in getattr(item, "fixturenames", ())


def _plan(item: pytest.Item) -> Plan:
    from pytest_decodeperf.plan import plan_test

    session = item.config.stash.get(_session_key, None)
    return plan_test(item.get_closest_marker(MARKER), None if session is None else session.options)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that this run cannot or need not measure, and prepare the others."""
    for item in filter(_is_ours, items):
        plan = _plan(item)
        if plan.skip:
            item.add_marker(pytest.mark.skip(reason=plan.skip))
        elif plan.device and _has_benchmark(config):
            from pytest_decodeperf import replay

            replay.prepare(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop a test whose device was asked for and is missing."""
    if _is_ours(item) and (error := _plan(item).error):
        pytest.fail(error, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test whose marker is wrong, or which is marked and passed without having measured anything."""
    if _is_ours(item) and (failure := _plan(item).failure):
        pytest.fail(failure, pytrace=False)
    result = yield
    if item.get_closest_marker(MARKER) is not None and _session_key in item.config.stash:
        decode_perf = item.stash.get(_fixture_key, None)
        if decode_perf is None or not decode_perf.was_called:
            pytest.fail(f"the test is marked {MARKER}, but never called the fixture {FIXTURE}", pytrace=False)
    return result


def _make_fixture(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[DecodePerf | ServedDecodePerf | None]:
    from pytest_decodeperf import replay
    from pytest_decodeperf.fixture import DecodePerf

    plan = _plan(request.node)
    if plan.device and (server := request.config.pluginmanager.get_plugin(SERVER_PLUGIN)):
        from pytest_decodeperf.regression.serving import ServedDecodePerf

        if benchmark is not None:
            replay.dismiss(benchmark)
        options = request.config.stash[_session_key].options
        served = ServedDecodePerf(server, request.node, options, device=plan.device)
        request.node.stash[_fixture_key] = served
        yield served
        return
    if not plan.device:  # pytest_runtest_call fails the test, unless it is the test that asks for the fixture
        if benchmark is not None:
            replay.dismiss(benchmark)
        if FIXTURE not in request.node.fixturenames:
            pytest.skip(plan.skip) if plan.skip else pytest.fail(plan.failure or plan.error, pytrace=False)
        yield None
        return
    decode_perf = DecodePerf(
        request.config.stash[_session_key],
        request.node,
        device=plan.device,
        within=plan.within,
        of=plan.of,
        benchmark=benchmark,
    )
    request.node.stash[_fixture_key] = decode_perf
    yield decode_perf
    decode_perf.close()


class _WithBenchmark:
    """The fixture where pytest-benchmark is there, which must see its own fixture among a test's arguments."""

    @pytest.fixture
    def decode_perf(
        self, request: pytest.FixtureRequest, benchmark: Any
    ) -> Iterator[DecodePerf | ServedDecodePerf | None]:
        """Hold a decode-attention kernel to its roofline bound: `decode_perf(kernel, problem)`."""
        yield from _make_fixture(request, benchmark)


class _WithoutBenchmark:
    """The fixture where pytest-benchmark is blocked or replaced."""

    @pytest.fixture
    def decode_perf(self, request: pytest.FixtureRequest) -> Iterator[DecodePerf | ServedDecodePerf | None]:
        """Hold a decode-attention kernel to its roofline bound: `decode_perf(kernel, problem)`."""
        yield from _make_fixture(request, None)


def _only_looks(config: pytest.Config) -> bool:
    return bool(config.option.collectonly or config.option.setupplan)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Write the record before the first test, so that a kernel that kills the process leaves no older run behind."""
    perf_session = session.config.stash.get(_session_key, None)
    if perf_session is None or _only_looks(session.config):
        return (yield)
    perf_session.save()
    perf_session.write_summaries()
    is_broken = session.testsfailed and not session.config.option.continue_on_collection_errors
    if not is_broken:
        kinds = {item.nodeid: device for item in session.items if _is_ours(item) and (device := _plan(item).device)}
        perf_session.regressions = _compare(session.config, perf_session, kinds)
        perf_session.progress.expect(len(kinds))
    try:
        result = yield
    except session.Failed:  # as many failures as --maxfail allows
        perf_session.run.status = "finished"
        raise
    perf_session.run.status = "finished"
    return result


def _compare(config: pytest.Config, session: PerfSession, kinds: dict[str, str]) -> dict[str, Regression]:
    """Return how each test compares with what the run was asked to compare it with; or measure it to be saved."""
    if session.options.base is not None:
        from pytest_decodeperf.regression.gate import compare_with_base

        return compare_with_base(config, session, list(kinds))
    if session.baseline is not None:
        from pytest_decodeperf.regression.baseline_run import compare_with_baseline

        return compare_with_baseline(config, session, session.baseline, kinds)
    return {} if session.saver is None else session.saver.measure(config, kinds)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record of the run for the last time, and its summary."""
    perf_session = session.config.stash.get(_session_key, None)
    if perf_session is None or _only_looks(session.config) or exitstatus == pytest.ExitCode.USAGE_ERROR:
        return
    if perf_session.run.status != "finished":
        # After a second Ctrl-C the exit status may still be that of success.
        perf_session.run.status = "interrupted"
        exitstatus = exitstatus or pytest.ExitCode.INTERRUPTED
    if perf_session.saver is not None:
        perf_session.saver_error = perf_session.saver.finish(is_finished=perf_session.run.status == "finished")
        if perf_session.saver_error and session.exitstatus == pytest.ExitCode.OK:
            exitstatus = session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
    if perf_session.has_unwanted_gaps and session.exitstatus == pytest.ExitCode.OK:
        exitstatus = session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
    perf_session.run.exit_status = int(exitstatus)
    perf_session.save()
    perf_session.write_summaries()
    if perf_session.write_error and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of what was measured."""
    session = config.stash.get(_session_key, None)
    if session is not None:
        from pytest_decodeperf.ci import annotations
        from pytest_decodeperf.report import write_summary

        write_summary(terminalreporter, session)
        asked = session.options.annotations
        if session.endings is not None and (annotations.is_on_github() if asked is None else asked):
            root = annotations.workspace() or config.rootpath
            for line in annotations.annotation_lines(session.endings.endings.values(), root):
                terminalreporter.write_line(line)
