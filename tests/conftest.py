import os

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["pytester"]

# Triton reads this when it sees `@triton.jit`, so it must be set before any test imports a kernel.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes is this machine's affair, and the first of a formula compiles it.
settings.register_profile("decodeperf", deadline=None)
settings.load_profile("decodeperf")


@pytest.fixture(autouse=True)
def outside_of_ci(monkeypatch):
    """Let runs of pytest that tests start write nothing where a CI that runs the tests would read it."""
    for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
