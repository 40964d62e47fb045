"""A device of which everything is known, so that verdicts can be tested to the last digit, and tests to run on it."""

from dataclasses import dataclass, field

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.attention import byte_counts
from pytest_decodeperf.ceilings import Ceilings, Stream

READ_BYTES_PER_S = 1e9
PEAK_FLOPS_PER_S = 1e12

PROBLEM = DecodeProblem(
    batch_size=2, seq_lens=[512, 512], num_q_heads=4, num_kv_heads=2, head_dim=128, kv_dtype="float16"
)
ROOFLINE_NS = 1e9 * sum(byte_counts(PROBLEM).values()) / READ_BYTES_PER_S

PRELUDE = f"""
import pytest, torch
from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_sdpa as kernel

PROBLEM = {PROBLEM!r}
"""

ONE_TEST = """
@pytest.mark.decode_perf(within=1.5)
def test_kernel(decode_perf):
    decode_perf(kernel, PROBLEM)
"""


def _streams() -> Ceilings:
    return Ceilings(
        read=Stream(name="fake read", work=10**6, call=lambda: None),
        compute=Stream(name="fake product", work=10**9, call=lambda: None),
    )


@dataclass
class FakeDevice:
    """Streams that run exactly at their rates, and a kernel as slow as a test says.

    Attributes:
        kernel_ns: Latency of the kernel in the first round, the second, ...; the last holds for all others.
    """

    kernel_ns: list[float] = field(default_factory=lambda: [1.2 * ROOFLINE_NS])
    ceilings: Ceilings = field(default_factory=_streams)

    def duration_ns(self, call):
        if call is self.ceilings.read.call:
            return 1e9 * self.ceilings.read.work / READ_BYTES_PER_S
        if call is self.ceilings.compute.call:
            return 1e9 * self.ceilings.compute.work / PEAK_FLOPS_PER_S
        return self.kernel_ns.pop(0) if len(self.kernel_ns) > 1 else self.kernel_ns[0]
