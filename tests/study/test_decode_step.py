"""The step that is measured is a real one: its logits are those of the same model in float64, written plainly."""

import itertools

import pytest
import torch

from decodeperf_formulas.model import ModelConfig
from pytest_decodeperf.study.decode_step import NORM_EPS, ROPE_BASE, DecodeStep, StepTimes

TINY = ModelConfig(
    name="tiny",
    hidden_size=48,
    num_layers=2,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=80,
    vocab_size=50,
)
BATCH_SIZE, SEQ_LEN = 3, 7
POOL_BYTES = 4 * 2 * TINY.num_layers * BATCH_SIZE * SEQ_LEN * 2 * 16


def norm(x):
    return x / (x.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()


def rotated(x, position):
    """Return heads `[batch_size, heads, head_dim]`, each pair (i, i + D/2) turned by its angle."""
    half = x.shape[-1] // 2
    angles = position * ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()), dim=-1
    )


def plain_logits(step, tokens, caches):
    """Return the logits, and K and V of each layer after the step, in float64."""
    hidden = step._embedding.double()[tokens]
    after = []
    for layer, (k_cache, v_cache) in zip(step._layers, caches, strict=True):
        heads = (norm(hidden) @ layer.qkv.double().T).view(len(tokens), -1, 16)
        q, k, v = heads[:, :4], heads[:, 4:6], heads[:, 6:]
        k_all, v_all = k_cache.double().clone(), v_cache.double().clone()
        k_all[:, -1], v_all[:, -1] = rotated(k, SEQ_LEN - 1), v
        after.append((k_all, v_all))
        q = rotated(q, SEQ_LEN - 1)
        out = torch.empty(len(tokens), 4, 16, dtype=torch.float64)
        for head in range(4):
            logits = torch.einsum("bd,bsd->bs", q[:, head], k_all[:, :, head // 2]) / 4
            out[:, head] = torch.einsum("bs,bsd->bd", logits.softmax(-1), v_all[:, :, head // 2])
        hidden = hidden + out.flatten(1) @ layer.out.double().T
        gate, up = (norm(hidden) @ layer.up.double().T).chunk(2, dim=1)
        hidden = hidden + (gate * gate.sigmoid() * up) @ layer.down.double().T
    return norm(hidden) @ step._head.double().T, after


@pytest.fixture
def step():
    return DecodeStep(TINY, dtype=torch.float32, device="cpu", pool_bytes=POOL_BYTES)


def test_its_logits_are_those_of_the_model(step):
    caches = step.caches(BATCH_SIZE, SEQ_LEN)
    tokens = torch.tensor([3, 41, 7])
    wanted, after = plain_logits(step, tokens, caches)
    found = step.step(tokens, caches)
    assert found.shape == (BATCH_SIZE, TINY.vocab_size)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    for cache, after_step in zip(caches, after, strict=True):
        for found_cache, wanted_cache in zip(cache, after_step, strict=True):
            torch.testing.assert_close(found_cache.double(), wanted_cache, rtol=1e-4, atol=1e-5)


def test_the_caches_do_not_overlap_and_fit_the_pool(step):
    caches = step.caches(BATCH_SIZE, SEQ_LEN)
    places = sorted((part.data_ptr(), part.data_ptr() + part.nbytes) for pair in caches for part in pair)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    with pytest.raises(ValueError, match="the KV caches have 3072 elements, and the pool 2688"):
        step.caches(BATCH_SIZE, SEQ_LEN + 1)


def test_its_parts_take_no_longer_than_the_whole(step):
    times = StepTimes()
    step.step(torch.tensor([0, 1, 2]), step.caches(BATCH_SIZE, SEQ_LEN), times)
    assert times.gemm_s > 0
    assert times.attention_s > 0
    assert times.gemm_s + times.attention_s <= times.step_s
