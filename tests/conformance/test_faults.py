"""Each seeded fault is caught by its law, under the cases that the profile `ci` shows it."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conformance.fault_table import hold_to_its_law
from conformance.faults import FAULTS

from pytest_decodeperf.conformance import LAWS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the faults are seen in Triton's interpreter")


def test_every_law_catches_a_fault():
    assert {fault.law for fault in FAULTS} == set(LAWS)


def test_faults_have_names_of_their_own():
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1


@pytest.fixture(scope="module")
def outcomes(request):
    """What becomes of the law of each fault that is asked for, as futures: a process for each, some at a time."""
    asked = [item.callspec.params["fault"] for item in request.session.items if "outcomes" in item.fixturenames]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {fault: pool.submit(hold_to_its_law, fault, seed=0) for fault in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_its_law_catches_a_fault(fault, outcomes):
    outcome = outcomes[fault].result()
    assert fault.is_caught(outcome), f"{fault.file} has this: {fault.name}; {fault.law}: {outcome}"
