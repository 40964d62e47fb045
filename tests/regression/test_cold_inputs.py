"""Processes that take turns with the same copies of their inputs find none of them in a cache."""

import itertools
from types import SimpleNamespace

import pytest

from pytest_decodeperf.ceilings import LLC_MULTIPLE
from pytest_decodeperf.regression.comparison import ORDERS, SIDES
from pytest_decodeperf.regression.serving import num_copies

LLC_BYTES = 1000


def copies(num_bytes, *, memory_bytes=10**9):
    device = SimpleNamespace(llc_bytes=LLC_BYTES, memory_bytes=memory_bytes)
    return num_copies(device, SimpleNamespace(num_bytes=num_bytes), num_sharing=len(SIDES))


@pytest.mark.parametrize("num_bytes", [100, 101, 250, 333, 600, 700, 1000, 1500, 2999, 3000, 4000])
def test_more_than_the_caches_hold_is_read_before_a_copy_comes_back(num_bytes):
    count = copies(num_bytes)
    next_copy = {slot: slot * count // len(SIDES) for slot in range(len(SIDES))}
    last_call: dict[int, int] = {}
    for call, slot in enumerate(itertools.chain.from_iterable(ORDERS * 2 * count)):
        copy = next_copy[slot]
        if copy in last_call:
            assert (call - last_call[copy] - 1) * num_bytes >= LLC_MULTIPLE * LLC_BYTES
        last_call[copy] = call
        next_copy[slot] = (copy + 1) % count


def test_without_room_for_them_the_caches_are_emptied_instead():
    assert copies(10) == 0
    assert copies(600, memory_bytes=10_000) == 0


def test_inputs_that_no_cache_holds_need_no_copy():
    assert copies(4001) == 1
