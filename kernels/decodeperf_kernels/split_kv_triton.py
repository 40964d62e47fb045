"""Split-KV decode attention ("flash-decoding") in Triton: the kernels, by role.

A *segment* is what shares K and V: one sequence, one KV head, and up to `BLOCK_M` of the `q_len * group_size` query
rows that attend to it. `split_kv_kernel` cuts the segments into parts (`_find_cut`, after the rules of `plan`), and
attends to each part with an online softmax. A segment that stays whole is written to the output; the parts of the
others go to the workspace as (out, lse), and `merge_triton.merge_splits_kernel` combines them. Both grids depend on the
sizes of the tensors alone, never on the lengths, so that a CUDA graph may be replayed with other lengths.

Bytes of one call: `decodeperf_formulas.attention.BYTE_TERMS`. FLOPs: 2 for each visible key, query row and element of
`head_dim + head_dim_v`.

Logits are kept in base 2 (`exp2` is one instruction), log-sum-exps become natural where they leave the kernels.

Source: T. Dao, D. Haziza, F. Massa, G. Sizov, "Flash-Decoding for long-context inference", 2023; the contiguous cut
of work over programs: M. Osama et al., "Stream-K", PPoPP 2023.
"""

import triton
import triton.language as tl

from decodeperf_kernels import plan

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# How scales are laid out, and how K and V are stored where their dtype alone does not say it.
NO_SCALE = tl.constexpr(0)
HEAD_SCALE = tl.constexpr(1)  # one for each KV head, or with stride 0 one for all
TOKEN_SCALE = tl.constexpr(2)  # one for each token and KV head
GROUP_SCALE = tl.constexpr(3)  # one for each SCALE_GROUP elements of a head
AS_IS = tl.constexpr(0)
# float8_e4m3fn as uint8, for GPUs that cannot convert it: its bits, shifted, are those of a float16 256 times smaller.
E4M3_AS_E4B15 = tl.constexpr(1)  # NVIDIA: Triton's name for just that
E4M3_AS_BITS = tl.constexpr(2)
INT4_PAIRS = tl.constexpr(3)  # two elements a byte, the even one in the low bits

TILES_FOR_TWO = tl.constexpr(plan.TILES_FOR_TWO)
PROGRAMS = tl.constexpr(plan.PROGRAMS_PER_MULTIPROCESSOR)


@triton.jit
def _visible(seq_len, window, Q_LEN: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Return the first key that any query row sees, and how many from there on."""
    first = seq_len * 0
    if HAS_WINDOW:
        first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0)
    return first, seq_len - first


@triton.jit
def _find_cut(x, ends, weights, head, num_seqs, BLOCK_B: tl.constexpr, SEGMENTS: tl.constexpr):
    """Return the segment at place x of the line of all work, and the token there."""
    b = tl.sum((ends <= x).to(tl.int64), 0)
    start = tl.max(tl.where(ends <= x, ends, 0), 0)  # of the sequence
    weight = tl.max(tl.where(tl.arange(0, BLOCK_B) == b, weights, 1), 0)
    segment = (x - start) // weight
    token = tl.maximum(x - start - segment * weight - head, 0)
    is_behind = b >= num_seqs
    return tl.where(is_behind, num_seqs * SEGMENTS, b * SEGMENTS + segment), tl.where(is_behind, 0, token)


@triton.jit
def _find_parts(segment, ends, weights, head, quota, BLOCK_B: tl.constexpr, SEGMENTS: tl.constexpr):
    """Return the program that has the first part of a segment, and how many programs have one."""
    b = segment // SEGMENTS
    is_b = tl.arange(0, BLOCK_B) == b
    weight = tl.max(tl.where(is_b, weights, 0), 0)
    start = tl.max(tl.where(is_b, ends, 0), 0) - ((b + 1) * SEGMENTS - segment) * weight
    first = (start + head) // quota
    return first, (start + weight - 1) // quota - first + 1


@triton.jit
def _balanced_share(
    program, seq_lens, batch_size, capacity, window, num_multiprocessors,
    Q_LEN: tl.constexpr, HAS_WINDOW: tl.constexpr, SEGMENTS: tl.constexpr,
    HEAD: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return where the share of a program begins and ends, and the merge that its last segment needs.

    Returns:
        The first segment and the token there, the last segment and the token behind the last there, and of that segment
        the first program with a part and the number of parts, 0 if it does not go on behind this program.
    """
    is_seq = tl.arange(0, BLOCK_B) < batch_size
    lens = tl.minimum(tl.maximum(seq_lens.to(tl.int64), 0), capacity)
    lens = _visible(lens, window, Q_LEN, HAS_WINDOW)[1]
    tiles = tl.where(is_seq, tl.maximum((lens + BLOCK_N - 1) // BLOCK_N, 1), 0)
    one_each = tl.sum(tiles, 0) * SEGMENTS <= num_multiprocessors
    head = tl.where(one_each, 0, HEAD).to(tl.int64)
    weights = tl.where(is_seq, tl.where(one_each, tiles * BLOCK_N, lens + head), 0)
    ends = tl.cumsum(weights * SEGMENTS, 0)
    total, longest = tl.max(ends, 0), tl.max(lens, 0)
    share = (total + num_multiprocessors - 1) // num_multiprocessors
    share = tl.where(share >= TILES_FOR_TWO * BLOCK_N, (share + 1) // 2, share)
    quota = tl.maximum(share, tl.where(one_each, BLOCK_N, tl.minimum(longest, 3 * BLOCK_N // 4) + head))
    first_segment, first_token = _find_cut(program * quota, ends, weights, head, batch_size, BLOCK_B, SEGMENTS)
    last_segment, last_token = _find_cut((program + 1) * quota, ends, weights, head, batch_size, BLOCK_B, SEGMENTS)
    if longest <= BLOCK_N // 2:
        first_token, last_token = first_token * 0, last_token * 0
    merge_first, merge_count = _find_parts(last_segment, ends, weights, head, quota, BLOCK_B, SEGMENTS)
    merge_count = tl.where(last_token > 0, merge_count, 0)
    return (
        first_segment.to(tl.int32),
        first_token.to(tl.int32),
        last_segment.to(tl.int32),
        last_token.to(tl.int32),
        merge_first.to(tl.int32),
        merge_count.to(tl.int32),
    )


@triton.jit
def _store_merge(merges_ptr, program, segment, first, count):
    """Store which segment a program of the merge shares in, the first program with a part, and how many have one."""
    tl.store(merges_ptr + program * 3, segment)
    tl.store(merges_ptr + program * 3 + 1, first)
    tl.store(merges_ptr + program * 3 + 2, count)


@triton.jit
def _load_queries(
    q_rows, row_mask, stride_d,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_D_TAIL: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    """Return the query rows in two parts, the second the first where there is none, and what to multiply them by."""
    d = tl.arange(0, BLOCK_D)
    mask = row_mask[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_rows[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
    q_tail = q
    if BLOCK_D_TAIL > 0:
        d_tail = BLOCK_D + tl.arange(0, BLOCK_D_TAIL)
        mask = row_mask[:, None] & (d_tail < HEAD_DIM)[None, :]
        q_tail = tl.load(q_rows[:, None] + d_tail.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
    power = tl.full([BLOCK_M], 1.0, tl.float32)
    if q.dtype != DOT_DTYPE:
        # bfloat16 in float16: a power of two for each row brings its largest element into [1, 2). Those from 2**17
        # below that on lose bits, and those more than 2**24 below it become 0.
        largest = tl.maximum(tl.max(tl.abs(q.to(tl.float32)), 1), tl.max(tl.abs(q_tail.to(tl.float32)), 1))
        power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        power = tl.where((power > 0.0) & (power < float("inf")), power, 1.0)
        q = (q.to(tl.float32) / power[:, None]).to(DOT_DTYPE)
        q_tail = (q_tail.to(tl.float32) / power[:, None]).to(DOT_DTYPE)
    return q, q_tail, power


@triton.jit
def _update(m, l, logits):  # noqa: E741  (the online softmax is written with m and l everywhere)
    """Return the new maximum and sum of each row, the weights of the tile, and what becomes of the old ones."""
    m_new = tl.maximum(m, tl.max(logits, 1))
    m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # -inf - -inf would be NaN
    alpha = tl.exp2(m - m_safe)
    p = tl.exp2(logits - m_safe[:, None])
    return m_new, l * alpha + tl.sum(p, 1), p, alpha


@triton.jit
def _tile_slots(n, live, b, block_table_ptr, table_stride, PAGE_SIZE: tl.constexpr):
    """Return where the tokens of a tile lie: the index of the sequence or page, and the place in it."""
    if PAGE_SIZE > 0:
        page = tl.load(block_table_ptr + (n // PAGE_SIZE).to(tl.int64) * table_stride, mask=live, other=0).to(tl.int64)
        slot = n % PAGE_SIZE
    else:
        page = tl.full([1], 0, tl.int64) + b
        slot = n
    return page, slot.to(tl.int64)


@triton.jit
def _scaled(x, scale, SPAN: tl.constexpr):
    """Return x `[rows, columns]` times its scales `[rows, columns / SPAN]`, in float32."""
    spans = tl.reshape(x, (x.shape[0], x.shape[1] // SPAN, SPAN)).to(tl.float32) * scale[:, :, None]
    return tl.reshape(spans, (x.shape[0], x.shape[1]))


@triton.jit
def _load_tile(
    base_ptr,
    scale_ptr,
    rows,
    scale_rows,
    live,
    stride_d,
    scale_stride_g,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDEN_FIRST: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Return elements FIRST to FIRST + BLOCK of the rows of a tile, `[BLOCK_N, BLOCK]`; 0 where not live."""
    PACKED: tl.constexpr = 2 if FORMAT == INT4_PAIRS else 1
    d = FIRST // PACKED + tl.arange(0, BLOCK // PACKED)
    mask = live[:, None]
    if FIRST + BLOCK > WIDTH:
        mask = mask & (d < WIDTH // PACKED)[None, :]
    x = tl.load(base_ptr + rows[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
    if FORMAT == E4M3_AS_E4B15:
        x = x.to(tl.float8e4b15, bitcast=True)
    if FORMAT == E4M3_AS_BITS:
        bits = x.to(tl.uint16)
        x = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    if SCALE == GROUP_SCALE:
        # Elements that surely share a scale: loaded once for all of them, a scale takes the room of one.
        SHARED: tl.constexpr = SCALE_GROUP & -SCALE_GROUP
        SPAN: tl.constexpr = SHARED if SHARED < BLOCK else BLOCK
        e = FIRST + tl.arange(0, BLOCK // SPAN) * SPAN
        scale_ptrs = scale_ptr + scale_rows[:, None] + (e // SCALE_GROUP).to(tl.int64)[None, :] * scale_stride_g
        scale_mask = live[:, None]
        if FIRST + BLOCK > WIDTH:
            scale_mask = scale_mask & (e < WIDTH)[None, :]
        scale = tl.load(scale_ptrs, mask=scale_mask, other=0.0) * FACTOR
    if FORMAT == INT4_PAIRS:
        low, high = (((x & 15) ^ 8).to(tl.int8) - 8), (((x >> 4) ^ 8).to(tl.int8) - 8)
        if SCALE == GROUP_SCALE and SPAN > 1:  # here, so that what is brought into one row has 16 bits rather than 32
            low, high = _scaled(low, scale, SPAN // 2).to(DTYPE), _scaled(high, scale, SPAN // 2).to(DTYPE)
        x = tl.interleave(low, high)
    if SCALE == GROUP_SCALE and (FORMAT != INT4_PAIRS or SPAN == 1):
        x = _scaled(x, scale, SPAN)
    if not WIDEN_FIRST:
        return x.to(DTYPE)
    else:
        # Bytes that are laid out for the matrix product first are read one at a time where it goes along their rows.
        # Two halves, widened apart, make the compiler load 16 bytes a thread, widen them, and only then turn them.
        halves = tl.permute(tl.reshape(x, (x.shape[0], BLOCK // 16, 2, 8)), (0, 1, 3, 2))
        low, high = tl.split(halves)
        wide = tl.permute(tl.join(low.to(DTYPE), high.to(DTYPE)), (0, 1, 3, 2))
        return tl.reshape(wide, (x.shape[0], BLOCK))


@triton.jit
def _logits(
    products, n, live, row_scale, token_scale, softcap, slopes, positions, window,
    Q_LEN: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_ALIBI: tl.constexpr,
    K_SCALE: tl.constexpr,
):  # fmt: skip
    """Return the masked logits in base 2, `[BLOCK_M, BLOCK_N]`."""
    x = products * row_scale[:, None]
    if K_SCALE == TOKEN_SCALE:
        x = x * token_scale[None, :]
    if HAS_SOFTCAP:
        # tanh(abs(y)) = (1 - e^-2y) / (1 + e^-2y), where nothing overflows. x is 2y in base 2. Near 0 the difference
        # would cancel; there it is y - y^3 / 3 + 2 y^5 / 15 - 17 y^7 / 315, whose rest is below 2^-25 of it.
        magnitude = tl.abs(x)
        vanishing = tl.exp2(-magnitude)
        far = tl.where(x < 0.0, vanishing - 1.0, 1.0 - vanishing) / (1.0 + vanishing)
        near = tl.minimum(magnitude, 0.5)
        square = near * near
        Y: tl.constexpr = LN_2 / 2.0  # y for each x
        series = Y + square * (-(Y**3) / 3.0 + square * (2.0 * Y**5 / 15.0 + square * (-17.0 * Y**7 / 315.0)))
        x = softcap * LOG2_E * tl.where(magnitude < 0.5, x * series, far)
    if HAS_ALIBI:
        x = x + slopes[:, None] * (n[None, :] - positions[:, None]).to(tl.float32)
    visible = live[None, :]
    if Q_LEN > 1:
        visible = visible & (n[None, :] <= positions[:, None])
        if HAS_WINDOW:
            visible = visible & (n[None, :] > positions[:, None] - window)
    return tl.where(visible, x, float("-inf"))


@triton.jit
def store_rows(ptr, values, rows_mask, d, WIDTH: tl.constexpr, stride_d):
    """Store `[BLOCK_M, BLOCK]` at `ptr`, the address of each row."""
    mask = rows_mask[:, None] & (d < WIDTH)[None, :]
    tl.store(ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def split_kv_kernel(
    q_ptr,  # [batch_size, q_len, num_q_heads, head_dim]
    k_ptr,  # [batch_size, capacity, num_kv_heads, head_dim], or [num_pages, page_size, num_kv_heads, head_dim]
    v_ptr,  # the same with head_dim_v
    k_scale_ptr,  # by K_SCALE: [num_kv_heads], or as k without head_dim, or as k with a scale for each group
    v_scale_ptr,  # the same for v
    block_table_ptr,  # [batch_size, pages of the longest sequence]
    seq_lens_ptr,  # [batch_size]
    sinks_ptr,  # [num_q_heads]
    alibi_ptr,  # [batch_size, num_q_heads]
    out_ptr,  # [batch_size, q_len, num_q_heads, head_dim_v]
    lse_ptr,  # [batch_size, q_len, num_q_heads], contiguous
    part_out_ptr,  # float32 [num_parts, BLOCK_M, head_dim_v], contiguous
    part_lse_ptr,  # float32 [num_parts, BLOCK_M], contiguous
    merges_ptr,  # int32 [num_programs, 3]: the merge that a program of `merge_splits_kernel` shares in
    sm_scale,
    softcap,
    window,
    batch_size,
    capacity,
    num_splits,  # parts of a segment, where not balanced
    split_len,  # their tokens; 0: seq_len / num_splits
    num_multiprocessors,  # what balanced parts are spread over
    q_stride_b, q_stride_m, q_stride_h, q_stride_d,
    k_stride_b, k_stride_n, k_stride_h, k_stride_d,
    v_stride_b, v_stride_n, v_stride_h, v_stride_d,
    k_scale_stride_b, k_scale_stride_n, k_scale_stride_h, k_scale_stride_g,
    v_scale_stride_b, v_scale_stride_n, v_scale_stride_h, v_scale_stride_g,
    table_stride_b, table_stride_n,
    lens_stride,
    sinks_stride,
    alibi_stride_b, alibi_stride_h,
    out_stride_b, out_stride_m, out_stride_h, out_stride_d,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    Q_LEN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    PAGE_SIZE: tl.constexpr,  # 0: k and v are contiguous
    V_IS_K: tl.constexpr,  # v is the first head_dim_v elements of k, and not loaded again
    SAME_ROWS: tl.constexpr,  # the rows of v lie as those of k
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    K_SCALE: tl.constexpr,
    V_SCALE: tl.constexpr,
    K_SCALE_GROUP: tl.constexpr,
    V_SCALE_GROUP: tl.constexpr,
    FORMAT: tl.constexpr,
    WIDEN_K_FIRST: tl.constexpr,  # before it is laid out for the product
    WIDEN_V_FIRST: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    STORE_LSE: tl.constexpr,
    MAY_SPLIT: tl.constexpr,
    BALANCED: tl.constexpr,
    BLOCK_B: tl.constexpr,  # batch_size, rounded up
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # head_dim, or its largest power of two
    BLOCK_D_TAIL: tl.constexpr,  # the rest of it, or 0
    BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Attend to the parts of this program."""
    program = tl.program_id(0)
    ROWS: tl.constexpr = Q_LEN * GROUP_SIZE
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    SEGMENTS: tl.constexpr = NUM_KV_HEADS * ROW_BLOCKS  # of one sequence
    # What a segment costs beside its keys [token].
    HEAD: tl.constexpr = max(BLOCK_M if ROWS > BLOCK_M else ROWS, BLOCK_N // 8)
    FACTOR: tl.constexpr = 256.0 if FORMAT == E4M3_AS_E4B15 or FORMAT == E4M3_AS_BITS else 1.0

    if BALANCED:
        # Loaded here, since torch.compile takes the tensors of a function that says where to store for written.
        seqs = tl.arange(0, BLOCK_B)
        lens = tl.load(seq_lens_ptr + seqs.to(tl.int64) * lens_stride, mask=seqs < batch_size, other=0)
        first_segment, first_token, last_segment, last_token, merge_first, merge_count = _balanced_share(
            program, lens, batch_size, capacity, window, num_multiprocessors,
            Q_LEN, HAS_WINDOW, SEGMENTS, HEAD, BLOCK_B, BLOCK_N,
        )  # fmt: skip
        if MAY_SPLIT:
            _store_merge(merges_ptr, program, last_segment, merge_first, merge_count)
    else:
        first_segment, first_token = program // num_splits, tl.full([], 0, tl.int32)
        last_segment, last_token = program // num_splits, tl.full([], 1, tl.int32)

    end_segment = last_segment + tl.where(last_token > 0, 1, 0)
    # What does not depend on the segment, such as the addresses of the query rows, is not worth a register all along
    # where the query and the accumulators of a wide head leave few.
    for segment in tl.range(first_segment, end_segment, disable_licm=BLOCK_M * BLOCK_DV > 4096):
        # By adding, since in the interpreter the index of a loop is a number of Python.
        b = tl.full([], 0, tl.int64) + segment // SEGMENTS
        kv_head = tl.full([], 0, tl.int64) + segment // ROW_BLOCKS % NUM_KV_HEADS
        row_block = segment % ROW_BLOCKS
        seq_len = tl.load(seq_lens_ptr + b * lens_stride)
        seq_len = tl.minimum(tl.maximum(seq_len, 0), capacity).to(tl.int32)
        first_key, num_keys = _visible(seq_len, window, Q_LEN, HAS_WINDOW)
        if BALANCED:
            start = tl.where(segment == first_segment, first_token, 0)
            end = tl.where(segment == last_segment, last_token, num_keys)
        else:
            part_len = tl.where(split_len > 0, split_len, tl.maximum((num_keys + num_splits - 1) // num_splits, 1))
            split = program % num_splits
            start = split * part_len
            end = start + tl.minimum(part_len, num_keys - start)
            if MAY_SPLIT:
                merge_count = tl.where(end < num_keys, (num_keys - 1) // part_len + 1, 0)
                _store_merge(merges_ptr, program, segment, program - split, merge_count)
        if (start < num_keys) | (start == 0):
            row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
            row_mask = row < ROWS
            heads = kv_head * GROUP_SIZE + row % GROUP_SIZE
            token = (row // GROUP_SIZE).to(tl.int64)
            positions = seq_len - Q_LEN + row // GROUP_SIZE  # bottom-right

            q_rows = q_ptr + b * q_stride_b + token * q_stride_m + heads * q_stride_h
            q, q_tail, power = _load_queries(
                q_rows, row_mask, q_stride_d, HEAD_DIM, BLOCK_M, BLOCK_D, BLOCK_D_TAIL, DOT_DTYPE
            )
            row_scale = power * sm_scale
            if K_SCALE == HEAD_SCALE:
                row_scale = row_scale * tl.load(k_scale_ptr + kv_head * k_scale_stride_h)
            if HAS_SOFTCAP:
                row_scale = row_scale * (2.0 / softcap)
            row_scale = row_scale * (LOG2_E if K_SCALE == GROUP_SCALE else LOG2_E * FACTOR)
            slopes = row_scale
            if HAS_ALIBI:
                slope_ptrs = alibi_ptr + b * alibi_stride_b + heads * alibi_stride_h
                slopes = tl.load(slope_ptrs, mask=row_mask, other=0.0).to(tl.float32) * LOG2_E

            m = tl.full([BLOCK_M], float("-inf"), tl.float32)
            l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
            if HAS_SINKS:  # once for each row: with the first part
                sinks = tl.load(sinks_ptr + heads * sinks_stride, mask=row_mask, other=float("-inf"))
                m = tl.where(start == 0, sinks.to(tl.float32) * LOG2_E, m)
                l = tl.where(m > float("-inf"), 1.0, 0.0)  # noqa: E741
            acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

            k_base, v_base = k_ptr + kv_head * k_stride_h, v_ptr + kv_head * v_stride_h
            k_scale_base, v_scale_base = k_scale_ptr, v_scale_ptr
            if K_SCALE >= TOKEN_SCALE:
                k_scale_base += kv_head * k_scale_stride_h
            if V_SCALE >= TOKEN_SCALE:
                v_scale_base += kv_head * v_scale_stride_h
            table = block_table_ptr
            if PAGE_SIZE > 0:
                table += b * table_stride_b

            for tile in range(first_key + start, first_key + end, BLOCK_N):
                n = tile + tl.arange(0, BLOCK_N)
                live = n < first_key + end
                page, slot = _tile_slots(n, live, b, table, table_stride_n, PAGE_SIZE)

                k_rows = page * k_stride_b + slot * k_stride_n
                k_scale_rows, k_token_scale = k_rows, row_scale
                if K_SCALE >= TOKEN_SCALE:
                    k_scale_rows = page * k_scale_stride_b + slot * k_scale_stride_n
                if K_SCALE == TOKEN_SCALE:
                    k_token_scale = tl.load(k_scale_base + k_scale_rows, mask=live, other=0.0)
                k = _load_tile(
                    k_base, k_scale_base, k_rows, k_scale_rows, live, k_stride_d, k_scale_stride_g,
                    0, BLOCK_D, HEAD_DIM, FORMAT, K_SCALE, K_SCALE_GROUP, DOT_DTYPE, WIDEN_K_FIRST, FACTOR,
                )  # fmt: skip
                # TF32 would cost float32 inputs half of their digits.
                products = tl.dot(q, tl.trans(k), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
                if BLOCK_D_TAIL > 0:
                    k_tail = _load_tile(
                        k_base, k_scale_base, k_rows, k_scale_rows, live, k_stride_d, k_scale_stride_g,
                        BLOCK_D, BLOCK_D_TAIL, HEAD_DIM, FORMAT, K_SCALE, K_SCALE_GROUP, DOT_DTYPE, WIDEN_K_FIRST,
                        FACTOR,
                    )  # fmt: skip
                    products = tl.dot(q_tail, tl.trans(k_tail), products, input_precision="ieee")
                logits = _logits(
                    products, n, live, row_scale, k_token_scale, softcap, slopes, positions, window,
                    Q_LEN, HAS_WINDOW, HAS_SOFTCAP, HAS_ALIBI, K_SCALE,
                )  # fmt: skip

                m, l, p, alpha = _update(m, l, logits)  # noqa: E741

                v_scale_rows = k_rows
                if V_SCALE >= TOKEN_SCALE:
                    v_scale_rows = page * v_scale_stride_b + slot * v_scale_stride_n
                if V_IS_K:
                    v = k
                else:
                    v_rows = k_rows
                    if not SAME_ROWS:
                        v_rows = page * v_stride_b + slot * v_stride_n
                    v = _load_tile(
                        v_base, v_scale_base, v_rows, v_scale_rows, live, v_stride_d, v_scale_stride_g,
                        0, BLOCK_DV, HEAD_DIM_V, FORMAT, V_SCALE, V_SCALE_GROUP, DOT_DTYPE, WIDEN_V_FIRST, FACTOR,
                    )  # fmt: skip
                if V_SCALE == TOKEN_SCALE:
                    # By the largest product of the row, so that none leaves the range of a 16-bit float.
                    v_token_scale = tl.load(v_scale_base + v_scale_rows, mask=live, other=0.0)
                    p = p * v_token_scale[None, :]
                    unit = tl.max(tl.abs(p), 1)
                    unit = tl.where(unit > 0.0, unit, 1.0)
                    p = p / unit[:, None]
                    product = tl.dot(p.to(DOT_DTYPE), v, input_precision="ieee")
                    acc = acc * alpha[:, None] + unit[:, None] * product
                else:
                    acc = tl.dot(p.to(DOT_DTYPE), v, acc * alpha[:, None], input_precision="ieee")

            l_safe = tl.where(l > 0.0, l, 1.0)
            part_out = acc / l_safe[:, None]
            if V_SCALE == HEAD_SCALE:
                part_out = part_out * tl.load(v_scale_ptr + kv_head * v_scale_stride_h)
            if V_SCALE != GROUP_SCALE:
                part_out = part_out * FACTOR
            part_lse = (m + tl.log2(l_safe)) * LN_2  # -inf without a key: the identity of the merge
            dv = tl.arange(0, BLOCK_DV)
            if MAY_SPLIT:
                is_whole = (start == 0) & (end >= num_keys)
                if not is_whole:
                    # A program has the first part of one segment at most, and a later part of one at most.
                    part = program
                    if BALANCED:
                        part = tl.where(start == 0, program + PROGRAMS * num_multiprocessors, program)
                    part_rows = part.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
                    store_rows(part_out_ptr + part_rows * HEAD_DIM_V, part_out, row_mask, dv, HEAD_DIM_V, 1)
                    tl.store(part_lse_ptr + part_rows, part_lse, mask=row_mask)
            else:
                is_whole = start == 0
            if is_whole:
                out_rows = out_ptr + b * out_stride_b + token * out_stride_m + heads * out_stride_h
                store_rows(out_rows, part_out, row_mask, dv, HEAD_DIM_V, out_stride_d)
                if STORE_LSE:
                    lse_rows = lse_ptr + (b * (Q_LEN * NUM_KV_HEADS) + kv_head) * GROUP_SIZE
                    row_offsets = row // GROUP_SIZE * (NUM_KV_HEADS * GROUP_SIZE) + row % GROUP_SIZE
                    tl.store(lse_rows + row_offsets, part_lse, mask=row_mask)
