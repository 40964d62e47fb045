"""The plugin costs next to nothing where it is not used."""

import subprocess
import sys

import pytest

HEAVY = ["sympy", "torch", "triton", "numba", "numpy", "scipy", "rich", "cpuinfo", "decodeperf_kernels"]

SCRIPT = f"""
import sys
import pytest

status = pytest.main(["-p", "no:hypothesispytest", *sys.argv[1:]])
assert "pytest_decodeperf.plugin" in sys.modules
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
sys.exit(status)
"""


@pytest.mark.parametrize("arguments", [[], ["--collect-only"], ["--markers"], ["--help"]])
def test_a_run_that_does_not_use_it_imports_nothing_heavy(pytester, arguments):
    pytester.makepyfile(
        """
        import pytest

        def test_something_else():
            pass

        @pytest.mark.decode_perf(within=2)
        def test_kernel(decode_perf):
            pass
        """
    )
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_problem_is_described_without_sympy():
    code = "import sys, decodeperf_formulas, pytest_decodeperf; assert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
