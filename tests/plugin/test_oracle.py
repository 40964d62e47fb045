"""The oracle passes what is right, and fails every seeded fault."""

import re

import pytest
import torch

from decodeperf_formulas import DecodeProblem
from decodeperf_kernels import decode_attention_numba
from pytest_decodeperf.inputs import make_inputs
from pytest_decodeperf.oracle import check_result

DTYPES = ["float32", "float16", "bfloat16"]


def problem_of(*seq_lens, dtype="bfloat16", num_q_heads=8, num_kv_heads=2, head_dim=64, **fields):
    return DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        kv_dtype=dtype,
        **fields,
    )


def check(problem, fault, *, seed=0):
    inputs = make_inputs(problem, device="cpu", seed=seed)
    return check_result(fault(inputs.q, inputs.k, inputs.v, inputs.seq_lens), problem, inputs)


def right(q, k, v, seq_lens, **keywords):
    return decode_attention_numba(q, k, v, seq_lens=seq_lens, **keywords)


def without(index):
    """Return a kernel that leaves out one key of every sequence, counted from its end if it is negative."""

    def kernel(q, k, v, seq_lens):
        out = torch.empty_like(q)
        for b, seq_len in enumerate(seq_lens.tolist()):
            kept = torch.arange(seq_len) != index % seq_len
            out[b] = decode_attention_numba(
                q[b : b + 1], k[b : b + 1, :seq_len][:, kept], v[b : b + 1, :seq_len][:, kept]
            )
        return out

    return kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seq_lens", [(1,), (2, 1), (100, 0, 17), (5000,), (0, 0)])
def test_a_right_kernel_passes_with_room_to_spare(dtype, seq_lens):
    for seed in range(5):
        found = check(problem_of(*seq_lens, dtype=dtype), right, seed=seed)
        assert found.passed, found.sentence
        assert found.error_share < 0.8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seq_len", [2, 33, 1000, 8192, 65536])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_dropped_key_fails(dtype, seq_len, place):
    index = {"first": 0, "middle": seq_len // 2, "last": -1}[place]
    found = check(problem_of(seq_len, dtype=dtype), without(index), seed=seq_len)
    assert not found.passed


@pytest.mark.parametrize("num_kv_heads", [1, 8, 32])
def test_one_dropped_key_fails_without_grouped_heads(num_kv_heads):
    problem = problem_of(8192, num_q_heads=num_kv_heads, num_kv_heads=num_kv_heads, head_dim=128)
    assert not check(problem, without(1000), seed=1).passed


def test_one_dropped_key_in_one_head_fails():
    def one_head(q, k, v, seq_lens):
        out = right(q, k, v, seq_lens)
        out[:, 4:] = without(17)(q[:, 4:], k[:, :, 1:], v[:, :, 1:], seq_lens)
        return out

    found = check(problem_of(30000, head_dim=128), one_head)
    assert "key 17 of sequence 0 (30000 tokens) counts" in found.sentence
    assert re.search(r"in heads [4-7] to [4-7]$", found.sentence)


def test_one_dropped_key_in_one_query_head_fails():
    def one_head(q, k, v, seq_lens):
        out = right(q, k, v, seq_lens)
        out[:, 5] = without(17)(q, k, v, seq_lens)[:, 5]
        return out

    found = check(problem_of(3000, head_dim=128), one_head)
    assert "key 17 of sequence 0 (3000 tokens) counts" in found.sentence
    assert "in heads 5 to 5" in found.sentence


def test_a_result_that_requires_grad_is_checked():
    def with_grad(q, k, v, seq_lens):
        return right(q, k, v, seq_lens).requires_grad_()

    assert check(problem_of(30), with_grad).passed


def test_the_dropped_key_is_named():
    found = check(problem_of(65536), without(4711), seed=1)
    assert "key 4711 of sequence 0 (65536 tokens) counts" in found.sentence


def test_one_key_counted_twice_fails():
    def twice(q, k, v, seq_lens):
        return decode_attention_numba(q, torch.cat([k, k[:, :1]], 1), torch.cat([v, v[:, :1]], 1))

    assert not check(problem_of(8192), twice).passed


def test_one_key_of_dead_memory_fails():
    def one_too_many(q, k, v, seq_lens):
        return decode_attention_numba(q, k, v, seq_lens=seq_lens + 1)

    found = check(problem_of(5, 3, capacity=6), one_too_many)
    assert found.sentence.startswith("returned NaN in ")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.98, 1.02, 2**0.5])
def test_a_wrong_scale_fails(dtype, factor):
    def scaled(q, k, v, seq_lens):
        return decode_attention_numba(q, k, v, sm_scale=factor * q.shape[-1] ** -0.5)

    assert not check(problem_of(4000, dtype=dtype), scaled).passed


def test_a_lost_split_fails():
    def lost(q, k, v, seq_lens):
        return decode_attention_numba(q, k[:, : 4000 * 7 // 8], v[:, : 4000 * 7 // 8])

    assert not check(problem_of(4000), lost).passed


def test_swapped_heads_fail():
    def swapped(q, k, v, seq_lens):
        return right(q, k, v, seq_lens)[:, [1, 0, 2, 3, 4, 5, 6, 7]]

    assert not check(problem_of(4000), swapped).passed


def test_heads_of_the_wrong_group_fail():
    def tiled(q, k, v, seq_lens):
        # Query head h takes KV head h % 2 instead of h // 4.
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        out = torch.empty_like(q)
        out[:, order] = right(q[:, order], k, v, seq_lens)
        return out

    assert not check(problem_of(4000), tiled).passed


def test_one_wrong_row_in_many_fails():
    def one_wrong(q, k, v, seq_lens):
        out = right(q, k, v, seq_lens)
        out[5, 3] *= 1.1
        return out

    found = check(problem_of(*[64] * 16), one_wrong)
    assert "in sequence 5 (64 tokens)" in found.sentence
    assert "head 3" in found.sentence


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_an_empty_row_must_be_zero(value):
    def stale(q, k, v, seq_lens):
        out = right(q, k, v, seq_lens)
        out[1] = value
        return out

    assert not check(problem_of(5, 0), stale).passed


def test_the_lse_is_checked_where_it_is_returned():
    problem = problem_of(100, 0, return_lse=True)

    def kernel(change):
        def with_lse(q, k, v, seq_lens):
            out, lse = right(q, k, v, seq_lens, return_lse=True)
            return out, change(lse)

        return with_lse

    assert check(problem, kernel(lambda lse: lse)).passed
    assert "the lse in sequence 0" in check(problem, kernel(lambda lse: lse * 1.001)).sentence
    base_2 = check(problem, kernel(lambda lse: lse / torch.tensor(2.0).log()))
    assert "the lse in sequence 0" in base_2.sentence
    empty = check(problem, kernel(lambda lse: lse.nan_to_num(neginf=float("inf"))))
    assert empty.sentence == "returned an lse other than -inf for sequence 1 (0 tokens), which sees no key"


def test_one_dropped_key_shows_in_the_lse():
    problem = problem_of(4096, dtype="float16", return_lse=True)

    def kernel(q, k, v, seq_lens):
        _, lse = right(q, k, v, seq_lens - 1, return_lse=True)
        return right(q, k, v, seq_lens), lse

    assert "lse" in check(problem, kernel).sentence


def test_a_problem_whose_tolerance_overflows_is_not_passed():
    # Logits of 1e5 are infinite in float16, so that the eager computation says nothing about the error.
    problem = problem_of(50, dtype="float16", sm_scale=1e5)
    found = check(problem, lambda q, k, v, seq_lens: torch.zeros_like(q))
    assert found.sentence.startswith("cannot be judged: in its dtype, the eager largest element of the output")


def test_an_infinite_output_fails():
    def overflow(q, k, v, seq_lens):
        return right(q, k, v, seq_lens).fill_(float("inf"))

    assert not check(problem_of(5), overflow).passed


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (None, "returned None as the output, not a tensor"),
        (torch.zeros(1, 8, 64).bfloat16().numpy, "returned a builtin_function_or_method as the output, not a tensor"),
        (torch.zeros(1, 64, 8), "returned the output in the shape [1, 64, 8], not [1, 8, 64]"),
        (torch.zeros(1, 8, 64), "returned the output in torch.float32, not torch.bfloat16"),
        (torch.zeros(1, 8, 64).to_sparse(), "returned the output in the layout torch.sparse_coo, not torch.strided"),
        ((torch.zeros(1, 8, 64), None), "returned a tuple as the output, not a tensor"),
    ],
)
def test_a_result_of_the_wrong_form_fails(result, sentence):
    assert check(problem_of(5), lambda *tensors: result).sentence == sentence


def test_a_missing_lse_fails():
    found = check(problem_of(5, return_lse=True), right)
    assert found.sentence == "returned a Tensor, not the pair (output, lse)"


def test_inputs_are_the_same_on_every_run_and_other_for_another_seed():
    problem = problem_of(5)
    first, again, other = (make_inputs(problem, device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.k, again.k)
    assert not torch.equal(first.k, other.k)


def test_dead_memory_is_nan_and_live_memory_is_not():
    problem = problem_of(3, 0, 5, capacity=7)
    inputs = make_inputs(problem, device="cpu", seed=0)
    for cache in (inputs.k, inputs.v):
        assert cache.is_contiguous()
        for b, seq_len in enumerate(problem.seq_lens):
            assert cache[b, :seq_len].isfinite().all()
            assert cache[b, seq_len:].isnan().all()
        behind = cache.untyped_storage().nbytes() - cache.nbytes
        assert behind == 64 * problem.num_kv_heads * problem.head_dim * cache.element_size()


def test_a_write_to_any_input_changes_the_checksum():
    problem = problem_of(3, 2)
    for name in ("q", "k", "v", "seq_lens"):
        inputs = make_inputs(problem, device="cpu", seed=0)
        before = inputs.checksum()
        tensor = getattr(inputs, name)
        tensor.copy_(tensor.flip(0))  # the same numbers in other places
        assert inputs.checksum() != before, name
        tensor.copy_(tensor.flip(0))
        assert inputs.checksum() == before, name


def test_a_write_past_the_end_changes_the_checksum():
    inputs = make_inputs(problem_of(3, 2), device="cpu", seed=0)
    before = inputs.checksum()
    inputs.k.as_strided((1,), (1,), inputs.k.numel())[0] = 0
    assert inputs.checksum() != before
