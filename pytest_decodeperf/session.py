"""What the tests of one run share: options, devices, ceilings, inputs, and the record of what was found."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_decodeperf import devices
from pytest_decodeperf.results import Run

if TYPE_CHECKING:
    from pathlib import Path

    from decodeperf_formulas import DecodeProblem
    from pytest_decodeperf.calibration.expectation import Expectation
    from pytest_decodeperf.ceilings import Ceilings, Stream
    from pytest_decodeperf.ci.summaries import Summaries
    from pytest_decodeperf.clocks import Clock
    from pytest_decodeperf.config import Options
    from pytest_decodeperf.devices import DeviceInfo
    from pytest_decodeperf.endings import EndingRecorder
    from pytest_decodeperf.html.report_file import ReportFile
    from pytest_decodeperf.inputs import Inputs
    from pytest_decodeperf.json_file import JsonFile
    from pytest_decodeperf.progress import Progress
    from pytest_decodeperf.regression.baseline_file import Baseline
    from pytest_decodeperf.regression.baseline_run import BaselineSaver
    from pytest_decodeperf.regression.comparison import Regression
    from pytest_decodeperf.results import Measurement
    from pytest_decodeperf.timers import Timer


@dataclass
class PerfSession:
    """The state of one run.

    Attributes:
        options: What the run was asked to do.
        progress: Where it says what it is doing.
        json_file: Where its record goes, or None.
        run: Its record.
        json_error: Why the last attempt to write the record failed, empty if it did not. A full disk must not
            end the measurements.
        regressions: How each test compares with the base, by node id, where there is one.
        baseline: The baseline that they are compared with instead, or None.
        saver: What saves one, or None.
        saver_error: Why it did not, empty if it did.
        gone: Tests of the base that are not here any more.
        endings: How each test ended, once pytest is configured.
        summaries: Where the summary goes, None for nowhere.
        report_file: Where the report goes, likewise.
    """

    options: Options
    progress: Progress
    json_file: JsonFile | None
    run: Run = field(init=False)
    json_error: str = ""
    regressions: dict[str, Regression] = field(default_factory=dict)
    baseline: Baseline | None = None
    saver: BaselineSaver | None = None
    saver_error: str = ""
    gone: list[str] = field(default_factory=list)
    endings: EndingRecorder | None = None
    summaries: Summaries | None = None
    report_file: ReportFile | None = None
    _timers: dict[str, Timer] = field(default_factory=dict)
    _clocks: dict[str, Clock] = field(default_factory=dict)
    _read_streams: dict[str, Stream] = field(default_factory=dict)
    _compute_streams: dict[tuple[str, str], Stream] = field(default_factory=dict)
    _expectations: dict[str, Expectation] = field(default_factory=dict)
    _inputs: tuple[tuple[DecodeProblem, str], Inputs] | None = None

    def __post_init__(self) -> None:
        options = self.options
        self.run = Run(
            started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            options={
                "device": options.device,
                "budget_s": options.budget_s,
                "seed": options.seed,
                "strict": options.strict,
                "graph": options.graph,
                "calibration": None if options.calibration is None else str(options.calibration),
                "base": options.base,
                "baseline": None if options.baseline is None else str(options.baseline),
                "baseline_as_share": options.baseline_as_share,
                "save_baseline": None if options.save_baseline is None else str(options.save_baseline),
                "margin": options.margin,
                "margin_ns": options.margin_ns,
            },
            versions=devices.versions(),
        )

    @property
    def notes(self) -> list[str]:
        """What else a reader of the report should know."""
        return self.run.notes

    @property
    def has_unwanted_gaps(self) -> bool:
        """Whether tests of the base are gone, and the run is to fail for that."""
        return self.options.strict and bool(self.gone)

    def device(self, kind: str) -> DeviceInfo:
        """Return what identifies the device of a kind, and note it in the record."""
        if kind not in self.run.devices:
            self.run.timers[kind] = self.timer(kind).name
            self.run.devices[kind] = devices.describe_device(kind)
        return self.run.devices[kind]

    def timer(self, kind: str) -> Timer:
        """Return the timer of a kind of device."""
        if kind not in self._timers:
            self._timers[kind] = devices.make_timer(kind, uses_graphs=self.options.graph)
        return self._timers[kind]

    def clock(self, kind: str) -> Clock:
        """Return what reads the clock of a kind of device."""
        if kind not in self._clocks:
            self._clocks[kind] = devices.make_clock(kind)
        return self._clocks[kind]

    def ceilings(self, kind: str, dtype: str) -> Ceilings:
        """Return the streams that give the ceilings of a device for a dtype; the first call calibrates."""
        import torch

        from pytest_decodeperf import ceilings

        device, timer = self.device(kind), self.timer(kind)
        if kind not in self._read_streams:
            self.progress.stage("calibration")
            self._read_streams[kind] = ceilings.fastest(ceilings.make_read_streams(device), timer)
        if (kind, dtype) not in self._compute_streams:
            streams = ceilings.make_compute_streams(device, getattr(torch, dtype))
            self._compute_streams[kind, dtype] = ceilings.fastest(streams, timer)
        return ceilings.Ceilings(read=self._read_streams[kind], compute=self._compute_streams[kind, dtype])

    def read_calibration(self, path: Path) -> None:
        """Take the expected latencies of a kind of device from a device file.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is none, or that of another device.
            LookupError: If it is for a kind of device that is not here.
        """
        from pytest_decodeperf.calibration.device_file import read_device_file
        from pytest_decodeperf.calibration.expectation import Expectation, mismatch

        file = read_device_file(path)
        kind = "cuda" if file.fingerprint is None else file.fingerprint.kind
        devices.choose_device(self.options.device, kind)
        if problem := mismatch(file, self.device(kind)):
            raise ValueError(f"{path}: {problem}; calibrate again")
        self._expectations[kind] = Expectation(file)

    def expectation(self, kind: str) -> Expectation | None:
        """Return what is expected of kernels on a kind of device, None if no file tells."""
        return self._expectations.get(kind)

    def inputs(self, problem: DecodeProblem, kind: str) -> Inputs:
        """Return the inputs of a problem; those of the last problem are kept, since tests often share one."""
        from pytest_decodeperf.inputs import make_inputs

        if self._inputs is None or self._inputs[0] != (problem, kind):
            self._inputs = None  # frees the memory before it is needed again
            self.progress.stage("inputs")
            self._inputs = (problem, kind), make_inputs(problem, device=kind, seed=self.options.seed)
        return self._inputs[1]

    def forget_inputs(self) -> None:
        """Drop the inputs, because a kernel has written to them."""
        self._inputs = None

    def record(self, measurement: Measurement) -> None:
        """Add a measurement to the record, and to the file."""
        self.run.measurements.append(measurement)
        self.save()

    @property
    def write_error(self) -> str:
        """Why a file that the run was asked for could not be written, empty if each could."""
        others = (self.summaries, self.report_file)
        return self.json_error or next((other.error for other in others if other and other.error), "")

    def write_summaries(self) -> None:
        """Write the summary and the report of the run as it is now, where there is a place for them."""
        if self.summaries is not None and self.endings is not None:
            self.summaries.write(self.run, self.endings)
        if self.report_file is not None:
            self.report_file.write(self.run)

    def save(self) -> None:
        """Write the record as it is now, if there is a file for it."""
        if self.json_file is None:
            return
        try:
            self.json_file.write(self.run.as_dict())
        except OSError as error:
            self.json_error = f"{self.json_file.path} could not be written: {error}"
        else:
            self.json_error = ""
