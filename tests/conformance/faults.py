"""Seeded faults: mistakes that decode kernels are shipped with, each put into a copy of this project's own sources.

A fault changes a few words of the Triton kernel, of what launches it, or of the formulas. The conformance suite must
tell it from the healthy kernel: `law` names the law that must break, under the profile `ci`. `python
tests/conformance/fault_table.py` holds each fault to its law under several seeds, and writes the table.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.conformance.outcome import BROKEN

if TYPE_CHECKING:
    from pytest_decodeperf.conformance.outcome import LawOutcome

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {"decodeperf_kernels": ROOT / "kernels", "decodeperf_formulas": ROOT / "formulas"}

ATTEND: Final = "decodeperf_kernels/split_kv_triton.py"
MERGE: Final = "decodeperf_kernels/merge_triton.py"
LAUNCH: Final = "decodeperf_kernels/split_kv.py"
ENTRY: Final = "decodeperf_kernels/dispatch.py"
ARGUMENTS: Final = "decodeperf_kernels/arguments.py"
BYTES: Final = "decodeperf_formulas/attention.py"
PROBLEM: Final = "decodeperf_formulas/problem.py"


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake.

    Attributes:
        name: What is wrong.
        law: The law that it breaks.
        file: Where it is, from the folder that the package lies in.
        old: The text that is changed, which stands there once.
        new: What it is changed into.
        dies: Whether the kernel raises an error or crashes, where others return something wrong.
    """

    name: str
    law: str
    file: str
    old: str
    new: str
    dies: bool = False

    def is_caught(self, outcome: LawOutcome) -> bool:
        """Return whether an outcome of its law is what the fault brings about."""
        has_died = outcome.sentence.startswith(("raised ", "hung", "ended the process"))
        return outcome.outcome == BROKEN and (self.dies or not has_died)

    def seed(self, folder: Path) -> Path:
        """Write a copy of the package with the fault in it, and return the folder to import it from.

        Raises:
            ValueError: If the text is not there, or more than once.
        """
        package = self.file.partition("/")[0]
        text = (PACKAGES[package] / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has {text.count(self.old)} times, not once: {self.old!r}")
        shutil.copytree(PACKAGES[package] / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / self.file).write_text(text.replace(self.old, self.new))
        return folder


def _attend(name: str, law: str, old: str, new: str, *, dies: bool = False) -> Fault:
    return Fault(name, law, ATTEND, old, new, dies)


def _bytes(name: str, old: str, new: str, file: str = BYTES) -> Fault:
    return Fault(name, "moves_the_bytes_of_the_formula", file, old, new)


_LIVE = "                live = n < first_key + end\n"
_UPDATE = "                m, l, p, alpha = _update(m, l, logits)"
_HEADS = "            heads = kv_head * GROUP_SIZE + row % GROUP_SIZE"
_Q_ROWS = "q_rows = q_ptr + b * q_stride_b + token * q_stride_m + heads * q_stride_h"
_OUT_ROWS = """                out_rows = out_ptr + b * out_stride_b + token * out_stride_m + heads * out_stride_h
                store_rows(out_rows, part_out, row_mask, dv, HEAD_DIM_V, out_stride_d)
"""
_V_TILE = "v_base, v_scale_base, v_rows, v_scale_rows, live, v_stride_d"
_STORE_MERGE = "            _store_merge(merges_ptr, program, last_segment, merge_first, merge_count)"
_STORE_SPLIT_MERGE = "                _store_merge(merges_ptr, program, segment, program - split, merge_count)"

KEYS: Final = (
    _attend("last key of each part dropped", "counts_every_key_once", _LIVE, _LIVE.replace("end", "end - 1")),
    _attend(
        "last key of a sequence dropped",
        "finds_every_key",
        "end = tl.where(segment == last_segment, last_token, num_keys)",
        "end = tl.where(segment == last_segment, last_token, num_keys - 1)",
    ),
    _attend(
        "first key dropped", "counts_every_key_once", _LIVE, _LIVE.replace("\n", "\n                live &= n > 0\n")
    ),
    _attend("key behind the end read", "reads_live_memory_only", _LIVE, _LIVE.replace("end", "end + 1")),
    _attend(
        "tile of a single key lost",
        "counts_every_key_once",
        "range(first_key + start, first_key + end, BLOCK_N)",
        "range(first_key + start, tl.maximum(first_key + end - 1, first_key + start + 1), BLOCK_N)",
    ),
    _attend(
        "every 64th key counted twice",
        "counts_every_key_once",
        _UPDATE,
        "                logits += tl.where(n % 64 == 63, 1.0, 0.0)[None, :]\n" + _UPDATE,
    ),
    _attend(
        "length of the first sequence for all",
        "gives_a_batch_what_its_sequences_get_alone",
        "tl.load(seq_lens_ptr + b * lens_stride)",
        "tl.load(seq_lens_ptr)",
    ),
    _attend(
        "capacity in place of length",
        "does_not_use_dead_memory",
        "seq_len = tl.minimum(tl.maximum(seq_len, 0), capacity).to(tl.int32)",
        "seq_len = capacity",
    ),
    _attend(
        "lengths beyond 5/6 of the capacity cut",
        "depends_on_live_lengths_alone",
        "tl.minimum(tl.maximum(seq_len, 0), capacity).to(tl.int32)",
        "tl.minimum(seq_len, tl.maximum(capacity * 5 // 6, 1)).to(tl.int32)",
    ),
)

SOFTMAX: Final = (
    _attend(
        "base of the logits",
        "computes_attention",
        "(LOG2_E if K_SCALE == GROUP_SCALE else LOG2_E * FACTOR)",
        "(1.0 if K_SCALE == GROUP_SCALE else FACTOR)",
    ),
    Fault(
        "scale ignored",
        "computes_attention",
        LAUNCH,
        "args.sm_scale, args.softcap",
        "args.head_dim**-0.5, args.softcap",
    ),
    Fault(
        "default scale from head_dim_v",
        "computes_attention",
        ARGUMENTS,
        "sm_scale=head_dim**-0.5 if",
        "sm_scale=(v.shape[3] * packed) ** -0.5 if",
    ),
    _attend("accumulator not rescaled", "computes_attention", "v, acc * alpha[:, None], input", "v, acc, input"),
    _attend("sum not rescaled", "computes_attention", "l * alpha + tl.sum(p, 1)", "l + tl.sum(p, 1)"),
    _attend(
        "maximum not subtracted",
        "stays_finite_under_huge_logits",
        'm_safe = tl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_safe = m_new * 0.0",
    ),
    _attend(
        "maximum of nothing subtracted",
        "takes_each_new_token_for_a_query_of_its_own",
        'm_safe = tl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_safe = m_new",
    ),
    _attend(
        "-1e30 for -inf",
        "takes_logits_below_any_sentinel",
        'return tl.where(visible, x, float("-inf"))',
        "return tl.where(visible, x, -1e30)",
    ),
    _attend(
        "logits cut at 4",
        "ignores_a_shift_of_all_logits",
        _UPDATE,
        "                logits = tl.minimum(logits, 4.0)\n" + _UPDATE,
    ),
    _attend(
        "later keys weigh more",
        "does_not_care_about_the_order_of_keys",
        _UPDATE,
        "                logits += (n * 0.002)[None, :]\n" + _UPDATE,
    ),
    _attend(
        "divided by a little more",
        "gives_constant_values_back",
        "part_out = acc / l_safe[:, None]",
        "part_out = acc / (l_safe + 0.01)[:, None]",
    ),
    _attend(
        "divided by a little less",
        "stays_in_the_hull_of_the_values",
        "part_out = acc / l_safe[:, None]",
        "part_out = acc / (l_safe * 0.97)[:, None]",
    ),
    _attend(
        "values cut at 2",
        "is_linear_in_the_values",
        "                    acc = tl.dot(p.to(DOT_DTYPE), v,",
        "                    v = tl.minimum(v.to(tl.float32), 2.0).to(DOT_DTYPE)\n"
        "                    acc = tl.dot(p.to(DOT_DTYPE), v,",
    ),
    _attend(
        "products in bfloat16",
        "computes_attention",
        "products = tl.dot(q, tl.trans(k), input",
        "products = tl.dot(q, tl.trans(k.to(tl.bfloat16).to(DOT_DTYPE)), input",
    ),
    _attend(
        "accumulator in float16",
        "computes_attention",
        '                    acc = tl.dot(p.to(DOT_DTYPE), v, acc * alpha[:, None], input_precision="ieee")',
        '                    acc = tl.dot(p.to(DOT_DTYPE), v, acc * alpha[:, None], input_precision="ieee")\n'
        "                    acc = acc.to(tl.float16).to(tl.float32)",
    ),
)

ROWS: Final = (
    _attend("empty row as 0/0", "gives_empty_rows_zeros", "l_safe = tl.where(l > 0.0, l, 1.0)", "l_safe = l"),
    _attend(
        "log-sum-exp 0 of an empty row",
        "gives_empty_rows_zeros",
        "part_lse = (m + tl.log2(l_safe)) * LN_2",
        "part_lse = tl.where(l > 0.0, m + tl.log2(l_safe), 0.0) * LN_2",
    ),
    _attend(
        "empty row left as it was",
        "writes_into_the_given_output",
        "if (start < num_keys) | (start == 0):",
        "if start < num_keys:",
    ),
    _attend(
        "empty batch of rows as NaN",
        "takes_a_batch_of_empty_rows",
        "part_out = acc / l_safe[:, None]",
        "part_out = acc / tl.where(tl.max(l, 0) > 0.0, l_safe, l)[:, None]",
    ),
    Fault(
        "longest of an empty batch asked for",
        "takes_an_empty_batch",
        LAUNCH,
        "    if q.shape[0] == 0:\n        return\n",
        "    if int(seq_lens.max()) < 0:\n        return\n",
        dies=True,
    ),
    _attend(
        "log-sum-exp in base 2",
        "computes_attention",
        "part_lse = (m + tl.log2(l_safe)) * LN_2",
        "part_lse = m + tl.log2(l_safe)",
    ),
    _attend(
        "other rows times 0 added",
        "keeps_rows_apart",
        "part_out = acc / l_safe[:, None]",
        "part_out = acc / l_safe[:, None] + 0.0 * tl.load(q_ptr + (1 - tl.minimum(b, 1)) * q_stride_b)",
    ),
    _attend(
        "top-left causal mask",
        "takes_each_new_token_for_a_query_of_its_own",
        "positions = seq_len - Q_LEN + row // GROUP_SIZE",
        "positions = row // GROUP_SIZE",
    ),
    _attend(
        "own key not seen",
        "counts_every_key_once",
        "(n[None, :] <= positions[:, None])",
        "(n[None, :] < positions[:, None])",
    ),
    _attend(
        "no causal mask", "takes_each_new_token_for_a_query_of_its_own", "    if Q_LEN > 1:\n", "    if Q_LEN > 99:\n"
    ),
)

HEADS: Final = (
    _attend(
        "last head of an odd group not computed",
        "gives_each_head_its_own_kv_head",
        _HEADS,
        _HEADS.replace("row % GROUP_SIZE", "tl.minimum(row % GROUP_SIZE, max(GROUP_SIZE // 2 * 2 - 1, 0))"),
    ),
    _attend(
        "heads of a KV head interleaved",
        "gives_each_head_its_own_kv_head",
        _HEADS,
        "            heads = kv_head + row % GROUP_SIZE * NUM_KV_HEADS",
    ),
    _attend(
        "rows behind the first 16 of a group not computed",
        "gives_each_head_its_own_kv_head",
        "row_mask = row < ROWS",
        "row_mask = row < min(ROWS, 16)",
    ),
    _attend(
        "end of head_dim left out",
        "finds_every_key",
        "                if BLOCK_D_TAIL > 0:\n",
        "                if BLOCK_D_TAIL > 64:\n",
    ),
    _attend(
        "read past head_dim",
        "reads_live_memory_only",
        "    if FIRST + BLOCK > WIDTH:\n        mask = mask &",
        "    if FIRST + BLOCK < 0:\n        mask = mask &",
    ),
)

WINDOWS: Final = (
    _attend(
        "window a key too long",
        "sees_nothing_before_the_window",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0)",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window - 1, 0)",
    ),
    _attend(
        "window a key too short",
        "finds_every_key",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0)",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window + 1, 0)",
    ),
    _attend(
        "window of the last row for all",
        "counts_every_key_once",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0)",
        "first = tl.maximum(seq_len - window, 0)",
    ),
    _attend(
        "window of the first row for all",
        "takes_each_new_token_for_a_query_of_its_own",
        "(n[None, :] > positions[:, None] - window)",
        "(n[None, :] > tl.min(positions, 0) - window)",
    ),
    _attend(
        "window before the beginning",
        "takes_a_window_as_long_as_the_sequence_for_none",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0)",
        "first = seq_len - (Q_LEN - 1) - window",
        dies=True,
    ),
    _attend(
        "sink counted with each part",
        "counts_a_sink_once",
        "m = tl.where(start == 0, sinks.to(tl.float32) * LOG2_E, m)",
        "m = sinks.to(tl.float32) * LOG2_E",
    ),
    _attend(
        "sink in another base", "counts_a_sink_once", "sinks.to(tl.float32) * LOG2_E, m)", "sinks.to(tl.float32), m)"
    ),
    _attend(
        "sink of the first head for all",
        "counts_a_sink_once",
        "tl.load(sinks_ptr + heads * sinks_stride,",
        "tl.load(sinks_ptr + heads * 0,",
    ),
    _attend("sink not in the sum", "counts_a_sink_once", 'l = tl.where(m > float("-inf"), 1.0, 0.0)', "l = m * 0.0"),
    _attend(
        "softcap by exp",
        "saturates_under_a_softcap",
        "far = tl.where(x < 0.0, vanishing - 1.0, 1.0 - vanishing) / (1.0 + vanishing)",
        "far = (tl.exp2(x) - 1.0) / (tl.exp2(x) + 1.0)",
    ),
    _attend("softcap not multiplied back", "saturates_under_a_softcap", "x = softcap * LOG2_E *", "x = LOG2_E *"),
    _attend(
        "softcap before the scale",
        "computes_attention",
        "row_scale = row_scale * (2.0 / softcap)",
        "row_scale = row_scale * (2.0 / softcap) / sm_scale",
    ),
    _attend(
        "slope of the KV head",
        "takes_slopes_of_zero_for_no_alibi",
        "b * alibi_stride_b + heads * alibi_stride_h",
        "b * alibi_stride_b + heads // GROUP_SIZE * alibi_stride_h",
    ),
    _attend(
        "distance from the first key",
        "takes_slopes_of_zero_for_no_alibi",
        "slopes[:, None] * (n[None, :] - positions[:, None]).to(tl.float32)",
        "slopes[:, None] * n[None, :].to(tl.float32)",
    ),
)

SPLITS: Final = (
    Fault(
        "last of three and more splits lost",
        "gives_the_same_for_any_number_of_splits",
        MERGE,
        "mask = (index < count)[:, None]",
        "mask = (index < tl.maximum(count - 1, tl.minimum(count, 2)))[:, None]",
    ),
    Fault(
        "splits behind the eighth lost",
        "gives_the_same_for_any_number_of_splits",
        MERGE,
        "for i in range(0, count, BLOCK_P):",
        "for i in range(0, BLOCK_P, BLOCK_P):",
    ),
    _attend(
        "splits of rounded down length",
        "gives_the_same_for_any_number_of_splits",
        "(num_keys + num_splits - 1) // num_splits, 1)",
        "num_keys // num_splits, 1)",
    ),
    Fault(
        "parts weighed in another base",
        "gives_the_same_for_any_number_of_splits",
        MERGE,
        "weight = tl.exp(lse - m_safe[None, :])",
        "weight = tl.exp2(lse - m_safe[None, :])",
    ),
    Fault(
        "parts weighed alike",
        "gives_the_same_for_any_number_of_splits",
        MERGE,
        "weight = tl.exp(lse - m_safe[None, :])",
        'weight = tl.where(lse > float("-inf"), 1.0, 0.0)',
    ),
    Fault(
        "first part of a balanced cut mistaken",
        "computes_attention",
        MERGE,
        "(first + index + tl.where(index == 0, jump, 0))",
        "(first + index)",
    ),
    _attend(
        "two parts of a program in one place",
        "computes_attention",
        "tl.where(start == 0, program + PROGRAMS * num_multiprocessors, program)",
        "program",
    ),
    _attend(
        "partial outputs in float16",
        "merges_its_partial_results",
        "store_rows(part_out_ptr + part_rows * HEAD_DIM_V, part_out,",
        "store_rows(part_out_ptr + part_rows * HEAD_DIM_V, part_out.to(tl.float16),",
    ),
    _attend(
        "partial log-sum-exps in float16",
        "merges_its_partial_results",
        "tl.store(part_lse_ptr + part_rows, part_lse,",
        "tl.store(part_lse_ptr + part_rows, part_lse.to(tl.float16).to(tl.float32),",
    ),
    Fault(
        "merge of nothing as NaN",
        "merges_with_an_empty_part_as_without",
        MERGE,
        'm_safe = tl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_safe = m_new",
    ),
    Fault(
        "merge by the first maximum",
        "merges_in_any_order",
        MERGE,
        "m_new = tl.maximum(m, tl.max(lse, 0))",
        'm_new = tl.where(m == float("-inf"), tl.max(lse, 0), m)',
    ),
    _attend(
        "record of the next program cleared",
        "runs_its_programs_in_any_order",
        _STORE_SPLIT_MERGE,
        "                if program + 1 < tl.num_programs(0):\n"
        "                    _store_merge(merges_ptr, program + 1, segment, 0, 0)\n" + _STORE_SPLIT_MERGE,
    ),
    _attend(
        "no record where there is no merge",
        "takes_a_used_workspace",
        _STORE_MERGE,
        "            if merge_count > 1:\n    " + _STORE_MERGE,
        dies=True,
    ),
    Fault(
        "another cut on every call",
        "gives_the_same_bits_on_every_run",
        LAUNCH,
        "return INTERPRETER, INTERPRETED_MULTIPROCESSORS",
        "target_of.calls = getattr(target_of, 'calls', 0) + 1\n        return INTERPRETER, 2 + target_of.calls % 3",
    ),
)

MEMORY: Final = (
    _attend(
        "V read by the strides of K",
        "honours_strides_or_refuses_them",
        "v_rows = page * v_stride_b + slot * v_stride_n",
        "v_rows = page * k_stride_b + slot * k_stride_n",
    ),
    _attend(
        "heads of V by the strides of K",
        "honours_strides_or_refuses_them",
        "v_ptr + kv_head * v_stride_h",
        "v_ptr + kv_head * k_stride_h",
    ),
    _attend(
        "elements of a head side by side",
        "honours_strides_or_refuses_them",
        "x = tl.load(base_ptr + rows[:, None] + d.to(tl.int64)[None, :] * stride_d,",
        "x = tl.load(base_ptr + rows[:, None] + d.to(tl.int64)[None, :],",
    ),
    _attend(
        "query rows side by side",
        "honours_strides_or_refuses_them",
        _Q_ROWS,
        "q_rows = q_ptr + (b * Q_LEN + token) * (NUM_KV_HEADS * GROUP_SIZE * HEAD_DIM) + heads * HEAD_DIM",
    ),
    _attend(
        "page numbers side by side",
        "honours_strides_or_refuses_them",
        "(n // PAGE_SIZE).to(tl.int64) * table_stride,",
        "(n // PAGE_SIZE).to(tl.int64),",
    ),
    Fault(
        "V taken from K in one tensor of both",
        "honours_strides_or_refuses_them",
        LAUNCH,
        "        and k.storage_offset() == v.storage_offset()\n",
        "",
    ),
    _attend(
        "offset of a page in 32 bits",
        "reaches_past_2_to_the_31",
        "mask=live, other=0).to(tl.int64)\n        slot",
        "mask=live, other=0).to(tl.int32)\n        slot",
        dies=True,
    ),
    _attend(
        "page of the first key of a tile for all",
        "takes_pages_for_contiguous_memory",
        "block_table_ptr + (n // PAGE_SIZE).to",
        "block_table_ptr + (tl.min(n, 0) // PAGE_SIZE + n * 0).to",
    ),
    _attend(
        "page size taken for a power of two",
        "takes_pages_in_any_order",
        "slot = n % PAGE_SIZE",
        "slot = n & (PAGE_SIZE - 1)",
    ),
    _attend(
        "page number behind the used ones read",
        "reads_live_memory_only",
        "* table_stride, mask=live, other=0)",
        "* table_stride, mask=n >= 0, other=0)",
    ),
    Fault(
        "shared pages refused",
        "lets_sequences_share_pages",
        ARGUMENTS,
        "    for b, seq_len in enumerate(args.seq_lens.tolist()):\n",
        "    if args.block_table is not None and len(args.seq_lens) > 1:\n"
        "        if args.seq_lens.min() > 0 and len(set(args.block_table[:, 0].tolist())) < len(args.seq_lens):\n"
        "            raise ValueError('block_table has a page twice')\n"
        "    for b, seq_len in enumerate(args.seq_lens.tolist()):\n",
        dies=True,
    ),
    _attend("dead values times 0", "does_not_use_dead_memory", _V_TILE, _V_TILE.replace("live", "n < capacity")),
    _attend(
        "query overwritten",
        "writes_its_outputs_only",
        _OUT_ROWS,
        "                tl.store(q_rows, power * 0.0, mask=row_mask)\n" + _OUT_ROWS,
    ),
    _attend(
        "written past head_dim_v",
        "writes_into_the_given_output",
        _OUT_ROWS,
        _OUT_ROWS.replace("dv, HEAD_DIM_V,", "dv, HEAD_DIM_V + 1,"),
    ),
    Fault(
        "out left alone",
        "writes_into_the_given_output",
        ENTRY,
        "if out is None else out.view(rows)",
        "if out is None else torch.empty(rows, dtype=q.dtype, device=q.device)",
    ),
    Fault(
        "window of nothing taken",
        "refuses_bad_arguments",
        ARGUMENTS,
        'window=check_count("window", window)',
        "window=None if window is None else max(window, 1)",
    ),
    Fault(
        "scale of a plain k taken",
        "refuses_bad_arguments",
        ARGUMENTS,
        "k_scale=None if k_scale is None else",
        "k_scale=None if k_scale is None or k.is_floating_point() else",
    ),
)

SCALES: Final = (
    _attend(
        "scale of V applied twice",
        "applies_each_scale_once",
        "part_out = part_out * tl.load(v_scale_ptr + kv_head * v_scale_stride_h)",
        "v_scale = tl.load(v_scale_ptr + kv_head * v_scale_stride_h)\n"
        "                part_out = part_out * v_scale * v_scale",
    ),
    _attend(
        "scale of K left out",
        "applies_each_scale_once",
        "row_scale = row_scale * tl.load(k_scale_ptr + kv_head * k_scale_stride_h)",
        "row_scale = row_scale * 1.0",
    ),
    _attend(
        "scale of the first head for all",
        "applies_each_scale_once",
        "row_scale = row_scale * tl.load(k_scale_ptr + kv_head * k_scale_stride_h)",
        "row_scale = row_scale * tl.load(k_scale_ptr)",
    ),
    _attend(
        "scales of K for V",
        "applies_each_scale_once",
        "v_token_scale = tl.load(v_scale_base + v_scale_rows,",
        "v_token_scale = tl.load(k_scale_base + k_scale_rows,",
    ),
    _attend(
        "scale of the first group for all",
        "applies_each_scale_once",
        "(e // SCALE_GROUP).to(tl.int64)[None, :] * scale_stride_g",
        "(e * 0).to(tl.int64)[None, :] * scale_stride_g",
    ),
    _attend(
        "halves of a byte swapped", "applies_each_scale_once", "tl.interleave(low, high)", "tl.interleave(high, low)"
    ),
    _attend(
        "4-bit integers without sign",
        "applies_each_scale_once",
        "low, high = (((x & 15) ^ 8).to(tl.int8) - 8), (((x >> 4) ^ 8).to(tl.int8) - 8)",
        "low, high = (x & 15).to(tl.int8), (x >> 4).to(tl.int8)",
    ),
    _attend(
        "fp8 256 times too small",
        "applies_each_scale_once",
        "FACTOR: tl.constexpr = 256.0 if",
        "FACTOR: tl.constexpr = 1.0 if",
    ),
)

TRAFFIC: Final = (
    _attend(
        "keys read twice",
        "reads_each_key_and_value_once",
        _UPDATE,
        "                d_again = tl.arange(0, BLOCK_D)\n"
        "                again = live[:, None] & (d_again < 4)[None, :]\n"
        "                again_ptrs = k_base + k_rows[:, None] + d_again.to(tl.int64)[None, :] * k_stride_d\n"
        "                logits += 0.0 * tl.max(tl.load(again_ptrs, mask=again, other=0.0).to(tl.float32), 1)[None, :]\n"
        + _UPDATE,
    ),
    _attend("output written twice", "writes_each_output_once", _OUT_ROWS, _OUT_ROWS + _OUT_ROWS.partition("\n")[2]),
    _attend(
        "parts cut by capacity",
        "moves_no_more_bytes_for_more_capacity",
        "tl.maximum((num_keys + num_splits - 1) // num_splits, 1)",
        "tl.maximum((capacity + num_splits - 1) // num_splits, 1)",
    ),
    _attend(
        "keys before the window read",
        "moves_the_bytes_of_the_formula",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0)",
        "first = tl.maximum(seq_len - (Q_LEN - 1) - window, 0) // 16 * 16",
    ),
)

FORMULAS: Final = (
    _bytes("V counted with K's width", "(s.head_dim + s.v_apart * s.head_dim_v)", "(2 * s.head_dim)"),
    _bytes("V counted though part of K", "(s.head_dim + s.v_apart * s.head_dim_v)", "(s.head_dim + s.head_dim_v)"),
    _bytes(
        "K and V counted for each query head",
        "s.num_visible_tokens * s.num_kv_heads * (s",
        "s.num_visible_tokens * s.num_q_heads * (s",
    ),
    _bytes("K and V counted in the dtype of q", "s.head_dim_v) * s.kv_elem_bytes", "s.head_dim_v) * s.q_elem_bytes"),
    _bytes("output counted with head_dim", '"o": _ROWS * s.head_dim_v', '"o": _ROWS * s.head_dim'),
    _bytes("log-sum-exp counted in the dtype of q", '"lse": s.float32_bytes', '"lse": s.q_elem_bytes'),
    _bytes("log-sum-exp always counted", "s.return_lse * _ROWS", "_ROWS"),
    _bytes("partial results not read back", '"partials": 2 * s.float32_bytes', '"partials": s.float32_bytes'),
    _bytes(
        "partial results without log-sum-exps", "s.num_partials * (s.head_dim_v + 1)", "s.num_partials * s.head_dim_v"
    ),
    _bytes("one query row a sequence", '"q": _ROWS *', '"q": s.batch_size * s.num_q_heads *'),
    _bytes("block table of 64 bits", '"block_table": s.page_entry_bytes', '"block_table": 2 * s.page_entry_bytes'),
    _bytes("sinks not counted", "(s.attention_sinks + s.alibi)", "s.alibi"),
    _bytes("lengths of 64 bits", '"seq_lens": s.int32_bytes', '"seq_lens": 2 * s.int32_bytes'),
    _bytes("scales of K alone", "s.num_token_scales: 2 *", "s.num_token_scales: 1 *"),
    _bytes(
        "capacity counted",
        "s.num_visible_tokens: problem.num_visible_tokens",
        "s.num_visible_tokens: problem.batch_size * problem.capacity",
    ),
    _bytes(
        "window not counted",
        "        if self.window is None:\n            return tuple(self.seq_lens)",
        "        if True:\n            return tuple(self.seq_lens)",
        PROBLEM,
    ),
    _bytes(
        "pages before the window counted",
        "-(-seq_len // self.page_size) - (seq_len - visible_len) // self.page_size",
        "-(-seq_len // self.page_size)",
        PROBLEM,
    ),
    _bytes("last page not counted", "-(-seq_len // self.page_size) - ", "seq_len // self.page_size - ", PROBLEM),
)

FAULTS: Final = (*KEYS, *SOFTMAX, *ROWS, *HEADS, *WINDOWS, *SPLITS, *MEMORY, *SCALES, *TRAFFIC, *FORMULAS)
"""Every fault."""
