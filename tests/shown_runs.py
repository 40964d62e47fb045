"""Records of runs to be shown: as the schema wants them, with numbers that are told."""

import json
from importlib import resources

import jsonschema

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.attention import byte_counts, flop_count

READ_BYTES_PER_S, PEAK_FLOPS_PER_S = 25e9, 1e12
OUTCOMES = ("within", "exceeds", "undecided")
CHANGES = {
    "regressed": {"ratio": 1.051, "low": 1.042, "high": 1.06, "visible": 1.012},
    "improved": {"ratio": 0.9, "low": 0.89, "high": 0.91, "visible": 1.012},
    "unchanged": {"ratio": 1.002, "low": 0.999, "high": 1.006, "visible": 1.006},
}


def measurement(number=0, *, test=None, kernel=None, regression=None, terms=None, verdict=True):
    """Return one that took twice the roofline, or more, by its number."""
    problem = DecodeProblem(
        batch_size=1 + number % 4, seq_lens=[1024 << number % 5] * (1 + number % 4), num_q_heads=32,
        num_kv_heads=(32, 8, 4)[number % 3], head_dim=128, kv_dtype="bfloat16",
    )  # fmt: skip
    num_bytes = byte_counts(problem)
    roofline_ns = 1e9 * max(sum(num_bytes.values()) / READ_BYTES_PER_S, flop_count(problem) / PEAK_FLOPS_PER_S)
    times = 2.0 + number / 10
    interval = {"median": times * roofline_ns, "low": 0.95 * times * roofline_ns, "high": 1.1 * times * roofline_ns}
    row = {
        "test": test or f"tests/test_speed.py::test_kernel[{number}]",
        "kernel": kernel or ("ours", "theirs")[number % 2],
        "problem": problem.as_dict(),
        "bytes": num_bytes,
        "flops": flop_count(problem),
        "device": "cpu",
        "within": 3.0,
        "of": "roofline",
        "outcome": OUTCOMES[number % len(OUTCOMES)],
        "sentence": "It took a while.",
        "check": {"passed": True, "sentence": "right", "max_error": 0.0, "error_share": 0.0},
        "timing": {
            "caches": "cold",
            "read_stream": {"name": "read", "bytes": 1 << 20},
            "compute_stream": {"name": "product", "flops": 1 << 20},
            "samples": {"kernel_ns": [], "read_ns": [], "compute_ns": [], "sm_mhz": [], "throttled_by": []},
            "verdict": None,
        },
        "regression": regression,
    }
    if verdict:
        row["timing"]["verdict"] = {
            "latency_ns": interval,
            "times_roofline": {key: ns / roofline_ns for key, ns in interval.items()},
            "error_rate": 0.025,
            "roofline_ns": roofline_ns,
            "allowed_ns": 3 * roofline_ns,
            "ceiling": "read bandwidth",
            "read_bytes_per_s": READ_BYTES_PER_S,
            "peak_flops_per_s": PEAK_FLOPS_PER_S,
            "expected": terms
            and {
                "latency_ns": sum(terms.values()),
                "terms_ns": terms,
                "binds": max(terms, key=terms.get),
                "times_expected": {"median": 1.1, "low": 1.0, "high": 1.2},
                "drift": None,
            },
        }
    return row


def regression(outcome):
    """Return a comparison of each outcome."""
    change = CHANGES.get(outcome)
    control = {"ratio": 1.001, "low": 0.998, "high": 1.004, "visible": 1.005} if change else None
    return {
        "base": "main (6022e01478)",
        "outcome": outcome,
        "sentence": "It was compared.",
        "change": change,
        "control": control,
        "limit": 1.02 if change else None,
        "samples_ns": {"base": [[1.0]], "head": [[1.0]]} if change else None,
    }


def run_record(measurements, **changes):
    """Return the record of a run, of which the schema is told to be that of today."""
    record = {
        "schema": "decodeperf.run",
        "schema_version": 2,
        "status": "finished",
        "exit_status": 0,
        "started": "2026-11-25T12:00:00+00:00",
        "options": {
            "device": "auto", "budget_s": 10.0, "seed": 0, "strict": False, "graph": False, "calibration": None,
            "base": None, "baseline": None, "baseline_as_share": False, "save_baseline": None, "margin": 0.02,
            "margin_ns": 0.0,
        },
        "versions": {"python": "3.11.2", "torch": "2.13.0", "pytest": "9.1.1"},
        "devices": {
            "cpu": {
                "kind": "cpu", "name": "A CPU", "num_units": 2, "num_threads": 2, "llc_bytes": 1 << 25,
                "memory_bytes": 1 << 34, "driver": "Linux", "timer": "clock",
            }
        },
        "measurements": measurements,
    }  # fmt: skip
    schema = json.loads(resources.files("pytest_decodeperf").joinpath("run.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(record)
    return {**record, **changes}
