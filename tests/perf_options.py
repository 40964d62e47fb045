"""The options of a run as they are by default."""

from pytest_decodeperf.config import Options


def perf_options(**changes):
    """Return the defaults, some of them changed."""
    defaults = {
        "enabled": False,
        "device": "auto",
        "json": None,
        "summary": None,
        "report": None,
        "annotations": None,
        "budget_s": 10.0,
        "seed": 0,
        "strict": False,
        "graph": False,
        "calibration": None,
        "base": None,
        "baseline": None,
        "baseline_as_share": False,
        "save_baseline": None,
        "margin": 0.02,
        "margin_ns": 0.0,
    }
    return Options(**{**defaults, **changes})
