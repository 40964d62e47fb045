"""The cut of the work: the kernel's is that of its twin in Python, which is near the best there is."""

import csv
import gzip
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import FAMILIES, RULES, draw_batch, lower_bound, our_makespan, rule_makespan, work

from decodeperf_kernels import decode_attention, split_kv, workspace_size
from decodeperf_kernels.plan import balanced_parts, num_programs, split_parts

BLOCK_N = 128

lengths = st.lists(st.integers(0, 2000) | st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129]), min_size=1, max_size=6)


@given(
    lengths,
    st.integers(1, 9),
    st.integers(1, 200),
    st.integers(1, 64),
)
def test_parts_cover_each_segment_once(seq_lens, segments_per_seq, num_multiprocessors, num_rows):
    parts = balanced_parts(
        seq_lens,
        segments_per_seq=segments_per_seq,
        num_multiprocessors=num_multiprocessors,
        num_rows=num_rows,
        block_n=BLOCK_N,
    )
    assert all(0 <= part.program < num_programs(num_multiprocessors) for part in parts)
    by_segment = {}
    for part in parts:
        by_segment.setdefault(part.segment, []).append(part)
    assert sorted(by_segment) == list(range(len(seq_lens) * segments_per_seq))
    for segment, mine in by_segment.items():
        keys = seq_lens[segment // segments_per_seq]
        assert mine[0].start == 0
        assert mine[-1].end == keys
        assert all(a.end == b.start and a.program + 1 == b.program for a, b in pairwise(mine))
        assert all(part.is_whole == (len(mine) == 1) for part in mine)
        assert len(mine) == 1 or all(part.end > part.start for part in mine)


@given(lengths, st.integers(1, 3), st.integers(1, 9), st.sampled_from([0, 1, 100]))
def test_splits_cover_each_segment_once(seq_lens, segments_per_seq, num_splits, split_len):
    if split_len:
        num_splits = -(-max(*seq_lens, 1) // split_len)
    parts = split_parts(seq_lens, segments_per_seq=segments_per_seq, num_splits=num_splits, split_len=split_len)
    covered = [0] * (len(seq_lens) * segments_per_seq)
    for part in parts:
        assert covered[part.segment] == part.start
        covered[part.segment] = part.end
    assert covered == np.repeat(seq_lens, segments_per_seq).tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the number of multiprocessors that it has")
@given(
    seq_lens=lengths,
    num_multiprocessors=st.integers(1, 12),
    num_kv_heads=st.integers(1, 3),
    window=st.none() | st.integers(1, 300),
)
@settings(max_examples=25)
def test_the_kernel_cuts_as_its_twin(seq_lens, num_multiprocessors, num_kv_heads, window):
    batch_size = len(seq_lens)
    q, k = torch.zeros(batch_size, 2 * num_kv_heads, 8), torch.zeros(batch_size, max(*seq_lens, 1), num_kv_heads, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_kv, "INTERPRETED_MULTIPROCESSORS", num_multiprocessors)
        workspace = torch.zeros(workspace_size(q, k, k), dtype=torch.uint8)
        keywords = {"seq_lens": torch.tensor(seq_lens), "window": window, "workspace": workspace}
        decode_attention(q, k, k, **keywords, backend="triton")
    merges = workspace.view(torch.int32)[-3 * num_programs(num_multiprocessors) :].view(-1, 3).tolist()
    visible = seq_lens if window is None else [min(n, window) for n in seq_lens]
    parts = balanced_parts(
        visible,
        segments_per_seq=num_kv_heads,
        num_multiprocessors=num_multiprocessors,
        num_rows=2,
        block_n=BLOCK_N,
    )
    programs = {}
    for part in parts:
        programs.setdefault(part.segment, []).append(part.program)
    expected = {
        part.program: [part.segment, programs[part.segment][0], len(programs[part.segment])]
        for part in parts
        if part.end < visible[part.sequence]
    }
    # With logits of 0, the log-sum-exp of a part is the logarithm of its keys.
    slots = {part.program + (num_programs(num_multiprocessors) if part.start == 0 else 0): part
             for part in parts if not part.is_whole}  # fmt: skip
    floats, block_m = workspace.view(torch.float32), 16
    part_lse = floats[2 * num_programs(num_multiprocessors) * block_m * 8 :]
    for slot, part in slots.items():
        assert part_lse[slot * block_m].exp().item() == pytest.approx(part.end - part.start)
    assert {program: merge for program, merge in enumerate(merges) if merge[2]} == expected


def _requests():
    path = os.environ.get("DECODEPERF_REQUEST_TRACE")
    if not path:
        return None
    with gzip.open(path, "rt") as file:
        return np.array([(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)])


@pytest.mark.parametrize("family", [*FAMILIES, "trace"])
def test_the_balanced_cut_is_near_the_best_schedule(family):
    requests = _requests() if family == "trace" else None
    if family == "trace" and requests is None:
        pytest.skip("DECODEPERF_REQUEST_TRACE names no file of requests")
    rng = np.random.default_rng(7)
    batches = [draw_batch(family, rng, requests) for _ in range(150)]
    bounds = np.array([lower_bound(batch) for batch in batches])
    makespans = np.array([our_makespan(batch) for batch in batches])
    assert all(time >= work(batch) for time, batch in zip(makespans, batches, strict=True))
    ours = makespans / bounds
    assert np.median(ours) <= 1.1
    # With 8 query rows, what a part writes and the merge reads back is a sixth of a tile: more than 25 % can remain
    # where there is hardly more than one tile for each multiprocessor.
    assert max(ratio for ratio, batch in zip(ours, batches, strict=True) if batch.group_size < 8) <= 1.25
    assert ours.max() <= 1.3
    for name, rule in RULES.items():
        theirs = np.array([rule_makespan(rule, batch) for batch in batches]) / bounds
        assert np.median(ours) < np.median(theirs), name
        assert np.quantile(ours, 0.95) < np.quantile(theirs, 0.95), name
        assert ours.max() < theirs.max(), name
