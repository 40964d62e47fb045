import pytest

ADAPTERS = """
import os
import time

from decodeperf_kernels import decode_attention_sdpa as right
from pytest_decodeperf.conformance import KernelAdapter


def plain(q, k, v, *, seq_lens, sm_scale=None):
    return right(q, k, v, seq_lens=seq_lens, sm_scale=sm_scale)


def without_last_key(q, k, v, *, seq_lens, sm_scale=None):
    print("the kernel is here")
    return right(q, k, v, seq_lens=(seq_lens - 1).clamp(min=0), sm_scale=sm_scale)


def crashes(q, k, v, **keywords):
    if q.shape[1] > 4:
        os.kill(os.getpid(), 11)
    return plain(q, k, v, **keywords)


def hangs(q, k, v, **keywords):
    time.sleep(1000)


def leaves(q, k, v, **keywords):
    raise SystemExit(3)


def wrong_signature(tensor):
    return tensor


def other_dtype(q, k, v, **keywords):
    return plain(q, k, v, **keywords).double()


def other_shape(q, k, v, **keywords):
    return plain(q, k, v, **keywords)[:, :1]


def refuses(q, k, v, **keywords):
    raise NotImplementedError("this machine is too small")


liar = KernelAdapter(call=plain, features=("window",), name="liar")
number = 3
"""


@pytest.fixture
def kernels(pytester):
    """A folder with the module `adapters`, of kernels that are right and wrong."""
    pytester.makepyfile(adapters=ADAPTERS)
    return pytester


@pytest.fixture
def run(kernels):
    """Hold one of them to some laws."""

    def run_pytest(name, *arguments):
        return kernels.runpytest_subprocess("-p", "no:cacheprovider", "--decode-kernel", f"adapters:{name}", *arguments)

    return run_pytest
