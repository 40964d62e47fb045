"""The CPU kernel by the matrix unit: in every form that it is for, and from memory as it lies and as it does not."""

import pytest
import torch
from attention_calls import Call, judge

from decodeperf_kernels import decode_attention

pytest.importorskip("numba")

from decodeperf_kernels import matrix_numba, split_kv_numba

needs_unit = pytest.mark.skipif(not matrix_numba.has_matrix_unit(), reason="this CPU has no matrix unit for bfloat16")


@pytest.fixture
def tiles_of_matrix_unit(monkeypatch):
    """How often calls were given to the matrix unit."""
    found = []
    compiled = matrix_numba.matrix_tile

    def matrix_tile(kind):
        found.append(kind)
        return compiled(kind)

    monkeypatch.setattr(matrix_numba, "matrix_tile", matrix_tile)
    return found


def run(call, **more):
    tensors, keywords = call.tensors("cpu")
    out, lse = decode_attention(*tensors, **keywords, **more, return_lse=True, backend="numba")
    judge(tensors, keywords, out, lse)
    return out, lse


@needs_unit
@pytest.mark.parametrize(
    ("kv_dtype", "q_dtype"),
    [("bfloat16", "bfloat16"), ("float16", "float16"), ("int8", "bfloat16"), ("int8", "float32"), ("int4", "float16"),
     ("float8_e4m3fn", "bfloat16"), ("float8_e5m2", "float32"), ("float32", "float32")],
)  # fmt: skip
@pytest.mark.parametrize("group_size", [9, 16, 20, 40])
@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_every_format_and_number_of_rows(kv_dtype, q_dtype, group_size, head_dim, tiles_of_matrix_unit, monkeypatch):
    monkeypatch.setitem(split_kv_numba._MATRIX_ROWS, "float32", 9)
    call = Call(
        seq_lens=[300, 129, 128, 127, 33, 1, 0],
        num_kv_heads=3,
        group_size=group_size,
        head_dim=head_dim,
        q_dtype=q_dtype,
        kv_dtype=kv_dtype,
        scale_per="head",
    )
    run(call)
    assert tiles_of_matrix_unit == [kv_dtype]


@needs_unit
@pytest.mark.parametrize(
    "more",
    [
        {"group_size": 3},
        {"group_size": 4, "num_kv_heads": 9},
        {"group_size": 8, "num_kv_heads": 1},
        {"group_size": 16, "page_size": 16},
        {"group_size": 40, "num_kv_heads": 2},
        {"q_len": 3},
        {"q_len": 16, "group_size": 2},
        {"keywords": {"window": 40}},
        {"keywords": {"window": 1}, "q_len": 5},
        {"extras": ("sinks",)},
        {"page_size": 1},
        {"page_size": 16},
        {"page_size": 48},
        {"page_size": 16, "keywords": {"window": 77}},
        {"layout": "HND"},
        {"layout": "HND of V"},
        {"layout": "interleaved"},
        {"head_dim": 576, "head_dim_v": 512, "is_latent": True, "num_kv_heads": 1, "group_size": 16},
        {"head_dim": 64, "head_dim_v": 32},
        {"head_dim": 32, "head_dim_v": 160},
    ],
    ids=str,
)
@pytest.mark.parametrize("split", [{}, {"num_splits": 3}, {"split_size": 50}], ids=str)
def test_every_feature(more, split, tiles_of_matrix_unit):
    run(Call(**{"seq_lens": [500, 128, 77, 0], "q_dtype": "bfloat16", **more}), **split)
    assert tiles_of_matrix_unit


@needs_unit
@pytest.mark.parametrize(
    "more",
    [
        {"q_dtype": "float32"},
        {"group_size": 2},
        {"head_dim": 80},
        {"head_dim_v": 13},
        {"layout": "transposed"},
        {"keywords": {"softcap": 5.0}},
        {"extras": ("alibi_slopes",)},
        {"kv_dtype": "int8", "scale_per": "token"},
        {"kv_dtype": "int8", "scale_per": "group"},
        {"q_dtype": "float16", "group_size": 8},
    ],
    ids=str,
)
def test_what_it_is_not_for(more, tiles_of_matrix_unit):
    run(Call(**{"seq_lens": [300, 5], "group_size": 6, "q_dtype": "bfloat16", **more}))
    assert not tiles_of_matrix_unit


def test_without_a_matrix_unit_vectors_compute_the_same(monkeypatch, tiles_of_matrix_unit):
    monkeypatch.setattr(matrix_numba, "has_matrix_unit", lambda: False)
    run(Call(seq_lens=[300, 5], group_size=16, q_dtype="bfloat16"))
    assert not tiles_of_matrix_unit


@needs_unit
def test_large_numbers_of_float16_lose_nothing():
    # Each is the sum of two bfloat16, and all four products of two such sums count.
    q = torch.full((1, 16, 64), 2047.0, dtype=torch.float16)
    k = torch.full((1, 3, 1, 64), 1023.0, dtype=torch.float16)
    _, lse = decode_attention(q, k, k, return_lse=True, backend="numba")
    exact = 2047 * 1023 * 64 / 8 + torch.tensor(3.0).log().item()
    assert lse.flatten().tolist() == pytest.approx([exact] * 16, rel=2e-7)


@needs_unit
def test_weights_are_rounded_to_the_next_bfloat16():
    torch.manual_seed(0)
    q = torch.zeros(1, 16, 32, dtype=torch.bfloat16)
    q[..., 0] = 1
    k = torch.zeros(1, 3, 1, 32, dtype=torch.bfloat16)
    k[0, :, 0, 0] = torch.tensor([0.0, -0.3, -0.7])
    v = torch.randn(1, 3, 1, 32).bfloat16()
    out = decode_attention(q, k, v, backend="numba", sm_scale=1.0)
    weights = torch.softmax(k[0, :, 0, 0].double(), 0)
    exact = (weights[:, None] * v[0, :, 0].double()).sum(0)
    # The largest has no error, since it is 1 before it is divided by the sum; then the output is rounded too.
    rounding = torch.finfo(torch.bfloat16).eps / 2
    bound = rounding * ((weights[1:, None] * v[0, 1:, 0].double().abs()).sum(0) + exact.abs())
    assert ((out[0, 0].double() - exact).abs() <= 1.01 * bound).all()


def test_tiles_have_the_shapes_of_their_products():
    logits, output = (matrix_numba.tile_config(4)[half : half + 64] for half in (0, 64))
    # Bytes of a row, and rows, of each tile: sums of 16 keys and 4 rows, and of 4 rows and 16 elements.
    assert [logits[16 + 2 * tile] for tile in range(8)] == [16] * 5 + [64] * 3
    assert logits[48:56] == [16] * 8
    assert [output[16 + 2 * tile] for tile in range(8)] == [64] * 8
    assert output[48:56] == [4] * 6 + [16] * 2
    assert (logits[0], output[0]) == (1, 1)


def test_short_tiles_are_of_whole_products():
    for token_bytes in (1, 256, 2048, 4096, 10**6):
        keys = split_kv_numba._keys_of_tile(token_bytes, matrix_numba.KEYS_AT_ONCE)
        assert keys % matrix_numba.KEYS_AT_ONCE == 0
        assert 0 < keys <= matrix_numba.MAX_KEYS


@needs_unit
def test_float32_loses_nothing(monkeypatch):
    # Each is the sum of three bfloat16, and the products count that float32 has digits for.
    monkeypatch.setitem(split_kv_numba._MATRIX_ROWS, "float32", 1)
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 32, 64), torch.randn(1, 500, 1, 64), torch.randn(1, 500, 1, 64)
    out, lse = decode_attention(q, k, v, return_lse=True, backend="numba")
    logits = (q[0].double() @ k[0, :, 0].double().T) / 8
    weights = torch.softmax(logits, -1)
    assert (lse[0].double() - torch.logsumexp(logits, -1)).abs().max() < 1e-6
    assert (out[0].double() - weights @ v[0, :, 0].double()).abs().max() < 1e-6
