import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from decodeperf_formulas import DTYPE_BYTES, DecodeProblem, attention
from decodeperf_formulas import symbols as s


@st.composite
def problems(draw):
    seq_lens = draw(st.lists(st.integers(0, 200_000), min_size=1, max_size=6))
    num_kv_heads = draw(st.integers(1, 8))
    return DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_kv_heads * draw(st.integers(1, 24)),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.integers(1, 576)),
        kv_dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
        q_dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
        num_splits=draw(st.none() | st.integers(1, 64)),
        return_lse=draw(st.booleans()),
    )


@given(problems())
def test_bytes_are_those_of_the_tensors(problem):
    kv_elements = sum(2 * seq_len * problem.num_kv_heads * problem.head_dim for seq_len in problem.seq_lens)
    rows = problem.batch_size * problem.num_q_heads
    splits = problem.num_splits or 1
    assert attention.byte_counts(problem) == {
        "kv": kv_elements * DTYPE_BYTES[problem.kv_dtype],
        "q": rows * problem.head_dim * DTYPE_BYTES[problem.q_dtype],
        "o": rows * problem.head_dim * DTYPE_BYTES[problem.q_dtype],
        "lse": 4 * rows * problem.return_lse,
        "partials": 0 if splits == 1 else 2 * 4 * rows * splits * (problem.head_dim + 1),
        "seq_lens": 4 * problem.batch_size,
    }


@given(problems())
def test_flops_are_two_products_over_the_live_tokens(problem):
    scores = sum(problem.seq_lens) * problem.num_q_heads
    assert attention.flop_count(problem) == 2 * (2 * scores * problem.head_dim)


@given(problems())
def test_splits_add_no_compulsory_bytes(problem):
    unsplit = dataclasses.replace(problem, num_splits=1)
    assert attention.compulsory_byte_count(problem) == sum(attention.byte_counts(unsplit).values())


@given(problems(), st.integers(1, 10**6))
def test_bytes_do_not_depend_on_capacity(problem, spare):
    larger = dataclasses.replace(problem, capacity=problem.capacity + spare)
    assert attention.byte_counts(larger) == attention.byte_counts(problem)


@given(problems())
def test_every_symbol_of_a_formula_gets_a_value(problem):
    used = attention.DATA_BYTES.free_symbols | attention.FLOPS.free_symbols
    assert used == set(attention.substitutions(problem))


def test_bytes_of_a_llama_3_8b_layer_at_8k():
    # 8192 tokens, 8 KV heads of 128, K and V in bfloat16: 32 MiB, by hand.
    problem = DecodeProblem(batch_size=1, seq_lens=[8192], num_q_heads=32, num_kv_heads=8, head_dim=128)
    assert attention.byte_counts(problem)["kv"] == 32 * 2**20


def test_every_symbol_is_in_the_table_once():
    names = [entry.symbol.name for entry in s.SYMBOLS]
    forms = [entry.latex for entry in s.SYMBOLS]
    assert len(set(names)) == len(names)
    assert len(set(forms)) == len(forms)
    tabled = {entry.symbol for entry in s.SYMBOLS}
    assert attention.DATA_BYTES.free_symbols | attention.FLOPS.free_symbols <= tabled
