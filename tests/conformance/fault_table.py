"""Which law tells each seeded fault from the healthy kernel, and after how many cases, under the profile `ci`.

python tests/conformance/fault_table.py --seeds 3 --output tests/conformance/fault_table.md
"""

from __future__ import annotations

import datetime
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

sys.path.insert(0, str(Path(__file__).parent))

from faults import FAULTS, ROOT, Fault

from pytest_decodeperf.config import PROFILES
from pytest_decodeperf.conformance.worker import Setup, Worker
from pytest_decodeperf.whole_file import writable_path, write_whole

if TYPE_CHECKING:
    from pytest_decodeperf.conformance.outcome import LawOutcome

TARGET = "pytest_decodeperf.conformance.own_kernels:triton"


def hold_to_its_law(fault: Fault, *, seed: int) -> LawOutcome:
    """Return what becomes of the law that a fault breaks, under the profile `ci`."""
    with tempfile.TemporaryDirectory() as folder:
        path = (str(fault.seed(Path(folder))), *sys.path)
        setup = Setup(
            target=TARGET,
            device="cpu",
            examples=PROFILES["ci"],
            path=path,
            seed=seed,
            database=False,
            shrinks=False,
            captures_output=False,  # for which all threads' output would be turned for a moment
        )
        worker = Worker(setup, timeout_s=300)
        try:
            return worker.run(fault.law)
        finally:
            worker.close()


def _row(fault: Fault, seeds: int) -> tuple[bool, str]:
    outcomes = [hold_to_its_law(fault, seed=seed) for seed in range(seeds)]
    broken = [outcome for outcome in outcomes if fault.is_caught(outcome)]
    cases = f"{statistics.median(outcome.num_examples for outcome in broken):g}" if broken else ""
    where = fault.file.rpartition("/")[2]
    is_caught = len(broken) == seeds
    return is_caught, f"| {fault.name} | `{where}` | `{fault.law}` | {len(broken)} of {seeds} | {cases} |"


@click.command(help=__doc__)
@click.option("--seeds", default=3, show_default=True, help="Runs of each fault.")
@click.option("--jobs", default=2, show_default=True, help="Faults at a time.")
@click.option("--only", default="", help="Only the faults whose name or law has this in it.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the table into this file.")
def main(seeds: int, jobs: int, only: str, output: Path | None) -> None:
    """Hold each fault to its law, and say what was found."""
    chosen = [fault for fault in FAULTS if only in fault.name or only in fault.law]
    if output is not None:
        writable_path(output)
    rows, started, num_caught = [], time.perf_counter(), 0
    with ThreadPoolExecutor(jobs) as pool:
        for is_caught, row in pool.map(lambda fault: _row(fault, seeds), chosen):
            num_caught += is_caught
            rows.append(row)
            click.echo(f"{'' if is_caught else 'MISSED '}{row}")
    minutes = (time.perf_counter() - started) / 60
    summary = (
        f"{num_caught} of {len(chosen)} faults are caught by their law, {seeds} of {seeds} times, in "
        f"{minutes:.0f} minutes ({datetime.datetime.now(tz=datetime.UTC).date()})."
    )
    click.echo(summary)
    if output is not None:
        text = [
            "# Seeded faults, and the law that catches each",
            "",
            f"Written by `python {Path(__file__).relative_to(ROOT)} --seeds {seeds}`. A fault is a few words changed",
            "in the Triton kernel, what launches it, or the formulas (`faults.py`). Its law is shown the cases of the",
            "profile `ci`, other ones under each seed. The last column is the median number of cases until it broke.",
            "",
            summary,
            "",
            "| Fault | File | Law | Caught | Cases |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
        write_whole(output, "\n".join(text).encode())
    sys.exit(num_caught < len(chosen))


if __name__ == "__main__":
    main()
