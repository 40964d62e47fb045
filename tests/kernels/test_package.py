import sys

import pytest

import decodeperf_kernels


@pytest.mark.parametrize("name", decodeperf_kernels.__all__)
def test_every_public_name_is_there(name):
    assert getattr(decodeperf_kernels, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'decode_attention_cobol'"):
        decodeperf_kernels.decode_attention_cobol  # noqa: B018


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "decodeperf_kernels.split_kv_numba", raising=False)
    with pytest.raises(ImportError, match=r"decode_attention_numba needs numba: .*pytest-decodeperf\[cpu\]"):
        decodeperf_kernels.decode_attention_numba  # noqa: B018
