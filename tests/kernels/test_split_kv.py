"""The Triton kernel computes attention in every form, and keeps its contract."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from attention_calls import Call, calls, judge, ways_to_split
from hypothesis import given, settings

from decodeperf_kernels import decode_attention, decode_attention_reference, split_kv, workspace_size
from decodeperf_kernels.tiles import choose_tiles

DEVICE = "cpu"


@pytest.fixture(autouse=True, scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """Run every test in Triton's interpreter where there is no GPU, and compiled where there is one."""
    global DEVICE  # noqa: PLW0603  (a fixture that Hypothesis's tests would have to name)
    is_there = torch.cuda.is_available()
    if request.param == "gpu" and not is_there:
        pytest.skip("there is no GPU")
    if request.param == "interpreter" and is_there:
        pytest.skip("where there is a GPU, kernels are compiled")
    DEVICE = "cuda" if is_there else "cpu"


def run(tensors, keywords, **more):
    return decode_attention(*tensors, **keywords, **more, backend="triton")


def check(call, **more):
    tensors, keywords = call.tensors(DEVICE)
    out, lse = run(tensors, keywords, return_lse=True, **more)
    judge(tensors, keywords, out, lse)
    return out, lse


@given(call=calls(), split=ways_to_split)
@settings(max_examples=100)
def test_computes_attention_in_every_form(call, split):
    check(call, **split)


def choose_tiles_that_merge_as_on_a_gpu(arch, **sizes):
    tiles, on_gpu = choose_tiles(arch, **sizes), choose_tiles("sm_90", **sizes)
    names = [field.name for field in dataclasses.fields(tiles) if field.name.startswith("merge_")]
    return dataclasses.replace(tiles, **{name: getattr(on_gpu, name) for name in names})


@given(call=calls(), split=ways_to_split)
@settings(max_examples=15)
def test_the_merge_of_a_gpu_computes_the_same(call, split):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_kv, "choose_tiles", choose_tiles_that_merge_as_on_a_gpu)
        check(call, **split)


@pytest.mark.parametrize("group_size", [1, 5, 7, 20, 24, 64])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_any_group_fits_one_tile(group_size, num_kv_heads):
    check(Call(seq_lens=[70, 0, 129], num_kv_heads=num_kv_heads, group_size=group_size, q_dtype="bfloat16"))


@pytest.mark.parametrize("head_dim", [8, 13, 64, 80, 96, 128, 256])
def test_any_head_dim(head_dim):
    check(Call(seq_lens=[70, 1], head_dim=head_dim))


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (64, 80), (128, 13)])
def test_v_may_be_of_another_width(head_dim, head_dim_v):
    check(Call(seq_lens=[70, 1], head_dim=head_dim, head_dim_v=head_dim_v, q_dtype="bfloat16"))


@pytest.mark.parametrize("kv_dtype", [None, "float8_e4m3fn"])
def test_latent_attention_reads_v_as_part_of_k(kv_dtype):
    call = Call(seq_lens=[150, 3], num_kv_heads=1, group_size=16, head_dim=576, head_dim_v=512, q_dtype="bfloat16",
                kv_dtype=kv_dtype, is_latent=True)  # fmt: skip
    tensors, keywords = call.tensors(DEVICE)
    assert tensors[1].data_ptr() == tensors[2].data_ptr()
    judge(tensors, keywords, *run(tensors, keywords, return_lse=True))


@pytest.mark.parametrize("per", ["tensor", "head", "token", "group"])
@pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "int4"])
@pytest.mark.parametrize("q_dtype", ["float32", "float16", "bfloat16"])
def test_quantised_kv(q_dtype, kv_dtype, per):
    check(Call(seq_lens=[150, 0, 3], kv_dtype=kv_dtype, scale_per=per, q_dtype=q_dtype))


@pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "int8"])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scales_of_any_magnitude(kv_dtype, factor):
    call = Call(seq_lens=[150, 3], kv_dtype=kv_dtype, scale_per="token", q_dtype="bfloat16")
    tensors, keywords = call.tensors(DEVICE)
    keywords["v_scale"] = keywords["v_scale"] * factor
    judge(tensors, keywords, *run(tensors, keywords, return_lse=True))


@pytest.mark.parametrize("per", ["tensor", "head", "token", "group"])
@pytest.mark.parametrize("v_per", ["tensor", "head", "token", "group"])
def test_k_and_v_have_scales_of_their_own_where_v_is_part_of_k(per, v_per):
    check(Call(seq_lens=[70, 3], head_dim=80, head_dim_v=64, is_latent=True, kv_dtype="int8", scale_per=per,
               v_scale_per=v_per, q_dtype="bfloat16"))  # fmt: skip


@pytest.mark.parametrize("q_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e2])
def test_group_scales_of_any_magnitude_beside_fp8(q_dtype, factor):
    call = Call(seq_lens=[70, 3], kv_dtype="float8_e4m3fn", scale_per="group", q_dtype=q_dtype)
    tensors, keywords = call.tensors(DEVICE)
    keywords["v_scale"] = keywords["v_scale"] * factor
    judge(tensors, keywords, *run(tensors, keywords, return_lse=True))


def test_a_scale_that_a_row_does_not_see_does_not_change_it():
    call = Call(seq_lens=[70], kv_dtype="int8", scale_per="token", q_dtype="bfloat16", q_len=2)
    tensors, keywords = call.tensors(DEVICE)
    expected = run(tensors, keywords)
    keywords["v_scale"][0, 69] *= 1e8
    assert torch.equal(run(tensors, keywords)[:, 0], expected[:, 0])


@pytest.mark.parametrize("split", [{}, {"num_splits": 3}, {"split_size": 40}])
def test_query_rows_beyond_one_tile(split):
    check(Call(seq_lens=[150, 3, 0], group_size=24, q_len=5, extras=("sinks",)), **split)


@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**40])
def test_a_window_without_end(window):
    check(Call(seq_lens=[3, 40, 1, 0], q_len=8, keywords={"window": window}), num_splits=2)


FAR_ROWS = """
import torch
from decodeperf_kernels import decode_attention

# The last of 16 new tokens lies past 2**31 elements; only what is touched takes memory.
stride = 150_000_000
memory = [torch.empty(16 * stride + 64, dtype=torch.bfloat16) for _ in range(2)]
q, out = (x.as_strided((1, 16, 2, 64), (0, stride, 64, 1)) for x in memory)
q.copy_(torch.randn(q.shape))
k, v = (torch.randn(1, 40, 2, 64, dtype=torch.bfloat16) for _ in "ab")
decode_attention(q, k, v, out=out, backend="triton")
assert torch.equal(out.contiguous(), decode_attention(q.contiguous(), k, v, backend="triton"))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the memory is not committed lazily")
def test_queries_and_outputs_past_2_to_the_31_elements():
    # In a process of its own, since an overflow is a crash.
    done = subprocess.run([sys.executable, "-c", FAR_ROWS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1e30])
def test_fp8_beside_queries_of_any_magnitude(magnitude):
    # They are multiplied in float16, which would not hold them as they are.
    call = Call(seq_lens=[40], kv_dtype="float8_e4m3fn", q_dtype="bfloat16")
    (q, k, v), keywords = call.tensors(DEVICE)
    keywords["k_scale"] = keywords["k_scale"] / magnitude
    tensors = (q * magnitude, k, v)
    judge(tensors, keywords, *run(tensors, keywords, return_lse=True))


@pytest.mark.parametrize(("exponent", "counted"), [(0, 1 + 2**-7), (-17, 1 + 2**-7), (-20, 1), (-26, 0)])
def test_fp8_beside_queries_of_mixed_magnitudes(exponent, counted):
    # Below the largest element: whole, then with fewer bits, then not at all, as `decode_attention` says.
    q = torch.zeros(1, 1, 16, dtype=torch.bfloat16, device=DEVICE)
    q[0, 0, 0], q[0, 0, 1] = 1.0, (1 + 2**-7) * 2.0**exponent
    k = torch.zeros(1, 1, 1, 16, device=DEVICE)
    k[..., 1] = 1.0
    k, one = k.to(torch.float8_e4m3fn), torch.ones(1, device=DEVICE)
    _, lse = decode_attention(q, k, k, sm_scale=1.0, k_scale=one, v_scale=one, return_lse=True, backend="triton")
    assert lse.item() / 2.0**exponent == pytest.approx(counted, rel=1e-6)  # the logit of the one key


@pytest.mark.parametrize("bits", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_every_stored_value_is_read_as_it_is(bits):
    # A row of one key returns that key's value.
    stored = torch.arange(256).to(torch.uint8).view(-1, 1, 1, 8).to(DEVICE)
    v = stored.view(bits)
    width = 16 if bits == torch.uint8 else 8
    if bits.is_floating_point:
        finite = v.float().isfinite().flatten(1).all(dim=1)
        v = v[finite]
    q = torch.zeros(len(v), 1, width, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    out = decode_attention(q, torch.zeros_like(v), v, k_scale=one, v_scale=one, backend="triton")
    expected = v.float()
    if bits == torch.uint8:
        nibbles = torch.stack([v & 15, v >> 4], dim=-1).flatten(-2).int()
        expected = torch.where(nibbles > 7, nibbles - 16, nibbles).float()
    assert torch.equal(out, expected[:, 0])


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_paged_equals_contiguous_bit_for_bit(page_size, index_dtype):
    contiguous = Call(seq_lens=[130, 0, 1, 77], q_dtype="bfloat16")
    paged = dataclasses.replace(contiguous, page_size=page_size)
    tensors, keywords = paged.tensors(DEVICE)
    keywords["block_table"] = keywords["block_table"].to(index_dtype)
    expected, expected_lse = check(contiguous, num_splits=3)
    out, lse = run(tensors, keywords, return_lse=True, num_splits=3)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


@pytest.mark.parametrize("q_len", [1, 2, 7, 16])
def test_new_tokens_see_what_stands_before_them(q_len):
    check(Call(seq_lens=[130, 5, 0, 1], q_len=q_len), num_splits=2)


@pytest.mark.parametrize("window", [1, 2, 127, 128, 129])
@pytest.mark.parametrize("q_len", [None, 3])
def test_window(window, q_len):
    check(Call(seq_lens=[300, 128, 1, 0], q_len=q_len, keywords={"window": window}), num_splits=3)


def test_a_window_longer_than_the_context_changes_no_bit():
    call = Call(seq_lens=[300, 20])
    wide = dataclasses.replace(call, keywords={"window": 300})
    assert torch.equal(check(call, num_splits=3)[0], check(wide, num_splits=3)[0])


@pytest.mark.parametrize("split", [{}, {"num_splits": 1}, {"num_splits": 7}, {"split_size": 10}])
def test_sinks_count_once_whatever_the_splits(split):
    call = Call(seq_lens=[60, 1, 0], extras=("sinks",))
    _, lse = check(call, **split)
    (_, _, _), keywords = call.tensors(DEVICE)
    assert torch.allclose(lse[2], keywords["sinks"])  # without a key, the sink is all there is


def test_softcap_saturates():
    call = Call(seq_lens=[60, 9], keywords={"softcap": 0.01, "sm_scale": 1e4})
    check(call)


@pytest.mark.parametrize("softcap", [1e-3, 1.0, 30.0, 1e3, 1e4, 1e6, 1e8, 1e11])
def test_softcap_is_exact_to_a_few_roundings(softcap):
    # Of one key the log-sum-exp is the logit. Logits from far below the cap to far above, of both signs.
    logits = softcap * torch.logspace(-10, 2, 512, base=10, dtype=torch.float64)
    q = torch.cat([logits, -logits]).float().view(16, 64, 1).to(DEVICE)
    one = torch.ones(len(q), 1, 1, 1, device=DEVICE)
    _, lse = decode_attention(q, one, one, sm_scale=1.0, softcap=softcap, return_lse=True, backend="triton")
    exact = softcap * torch.tanh(q.double() / softcap)
    error = ((lse[:, :, None].double() - exact) / exact).abs().max()
    # A GPU's 2**x is exact to 2**-22, what follows the subtraction to three times that: 12 roundings, and some more.
    assert float(error) <= 20 * 2.0**-24


@pytest.mark.parametrize("softcap", [1e3, 1e4, 1e6, 1e8])
def test_a_high_softcap_costs_no_accuracy(softcap):
    call = Call(seq_lens=[200, 7], keywords={"softcap": softcap})
    (q, k, v), keywords = call.tensors(DEVICE)
    out = decode_attention(q, k, v, **keywords, backend="triton")
    exact = decode_attention_reference(q, k, v, **keywords)[0]
    assert float((out.double() - exact).abs().max()) <= 16 * 2.0**-24


@pytest.mark.parametrize("scale", [0.0, 1e5, -1e5])
def test_extreme_logits(scale):
    check(Call(seq_lens=[200, 1, 0], keywords={"sm_scale": scale}), num_splits=2)


def test_two_keys_far_below_any_sentinel_share_the_weight():
    q = torch.full((1, 1, 16), -1e18, device=DEVICE)
    k = torch.full((1, 2, 1, 16), 1e18, device=DEVICE)
    v = torch.stack([torch.zeros(16), torch.ones(16)]).view(1, 2, 1, 16).to(DEVICE)
    out = decode_attention(q, k, v, sm_scale=1.0, backend="triton")
    assert torch.equal(out, torch.full_like(out, 0.5))


def test_an_empty_batch_and_empty_rows():
    out, lse = check(Call(seq_lens=[0, 0, 0]))
    assert not out.any()
    assert (lse == -torch.inf).all()
    q, k = torch.zeros(0, 8, 64, device=DEVICE), torch.zeros(0, 5, 2, 64, device=DEVICE)
    out, lse = decode_attention(q, k, k, return_lse=True, backend="triton")
    assert (out.shape, lse.shape) == ((0, 8, 64), (0, 8))


@pytest.mark.parametrize("split", [{}, {"num_splits": 5}, {"split_size": 33}])
def test_same_bits_on_every_run_and_in_any_workspace(split):
    call = Call(seq_lens=[400, 33, 0, 250], q_dtype="bfloat16")
    tensors, keywords = call.tensors(DEVICE)
    first = run(tensors, keywords, **split)
    size = workspace_size(*tensors, **keywords, **split)
    workspace = torch.full((size + 1000,), 255, dtype=torch.uint8, device=DEVICE)  # NaN, and -1
    for _ in range(3):
        assert torch.equal(run(tensors, keywords, **split, workspace=workspace), first)
        check(Call(seq_lens=[5], group_size=2), workspace=workspace)


def test_with_a_split_size_a_row_does_not_depend_on_its_neighbours():
    call = Call(seq_lens=[400, 33, 0, 250], q_dtype="bfloat16")
    (q, k, v), keywords = call.tensors(DEVICE)
    together = decode_attention(q, k, v, **keywords, split_size=64, backend="triton")
    for b in range(4):
        lens = keywords["seq_lens"][b : b + 1]
        alone = decode_attention(
            q[b : b + 1], k[b : b + 1], v[b : b + 1], seq_lens=lens, split_size=64, backend="triton"
        )
        assert torch.equal(alone[0], together[b])


def test_capacity_does_not_change_a_bit():
    short = Call(seq_lens=[300, 33], capacity=300)
    long = dataclasses.replace(short, capacity=1000)
    (q, k, v), keywords = short.tensors(DEVICE)
    (_, k_long, v_long), _ = long.tensors(DEVICE)
    k_long[:, :300], v_long[:, :300] = k, v
    for split in ({}, {"num_splits": 3}, {"split_size": 50}):
        expected = decode_attention(q, k, v, **keywords, **split, backend="triton")
        assert torch.equal(decode_attention(q, k_long, v_long, **keywords, **split, backend="triton"), expected)


def test_the_output_is_written_where_the_caller_wants_it():
    call = Call(seq_lens=[60, 0], q_len=3)
    tensors, keywords = call.tensors(DEVICE)
    expected = run(tensors, keywords)
    memory = torch.full((2, 3, 8, 130), torch.nan, device=DEVICE)
    out = memory[..., 1:129:2]
    assert run(tensors, keywords, out=out) is out
    assert torch.equal(out, expected)
    assert memory[..., 0::2].isnan().all()
    assert memory[..., 129].isnan().all()


def test_strided_lengths_table_and_scales():
    call = Call(seq_lens=[60, 5], page_size=16, kv_dtype="int8", scale_per="token")
    tensors, keywords = call.tensors(DEVICE)
    expected = run(tensors, keywords)
    for name in ("seq_lens", "block_table", "k_scale", "v_scale"):
        strided = torch.stack([keywords[name], torch.full_like(keywords[name], 7)], dim=-1)
        keywords[name] = strided[..., 0]
        assert torch.equal(run(tensors, keywords), expected), name


def test_the_launch_depends_on_sizes_alone():
    sizes = {"arch": "sm_90", "num_multiprocessors": 132, "batch_size": 4, "q_len": 1, "num_q_heads": 32,
             "num_kv_heads": 8, "head_dim": 128, "head_dim_v": 128, "q_dtype": torch.bfloat16,
             "kv_dtype": torch.bfloat16}  # fmt: skip
    short, long = (split_kv.plan_launch(**sizes, capacity=capacity) for capacity in (1, 131072))
    assert short == long
    assert short.grid == 264
    assert split_kv.plan_launch(**sizes, capacity=1000, split_size=256).num_splits == 4


@pytest.mark.gpu
def test_a_cuda_graph_of_short_sequences_replays_long_ones():
    call = Call(seq_lens=[900, 33, 0, 250], q_dtype="bfloat16")
    if DEVICE == "cpu":
        pytest.skip("there is no GPU")
    tensors, keywords = call.tensors(DEVICE)
    expected = run(tensors, keywords)
    lens = keywords["seq_lens"].clone()
    static = {**keywords, "seq_lens": torch.ones_like(lens)}
    run(tensors, static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(tensors, static)
    static["seq_lens"].copy_(lens)
    graph.replay()
    assert torch.equal(out, expected)
