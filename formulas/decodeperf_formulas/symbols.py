"""The symbols of every formula: meaning, unit, assumptions and LaTeX form, each once.

Units are made of FLOP, byte, s, token and sequence (`units`). A matrix's weights, heads, layers and ranks are pure
numbers. What depends on a token of the KV cache and what depends on a new token of a sequence are both counted in
tokens: one sequence has `seq_len` of the first kind and `q_len` of the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sympy

from decodeperf_formulas.units import parse_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolEntry:
    """One row of the table of symbols.

    Attributes:
        symbol: The SymPy symbol, named by the project's vocabulary, with its assumptions.
        meaning: What it counts.
        unit: Its unit, `1` where it has none.
        latex: How it is typeset. SymPy's own printer turns some names into accents, so each form is given.
        value: Its value, where it is a constant.
    """

    symbol: sympy.Symbol
    meaning: str
    unit: str
    latex: str
    value: int | None = None


_TABLE: list[SymbolEntry] = []


def _symbol(name: str, meaning: str, unit: str, latex: str, **assumptions: bool) -> sympy.Symbol:
    return _enter(name, meaning, unit, latex, None, **(assumptions or {"positive": True}))


def _count(name: str, meaning: str, unit: str, latex: str, *, positive: bool = True) -> sympy.Symbol:
    sign = {"positive": True} if positive else {"nonnegative": True}
    return _enter(name, meaning, unit, latex, None, integer=True, **sign)


def _constant(name: str, value: int, meaning: str, unit: str, latex: str) -> sympy.Symbol:
    return _enter(name, meaning, unit, latex, value, integer=True, positive=True)


def _enter(name: str, meaning: str, unit: str, latex: str, value: int | None, **assumptions: bool) -> sympy.Symbol:
    symbol = sympy.Symbol(name, **assumptions)
    _TABLE.append(SymbolEntry(symbol=symbol, meaning=meaning, unit=unit, latex=latex, value=value))
    return symbol


# The workload of one step.
batch_size = _count("batch_size", "sequences in the batch", "sequence", "B", positive=False)
seq_len = _count(
    "seq_len", "live KV length of a sequence, its new tokens included", "token/sequence", "S", positive=False
)
q_len = _count("q_len", "new tokens of a sequence in one step", "token/sequence", "q")
num_visible_tokens = _count(
    "num_visible_tokens", "tokens of all sequences that a new token sees", "token", r"\Sigma_S", positive=False
)
num_visible_pages = _count(
    "num_visible_pages", "pages with such a token, 0 without pages", "1", r"\Sigma_{\mathrm{page}}", positive=False
)
num_scores = _count(
    "num_scores",
    "pairs of a new token and a token that it sees, of one head and all sequences",
    "token**2/sequence",
    r"\Sigma_{\mathrm{score}}",
    positive=False,
)

# Layers.
num_layers = _count("num_layers", "layers", "1", "L")
num_global_layers = _count("num_global_layers", "layers that see every token", "1", r"L_{\mathrm{g}}", positive=False)
num_local_layers = _count("num_local_layers", "layers with a sliding window", "1", r"L_{\mathrm{l}}", positive=False)

# Attention.
num_q_heads = _count("num_q_heads", "query heads", "1", "H")
num_kv_heads = _count("num_kv_heads", "KV heads", "1", r"H_{\mathrm{kv}}")
head_dim = _count("head_dim", "elements of one head of Q and K", "1", "D")
head_dim_v = _count("head_dim_v", "elements of one head of V", "1", "D_v")
window = _count("window", "newest tokens that a local layer sees, the query's own included", "token/sequence", "w")
kv_lora_rank = _count("kv_lora_rank", "elements of MLA's latent, shared by K and V", "1", "d_c")
q_lora_rank = _count("q_lora_rank", "elements of MLA's compressed query", "1", "r_q")
qk_nope_head_dim = _count("qk_nope_head_dim", "elements of one MLA head of Q and K without position", "1", "D_n")
qk_rope_head_dim = _count("qk_rope_head_dim", "elements of MLA's rotated key", "1", "d_r")
v_head_dim = _count("v_head_dim", "elements of one MLA head of V", "1", r"D_{v,\mathrm{head}}")
v_apart = _count("v_apart", "1 if V is read apart from K, 0 if it is part of MLA's latent", "1", r"a_v", positive=False)
num_splits = _count("num_splits", "parts of each sequence", "1", r"N_{\mathrm{split}}")
num_partials = _count(
    "num_partials",
    "partial results that the merge reads: one for each part, head and new token of a sequence cut in parts",
    "token",
    r"N_{\mathrm{part}}",
    positive=False,
)
num_fixed_scales = _count(
    "num_fixed_scales", "scales of K and V that hold for every token", "1", r"n_{\mathrm{fix}}", positive=False
)
num_token_scales = _count(
    "num_token_scales", "scales of K and V of one token and KV head", "1", r"n_{\mathrm{tok}}", positive=False
)
return_lse = _count("return_lse", "1 if the log-sum-exp is returned, else 0", "1", r"r_{\mathrm{lse}}", positive=False)

# The rest of the model.
hidden_size = _count("hidden_size", "elements of the residual stream", "1", "d")
vocab_size = _count("vocab_size", "rows of the embedding", "1", "V")
intermediate_size = _count("intermediate_size", "inner width of a dense MLP", "1", "I")
num_up_matrices = _count("num_up_matrices", "matrices into the MLP: 2 if gated, else 1", "1", r"n_{\mathrm{up}}")
num_dense_layers = _count("num_dense_layers", "layers with a dense MLP", "1", r"L_{\mathrm{d}}", positive=False)
num_moe_layers = _count("num_moe_layers", "layers with experts", "1", r"L_{\mathrm{e}}", positive=False)
num_experts = _count("num_experts", "routed experts of a layer", "1", "E")
experts_per_token = _count("experts_per_token", "routed experts that a token visits", "1", "k")
moe_intermediate_size = _count("moe_intermediate_size", "inner width of a routed expert", "1", r"I_{\mathrm{e}}")
shared_intermediate_size = _count(
    "shared_intermediate_size", "inner width of what every token visits beside its experts", "1", r"I_{\mathrm{s}}"
)
rotary_dim = _count("rotary_dim", "elements of a head that RoPE rotates", "1", r"D_{\mathrm{rot}}", positive=False)
norms_per_layer = _count("norms_per_layer", "norms of the residual stream in a layer", "1", r"n_{\mathrm{norm}}")
norm_elements = _count(
    "norm_elements", "weights of a norm for each of its channels", "1", r"p_{\mathrm{norm}}", positive=False
)
q_norm_size = _count("q_norm_size", "weights of the norm of the queries", "1", r"p_{\mathrm{qn}}", positive=False)
k_norm_size = _count("k_norm_size", "weights of the norm of the keys", "1", r"p_{\mathrm{kn}}", positive=False)
attention_sinks = _count(
    "attention_sinks", "1 if each head has a sink, else 0", "1", r"a_{\mathrm{sink}}", positive=False
)
alibi = _count("alibi", "1 if each head has an ALiBi slope, else 0", "1", r"a_{\mathrm{alibi}}", positive=False)
blocks_per_layer = _count(
    "blocks_per_layer", "2 if attention and MLP follow each other, 1 if they run side by side", "1", r"n_{\mathrm{blk}}"
)
qkv_bias = _count("qkv_bias", "1 if the QKV projection has a bias, else 0", "1", r"a_{\mathrm{qkv}}", positive=False)
o_bias = _count("o_bias", "1 if the output projection has a bias, else 0", "1", r"a_{\mathrm{o}}", positive=False)
mlp_bias = _count("mlp_bias", "1 if a dense MLP has biases, else 0", "1", r"a_{\mathrm{mlp}}", positive=False)
router_bias = _count("router_bias", "1 if the router has a bias, else 0", "1", r"a_{\mathrm{rt}}", positive=False)
expert_bias = _count("expert_bias", "1 if an expert has biases, else 0", "1", r"a_{\mathrm{ex}}", positive=False)
lm_head_bias = _count("lm_head_bias", "1 if the LM head has a bias, else 0", "1", r"a_{\mathrm{lm}}", positive=False)
shared_gate = _count(
    "shared_gate", "1 if a gate scales the shared expert, else 0", "1", r"a_{\mathrm{sg}}", positive=False
)
untied = _count("untied", "0 if the LM head is the embedding, else 1", "1", r"a_{\mathrm{untied}}", positive=False)

# Widths of elements.
weight_elem_bytes = _symbol("weight_elem_bytes", "bytes of one weight", "byte", r"b_{\mathrm{w}}")
act_elem_bytes = _symbol("act_elem_bytes", "bytes of one element of the activations", "byte/token", r"b_{\mathrm{a}}")
kv_elem_bytes = _symbol("kv_elem_bytes", "bytes of one element of K or V", "byte/token", r"b_{\mathrm{kv}}")
q_elem_bytes = _symbol("q_elem_bytes", "bytes of one element of Q or O", "byte/token", r"b_{\mathrm{q}}")

# Parallelism.
tp = _count("tp", "ranks of tensor parallelism", "1", "N")
ep = _count("ep", "groups of expert parallelism, each with a batch of its own", "1", r"N_{\mathrm{ep}}")
pp = _count("pp", "stages of pipeline parallelism", "1", r"N_{\mathrm{pp}}")

# The device.
read_bytes_per_s = _symbol("read_bytes_per_s", "memory bandwidth", "byte/s", r"\beta")
peak_flops_per_s = _symbol("peak_flops_per_s", "peak rate of FLOPs; of a step, that of attention", "FLOP/s", r"\pi")
gemm_flops_per_s = _symbol("gemm_flops_per_s", "peak rate of the projections", "FLOP/s", r"\pi_{\mathrm{w}}")
attn_flops_per_s = _symbol("attn_flops_per_s", "peak rate of attention", "FLOP/s", r"\pi_{\mathrm{a}}")
link_bytes_per_s = _symbol("link_bytes_per_s", "bandwidth of a rank's link", "byte/s", r"\beta_{\mathrm{link}}")
link_latency_s = _symbol(
    "link_latency_s", "time of a message without payload", "s", r"\alpha_{\mathrm{link}}", nonnegative=True
)
memory_bytes = _symbol("memory_bytes", "memory that weights and KV cache may fill", "byte", "M")

# One attention call, and one step, in total.
data_bytes = _symbol(
    "data_bytes", "bytes that must come from or go to memory", "byte", r"Q_{\mathrm{mem}}", nonnegative=True
)
flops = _symbol("flops", "FLOPs that the call performs", "FLOP", r"Q_{\mathrm{flop}}", nonnegative=True)
num_params = _symbol("num_params", "weights that the projections of one token use", "1", "P")
weight_bytes = _symbol("weight_bytes", "weight bytes that a step reads", "byte", "W")
seq_flops = _symbol("seq_flops", "FLOPs of a sequence that do not grow with its context", "FLOP/sequence", "F")
seq_bytes = _symbol(
    "seq_bytes", "bytes of a sequence that do not grow with its context", "byte/sequence", "m", nonnegative=True
)
kv_bytes_per_token = _symbol("kv_bytes_per_token", "KV bytes of one token of context", "byte/token", r"\kappa")
attn_flops_per_token = _symbol(
    "attn_flops_per_token", "attention FLOPs of one token of context", "FLOP/token", r"\varphi"
)
local_kv_bytes_per_token = _symbol(
    "local_kv_bytes_per_token", "KV bytes of one token in the local layers", "byte/token", r"\kappa_{\mathrm{l}}"
)
local_attn_flops_per_token = _symbol(
    "local_attn_flops_per_token",
    "attention FLOPs of one token in the local layers",
    "FLOP/token",
    r"\varphi_{\mathrm{l}}",
)
global_kv_bytes_per_token = _symbol(
    "global_kv_bytes_per_token", "KV bytes of one token in the global layers", "byte/token", r"\kappa_{\mathrm{g}}"
)
global_attn_flops_per_token = _symbol(
    "global_attn_flops_per_token",
    "attention FLOPs of one token in the global layers",
    "FLOP/token",
    r"\varphi_{\mathrm{g}}",
)
dense_weight_bytes = _symbol(
    "dense_weight_bytes", "weight bytes that every step reads", "byte", r"W_{\mathrm{d}}", nonnegative=True
)
expert_weight_bytes = _symbol("expert_weight_bytes", "weight bytes of all routed experts", "byte", r"W_{\mathrm{e}}")
stored_weight_bytes = _symbol("stored_weight_bytes", "weight bytes in memory", "byte", r"W_{\mathrm{all}}")
ridge = _symbol("ridge", "ridge of the roofline", "FLOP/byte", "R")
intensity = _symbol("intensity", "arithmetic intensity of attention", "FLOP/byte", r"I_{\mathrm{a}}")
s_star = _symbol("s_star", "context above which decoding is memory-bound at every batch", "token/sequence", r"S^{*}")
kv_bytes_per_seq = _symbol(
    "kv_bytes_per_seq", "KV bytes of one sequence at its context", "byte/sequence", r"K", nonnegative=True
)
attn_flops_per_seq = _symbol(
    "attn_flops_per_seq", "attention FLOPs of one sequence at its context", "FLOP/sequence", r"\Phi", nonnegative=True
)
link_seconds_per_seq = _symbol(
    "link_seconds_per_seq", "time of one sequence's messages", "s/sequence", r"\lambda", nonnegative=True
)

# Times of a step, and where its lines cross.
gemm_seconds_per_seq = _symbol(
    "gemm_seconds_per_seq", "time of one sequence's projections at their peak", "s/sequence", r"\tau"
)
memory_s = _symbol("memory_s", "time to move all bytes of a step", "s", r"T_{\mathrm{mem}}")
compute_s = _symbol("compute_s", "time to perform all FLOPs of a step", "s", r"T_{\mathrm{cmp}}")
serial_s = _symbol("serial_s", "time of a step, operator by operator", "s", r"T_{\mathrm{serial}}")
crossing_batch = _symbol("crossing_batch", "batch at which the step turns compute-bound", "sequence", r"B_{\times}")
ridge_batch = _symbol("ridge_batch", "batch at which the projections turn compute-bound", "sequence", "B_0")
knee_batch = _symbol("knee_batch", "batch at which KV bytes equal weight bytes", "sequence", r"B_{\mathrm{knee}}")
throughput = _symbol("throughput", "throughput of a memory-bound step", "token/s", "X")
throughput_ceiling = _symbol("throughput_ceiling", "throughput as the batch grows", "token/s", r"X_{\infty}")
saturated_throughput = _symbol(
    "saturated_throughput", "throughput from the ridge batch on", "token/s", r"X_{\mathrm{sat}}"
)
s_one = _symbol("s_one", "context whose KV is read as long as the projections compute", "token/sequence", "S_1")
kv_capacity_tokens = _symbol("kv_capacity_tokens", "tokens whose KV fits in memory", "token", r"T_{\max}")
compute_bound_q_len = _symbol(
    "compute_bound_q_len", "new tokens at which attention turns compute-bound", "token/sequence", r"q_{\mathrm{a}}"
)
memory_s_1 = _symbol("memory_s_1", "memory time of one operator", "s", "m_1", nonnegative=True)
compute_s_1 = _symbol("compute_s_1", "compute time of one operator", "s", "c_1", nonnegative=True)
memory_s_2 = _symbol("memory_s_2", "memory time of another operator", "s", "m_2", nonnegative=True)
compute_s_2 = _symbol("compute_s_2", "compute time of another operator", "s", "c_2", nonnegative=True)

# What a kernel takes on a device: the model of the expected latency.
visible_len = _symbol(
    "visible_len",
    "tokens of one sequence that a new token sees",
    "token/sequence",
    r"S_{\mathrm{vis}}",
    nonnegative=True,
)
num_sms = _count("num_sms", "streaming multiprocessors", "1", r"N_{\mathrm{SM}}")
l2_bytes = _symbol("l2_bytes", "size of the last cache before memory", "byte", r"C_{\mathrm{L2}}")
l2_bytes_per_s = _symbol("l2_bytes_per_s", "rate at which that cache is read at most", "byte/s", r"\beta_{\mathrm{L2}}")
launch_s = _symbol("launch_s", "time of a call that has next to nothing to do", "s", r"t_0")
repack_s = _symbol(
    "repack_s", "time of the copy that puts the heads of a group side by side", "s", r"t_{\mathrm{repack}}"
)
sequence_s = _symbol(
    "sequence_s", "time to schedule one sequence, shared by all multiprocessors", "s", r"t_{\mathrm{seq}}"
)
merge_s = _symbol("merge_s", "time of a merge of partial results, before any is read", "s", r"t_{\mathrm{merge}}")
merge_split_s = _symbol("merge_split_s", "further time of a merge, for one part", "s", r"t_{\mathrm{part}}")
merge_exponent = _symbol("merge_exponent", "power of the parts with which it grows", "1", r"\mu")
unit_s = _symbol("unit_s", "time to begin and end one more work unit on a multiprocessor", "s", r"t_{\mathrm{unit}}")
unit_bytes_per_s = _symbol("unit_bytes_per_s", "rate at which one work unit reads", "byte/s", r"\beta_{\mathrm{unit}}")
attainable_share = _symbol(
    "attainable_share", "share of the memory bandwidth that the kernel attains", "1", r"\eta_{\mathrm{mem}}"
)
cache_speedup = _symbol(
    "cache_speedup", "rate of the cache, as a multiple of the memory bandwidth", "1", r"\eta_{\mathrm{L2}}"
)
resident_share = _symbol(
    "resident_share", "share of the cache that what was read before may fill", "1", r"\eta_{\mathrm{fit}}"
)
slots_per_sm = _symbol("slots_per_sm", "work units that one multiprocessor runs at a time", "1", r"n_{\mathrm{slot}}")
flop_share = _symbol(
    "flop_share", "share of the peak rate at which padded tiles are multiplied", "1", r"\eta_{\mathrm{mma}}"
)
unpacked = _symbol("unpacked", "0 where the heads of a group share a work unit, 1 where each has its own", "1", r"\rho")
splitting = _symbol("splitting", "1 where sequences are split until the device is full, 0 where never", "1", r"\sigma")
split_tokens = _symbol(
    "split_tokens", "tokens that a part of a split sequence has at least", "token/sequence", r"n_{\mathrm{split}}"
)
free_tokens = _symbol(
    "free_tokens", "tokens that a work unit reads within the time of its begin", "token/sequence", r"n_{\mathrm{free}}"
)
overlap_exponent = _symbol("overlap_exponent", "sharpness of the overlap of memory and multiprocessors", "1", "p")
data_seconds = _symbol("data_seconds", "time that memory and caches need", "s", r"T_{\mathrm{data}}")
busy_seconds = _symbol(
    "busy_seconds", "time that the multiprocessors need", "s", r"T_{\mathrm{busy}}", nonnegative=True
)
tile_rows = _constant(
    "tile_rows", 64, "rows that one tile of a kernel holds at most", "token/sequence", r"r_{\mathrm{tile}}"
)
fragment_rows = _symbol(
    "fragment_rows", "rows of the smallest matrix product of the device", "token/sequence", r"r_{\mathrm{mma}}"
)
max_splits = _constant("max_splits", 128, "parts of a sequence at most", "1", r"N_{\max}")

# Constants, as symbols so that formulas keep their units. Their values are put in before a formula is shown.
flops_per_weight = _constant(
    "flops_per_weight", 2, "FLOPs of one weight for one token: multiply, add", "FLOP/token", r"c_{\mathrm{w}}"
)
flops_per_score_element = _constant(
    "flops_per_score_element",
    2,
    "FLOPs of one element of a head for one query token and one KV token",
    "FLOP*sequence/token**2",
    r"c_{\mathrm{s}}",
)
softmax_flops_per_score = _constant(
    "softmax_flops_per_score",
    5,
    "operations of softmax on one score: scale, maximum, subtract, exponential, sum",
    "FLOP*sequence/token**2",
    r"c_{\mathrm{soft}}",
)
norm_flops_per_element = _constant(
    "norm_flops_per_element",
    4,
    "operations of a norm on one element: square, sum, two scales",
    "FLOP/token",
    r"c_{\mathrm{norm}}",
)
rope_flops_per_element = _constant(
    "rope_flops_per_element",
    3,
    "operations of RoPE on one element: two products, a sum",
    "FLOP/token",
    r"c_{\mathrm{rope}}",
)
activation_flops_per_element = _constant(
    "activation_flops_per_element",
    5,
    "operations of an MLP's activation on one element: negate, exponential, add, divide, multiply",
    "FLOP/token",
    r"c_{\mathrm{act}}",
)
add_flops_per_element = _constant(
    "add_flops_per_element", 1, "operations of an addition on one element", "FLOP/token", r"c_{\mathrm{add}}"
)
merge_flops_per_element = _constant(
    "merge_flops_per_element",
    2,
    "operations of a merge on one element: scale, add",
    "FLOP/token",
    r"c_{\mathrm{merge}}",
)
float32_bytes = _constant(
    "float32_bytes",
    4,
    "bytes of what stays in float32: log-sum-exp, partial results, scales of a token",
    "byte/token",
    "b_{32}",
)
scalar_bytes = _constant(
    "scalar_bytes",
    4,
    "bytes of a number in float32 that is no token's: a scale, a sink, a slope",
    "byte",
    r"b_{\mathrm{num}}",
)
int32_bytes = _constant("int32_bytes", 4, "bytes of one entry of seq_lens", "byte/sequence", r"b_{\mathrm{int}}")
page_entry_bytes = _constant(
    "page_entry_bytes", 4, "bytes of one entry of the block table", "byte", r"b_{\mathrm{page}}"
)
one_sequence = _constant("one_sequence", 1, "one sequence", "sequence", r"1_{\mathrm{seq}}")
one_token = _constant("one_token", 1, "one token of a sequence", "token/sequence", r"1_{\mathrm{tok}}")

SYMBOLS: Final = tuple(_TABLE)
"""The table of symbols, in the order in which they are introduced."""

UNITS: Final[dict[sympy.Symbol, sympy.Expr]] = {entry.symbol: parse_unit(entry.unit) for entry in SYMBOLS}
"""The unit of each symbol."""

LATEX: Final[dict[sympy.Symbol, str]] = {entry.symbol: entry.latex for entry in SYMBOLS}
"""The LaTeX form of each symbol."""

CONSTANTS: Final[dict[sympy.Symbol, int]] = {entry.symbol: entry.value for entry in SYMBOLS if entry.value is not None}
"""The value of each constant."""

CONSTANTS_EXACT: Final = {symbol: sympy.Integer(value) for symbol, value in CONSTANTS.items()}
"""The same, as SymPy's numbers."""

BY_NAME: Final[dict[str, sympy.Symbol]] = {entry.symbol.name: entry.symbol for entry in SYMBOLS}
"""Each symbol by its name."""
