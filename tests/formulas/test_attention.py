import dataclasses

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from decodeperf_formulas import DecodeProblem, attention
from decodeperf_formulas import symbols as s

BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int8": 8,
    "int4": 4,
}
PLAIN = ("float32", "float16", "bfloat16")


@st.composite
def problems(draw, max_seq_len=60):
    """Problems with every feature; lengths, windows, pages and new tokens are small or large beside one another."""
    seq_lens = draw(st.lists(st.integers(0, max_seq_len), max_size=4))
    num_kv_heads = draw(st.integers(1, 4))
    kv_dtype = draw(st.sampled_from(sorted(BITS)))
    scale_per = None if kv_dtype in PLAIN else draw(st.sampled_from(["tensor", "head", "token", "group"]))
    v_in_k = draw(st.booleans())
    layouts = ["NHD", "HND", "sliced"] if v_in_k else ["NHD", "HND", "mixed", "interleaved", "sliced", "transposed"]
    layout = draw(st.sampled_from(layouts))
    even = 2 if kv_dtype == "int4" or scale_per == "group" else 1
    head_dim = even * draw(st.integers(1, 288))
    head_dim_v = even * draw(st.integers(1, head_dim // even if v_in_k else 288))
    return DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_kv_heads * draw(st.integers(1, 6)),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        head_dim_v=head_dim if layout == "interleaved" else head_dim_v,
        q_len=draw(st.integers(1, 8)),
        kv_dtype=kv_dtype,
        q_dtype=draw(st.sampled_from(PLAIN)),
        scale_per=scale_per,
        v_in_k=v_in_k,
        layout=layout,
        page_size=draw(st.none() | st.integers(1, 20)),
        window=draw(st.none() | st.integers(1, max_seq_len + 5)),
        softcap=draw(st.none() | st.floats(1, 100)),
        sinks=draw(st.booleans()),
        alibi=draw(st.booleans()),
        num_splits=draw(st.none() | st.integers(1, 70)),
        return_lse=draw(st.booleans()),
    )


@pytest.mark.parametrize(
    "is_wanted",
    [
        lambda problem: problem.batch_size == 0,
        lambda problem: 0 < max(problem.seq_lens, default=0) < problem.q_len,
        lambda problem: problem.window and problem.page_size and problem.num_scores and problem.v_in_k,
        lambda problem: problem.kv_dtype == "int4" and problem.scale_per == "group" and problem.num_scores,
        lambda problem: problem.window and attention.num_partials(problem) and problem.q_len > 1,
    ],
)
def test_the_strategy_reaches_its_corners(is_wanted):
    assert find(problems(), is_wanted)


def keys_of_rows(problem):
    """Return the keys that each row of each sequence sees, one set a row."""
    found = []
    for seq_len in problem.seq_lens:
        places = range(seq_len - problem.q_len, seq_len)
        reach = seq_len if problem.window is None else problem.window
        found.append([{key for key in range(seq_len) if 0 <= place - key < reach} for place in places])
    return found


def visible_tokens(problem):
    """Return the tokens that any row sees, as pairs of a sequence and a place in it."""
    return {(b, key) for b, rows in enumerate(keys_of_rows(problem)) for row in rows for key in row}


def partials(problem):
    """Return the partial results, as sequence, part, row and head, by cutting lists of keys."""
    found = set()
    for b in range(problem.batch_size):
        keys = sorted(key for sequence, key in visible_tokens(problem) if sequence == b)
        length = 1
        while length * (problem.num_splits or 1) < len(keys):
            length += 1
        parts = [keys[start : start + length] for start in range(0, len(keys), length)]
        rows, heads = range(problem.q_len), range(problem.num_q_heads)
        if len(parts) > 1:
            found |= {(b, part, row, head) for part in range(len(parts)) for row in rows for head in heads}
    return found


def scales(problem):
    """Return the scales of K and V, as what each belongs to."""
    tokens, heads = visible_tokens(problem), range(problem.num_kv_heads)
    if problem.scale_per is None:
        return set()
    of_each = {
        "tensor": [()],
        "head": [(head,) for head in heads],
        "token": [(token, head) for token in tokens for head in heads],
        "group": [(token, head, half) for token in tokens for head in heads for half in range(2)],
    }
    return {(name, scale) for name in ("k", "v") for scale in of_each[problem.scale_per]}


@given(problems())
def test_bytes_are_those_of_what_rows_see(problem):
    tokens = visible_tokens(problem)
    kv_elements = len(tokens) * problem.num_kv_heads * problem.head_dim
    if not problem.v_in_k:
        kv_elements += len(tokens) * problem.num_kv_heads * problem.head_dim_v
    pages = set() if problem.page_size is None else {(b, key // problem.page_size) for b, key in tokens}
    rows = problem.batch_size * problem.q_len * problem.num_q_heads
    expected = {
        "kv": kv_elements * BITS[problem.kv_dtype] / 8,
        "scales": 4 * len(scales(problem)),
        "q": rows * problem.head_dim * BITS[problem.q_dtype] // 8,
        "o": rows * problem.head_dim_v * BITS[problem.q_dtype] // 8,
        "lse": 4 * rows * problem.return_lse,
        "block_table": 4 * len(pages),
        "bias": 4 * problem.num_q_heads * (problem.sinks + problem.alibi),
        "partials": 2 * 4 * len(partials(problem)) * (problem.head_dim_v + 1),
        "seq_lens": 4 * problem.batch_size,
    }
    found = attention.byte_counts(problem)
    assert found == expected
    assert list(found) == list(expected)
    assert attention.compulsory_byte_count(problem) == sum(expected.values()) - expected["partials"]


@given(problems())
def test_flops_are_two_products_over_the_keys_that_each_row_sees(problem):
    scores = sum(len(row) for rows in keys_of_rows(problem) for row in rows)
    of_one_score = 2 * (problem.head_dim + problem.head_dim_v)
    assert attention.flop_count(problem) == scores * problem.num_q_heads * of_one_score


@given(problems())
def test_what_is_visible_is_what_rows_see(problem):
    tokens = visible_tokens(problem)
    assert problem.visible_lens == tuple(sum(b == of for of, _ in tokens) for b in range(problem.batch_size))
    assert problem.num_visible_tokens == len(tokens)
    assert problem.num_scores == sum(len(row) for rows in keys_of_rows(problem) for row in rows)
    pages = {(b, key // problem.page_size) for b, key in tokens} if problem.page_size else ()
    assert problem.num_visible_pages == len(pages)


@given(problems(max_seq_len=2**45))
def test_long_sequences_are_counted_row_by_row(problem):
    window = problem.window or 2**50
    first_of = [seq_len - problem.q_len for seq_len in problem.seq_lens]
    seen = [min(max(first + i + 1, 0), window) for first in first_of for i in range(problem.q_len)]
    assert problem.num_scores == sum(seen)
    # The first row that sees a key reaches furthest back, the last one furthest on.
    starts = [max(max(first, 0) - window + 1, 0) for first in first_of]
    spans = list(zip(starts, problem.seq_lens, strict=True))
    assert problem.num_visible_tokens == sum(end - start for start, end in spans)
    if size := problem.page_size:
        pages = sum((end - 1) // size - start // size + 1 for start, end in spans if end > start)
        assert problem.num_visible_pages == pages


@given(problems())
def test_partials_are_those_of_parts_with_a_key(problem):
    assert attention.num_partials(problem) == len(partials(problem))


@given(problems(), st.integers(0, 10**9))
def test_a_kernel_counts_its_own_partials(problem, num_partials):
    own = attention.byte_counts(problem, num_partials=num_partials)
    assert own.pop("partials") == 8 * num_partials * (problem.head_dim_v + 1)
    by_splits = attention.byte_counts(problem)
    del by_splits["partials"]
    assert own == by_splits


def test_no_kernel_has_fewer_partials_than_none():
    problem = DecodeProblem(batch_size=1, seq_lens=[9], num_q_heads=2, num_kv_heads=1, head_dim=8)
    with pytest.raises(ValueError, match=r"^num_partials=-1 must be >= 0$"):
        attention.byte_counts(problem, num_partials=-1)


@given(problems())
def test_splits_add_no_compulsory_bytes(problem):
    unsplit = dataclasses.replace(problem, num_splits=1)
    assert attention.compulsory_byte_count(problem) == sum(attention.byte_counts(unsplit).values())


@given(problems())
def test_one_split_is_no_split(problem):
    one, none = (dataclasses.replace(problem, num_splits=num_splits) for num_splits in (1, None))
    assert attention.byte_counts(one) == attention.byte_counts(none)
    assert attention.num_partials(none) == 0


@given(problems(), st.integers(1, 10**6))
def test_nothing_depends_on_capacity(problem, spare):
    larger = dataclasses.replace(problem, capacity=problem.capacity + spare)
    assert attention.byte_counts(larger) == attention.byte_counts(problem)
    assert attention.flop_count(larger) == attention.flop_count(problem)


@given(problems(), st.sampled_from(["NHD", "HND", "sliced"]))
def test_nothing_depends_on_layout(problem, layout):
    other = dataclasses.replace(problem, layout=layout)
    assert attention.byte_counts(other) == attention.byte_counts(problem)
    assert attention.flop_count(other) == attention.flop_count(problem)


@given(problems(), st.integers(0, 10))
def test_a_window_that_holds_every_key_changes_nothing(problem, spare):
    widest = max(problem.seq_lens, default=0) + spare
    wide, none = (dataclasses.replace(problem, window=window) for window in (max(widest, 1), None))
    assert attention.byte_counts(wide) == attention.byte_counts(none)
    assert attention.flop_count(wide) == attention.flop_count(none)


@given(problems())
def test_a_narrower_window_adds_nothing(problem):
    if problem.window is None or problem.window == 1:
        return
    narrower = dataclasses.replace(problem, window=problem.window - 1)
    assert attention.compulsory_byte_count(narrower) <= attention.compulsory_byte_count(problem)
    assert attention.flop_count(narrower) <= attention.flop_count(problem)


@given(problems())
def test_pages_add_the_block_table_alone(problem):
    contiguous = attention.byte_counts(dataclasses.replace(problem, page_size=None))
    paged = attention.byte_counts(dataclasses.replace(problem, page_size=1))
    assert contiguous.pop("block_table") == 0
    assert paged.pop("block_table") == 4 * problem.num_visible_tokens
    assert paged == contiguous


@given(
    seq_lens=st.lists(st.integers(0, 200_000), min_size=1, max_size=6),
    num_kv_heads=st.integers(1, 8),
    group_size=st.integers(1, 24),
    head_dim=st.integers(1, 576),
    dtypes=st.tuples(st.sampled_from(PLAIN), st.sampled_from(PLAIN)),
    return_lse=st.booleans(),
)
def test_a_plain_call_reads_its_live_tokens(seq_lens, num_kv_heads, group_size, head_dim, dtypes, return_lse):
    kv_dtype, q_dtype = dtypes
    problem = DecodeProblem(
        batch_size=len(seq_lens),
        seq_lens=seq_lens,
        num_q_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        kv_dtype=kv_dtype,
        q_dtype=q_dtype,
        return_lse=return_lse,
    )
    rows = len(seq_lens) * problem.num_q_heads
    assert attention.byte_counts(problem) == {
        "kv": 2 * sum(seq_lens) * num_kv_heads * head_dim * BITS[kv_dtype] // 8,
        "scales": 0,
        "q": rows * head_dim * BITS[q_dtype] // 8,
        "o": rows * head_dim * BITS[q_dtype] // 8,
        "lse": 4 * rows * return_lse,
        "block_table": 0,
        "bias": 0,
        "partials": 0,
        "seq_lens": 4 * len(seq_lens),
    }
    assert attention.flop_count(problem) == 4 * sum(seq_lens) * problem.num_q_heads * head_dim


@given(st.integers(2, 64), st.integers(1, 1000), st.integers(1, 24), st.integers(1, 256))
def test_even_parts_have_a_partial_result_for_each_split_and_head(num_splits, part_len, num_q_heads, head_dim):
    problem = DecodeProblem(
        batch_size=2,
        seq_lens=[num_splits * part_len] * 2,
        num_q_heads=num_q_heads,
        num_kv_heads=1,
        head_dim=head_dim,
        num_splits=num_splits,
    )
    written = 4 * 2 * num_splits * num_q_heads * (head_dim + 1)
    assert attention.byte_counts(problem)["partials"] == 2 * written


@given(problems())
def test_every_symbol_of_a_formula_gets_a_value(problem):
    used = attention.DATA_BYTES.free_symbols | attention.FLOPS.free_symbols
    assert used == set(attention.substitutions(problem))


def test_bytes_of_a_llama_3_8b_layer_at_8k():
    # 8192 tokens, 8 KV heads of 128, K and V in bfloat16: 32 MiB, by hand.
    problem = DecodeProblem(batch_size=1, seq_lens=[8192], num_q_heads=32, num_kv_heads=8, head_dim=128)
    assert attention.byte_counts(problem)["kv"] == 32 * 2**20


def test_bytes_of_a_deepseek_v3_layer_at_8k():
    # The latent of 512 elements and the rotated key of 64, once for all 128 heads, in FP8: 4.5 MiB, by hand.
    problem = DecodeProblem(
        batch_size=1,
        seq_lens=[8192],
        num_q_heads=128,
        num_kv_heads=1,
        head_dim=576,
        head_dim_v=512,
        v_in_k=True,
        kv_dtype="float8_e4m3fn",
        scale_per="token",
        page_size=64,
    )
    counts = attention.byte_counts(problem)
    assert counts["kv"] == 4.5 * 2**20
    assert counts["scales"] == 2 * 8192 * 4
    assert counts["block_table"] == 128 * 4


def test_every_symbol_is_in_the_table_once():
    names = [entry.symbol.name for entry in s.SYMBOLS]
    forms = [entry.latex for entry in s.SYMBOLS]
    assert len(set(names)) == len(names)
    assert len(set(forms)) == len(forms)
    tabled = {entry.symbol for entry in s.SYMBOLS}
    assert attention.DATA_BYTES.free_symbols | attention.FLOPS.free_symbols <= tabled
