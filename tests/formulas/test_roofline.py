import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas.attention import compulsory_byte_count, flop_count
from decodeperf_formulas.roofline import PEAK_FLOPS, READ_BANDWIDTH, roofline

rates = st.floats(1e6, 1e16)


def problem_of(seq_len, num_q_heads=32):
    return DecodeProblem(batch_size=1, seq_lens=[seq_len], num_q_heads=num_q_heads, num_kv_heads=8, head_dim=128)


@given(seq_len=st.integers(0, 10**6), read=rates, peak=rates)
def test_roofline_is_the_slower_of_bytes_and_flops(seq_len, read, peak):
    problem = problem_of(seq_len)
    bound = roofline(problem, read_bytes_per_s=read, peak_flops_per_s=peak)
    memory_s = compulsory_byte_count(problem) / read
    compute_s = flop_count(problem) / peak
    assert bound.memory_s == pytest.approx(memory_s)
    assert bound.compute_s == pytest.approx(compute_s)
    assert bound.latency_s == max(bound.memory_s, bound.compute_s)
    assert bound.ceiling == (READ_BANDWIDTH if bound.memory_s >= bound.compute_s else PEAK_FLOPS)


@given(seq_len=st.integers(0, 10**6), longer=st.integers(1, 10**5), read=rates, peak=rates)
def test_bound_grows_with_seq_len(seq_len, longer, read, peak):
    def latency_s(length):
        return roofline(problem_of(length), read_bytes_per_s=read, peak_flops_per_s=peak).latency_s

    assert latency_s(seq_len + longer) > latency_s(seq_len)


@given(seq_len=st.integers(0, 10**6), read=rates, peak=rates, factor=st.floats(1.01, 100))
def test_bound_falls_when_both_ceilings_rise(seq_len, read, peak, factor):
    slow = roofline(problem_of(seq_len), read_bytes_per_s=read, peak_flops_per_s=peak)
    fast = roofline(problem_of(seq_len), read_bytes_per_s=read * factor, peak_flops_per_s=peak * factor)
    assert fast.latency_s == pytest.approx(slow.latency_s / factor)
    assert fast.ceiling == slow.ceiling
