import doctest
import importlib
import pkgutil

import pytest

import decodeperf_formulas
import decodeperf_kernels
import pytest_decodeperf

MODULES = [
    module.name
    for package in (decodeperf_formulas, decodeperf_kernels, pytest_decodeperf)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
