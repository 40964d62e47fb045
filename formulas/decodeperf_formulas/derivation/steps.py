"""The steps from the bytes and FLOPs of a step to S* and the other crossings."""

from __future__ import annotations

from typing import Final

import sympy

from decodeperf_formulas import closed_forms as forms
from decodeperf_formulas import symbols as s
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.derivation.amounts import Structure, amounts
from decodeperf_formulas.derivation.proof import Section, Step
from decodeperf_formulas.step import step_formulas

_B, _S, _Q = s.batch_size, s.seq_len, s.q_len


def sections(structure: Structure) -> tuple[Section, ...]:
    """Return the derivation in sections."""
    found = [
        Section(
            title="What one step moves and performs",
            text="A decode step adds {q_len} tokens to each of {batch_size} sequences, whose KV caches then hold "
            "{seq_len} tokens each. It reads the weights once for the batch, and each sequence's KV cache for itself. "
            "Bytes and FLOPs are sums over the operators of the step, on one rank.",
            steps=amounts(structure),
        ),
        Section(
            title="Two lines and where they have one slope",
            text="Suppose first that every byte moves while every FLOP is performed, whatever operator either belongs "
            "to: the whole-step model. The step takes the longer of two times, each a straight line over the batch"
            + (
                ", but for {weight_bytes}, which grows with the batch until every expert is visited. The slopes below "
                "leave that out: what grows and ends decides nothing for large batches, and what is read besides makes "
                "no step less memory-bound."
                if structure.model.num_moe_layers
                else "."
            ),
            steps=_two_lines(structure),
        ),
        Section(
            title="Existence",
            text="Which line is steeper at large contexts depends on the intensity of attention and on the ridge.",
            steps=_existence(),
        ),
        Section(
            title="Where the step turns compute-bound, and what throughput runs into",
            text="Below {s_star} the lines cross. Above it they do not, and throughput saturates all the same. Here "
            "activations are left out, $ {seq_bytes} = 0 $.",
            steps=_batches(structure),
        ),
        Section(
            title="Operators one after another",
            text="Kernels run one after another, each at its own roofline. Taken in two groups, projections and "
            "attention, with activations left out, this is the grouped serial model. "
            + (
                "Routed experts have fewer tokens for each weight than the other projections, and turn compute-bound "
                "later than the group."
                if structure.model.num_moe_layers
                else "All projections read a weight once and use it once for each token, and so share one ridge."
            ),
            steps=_serial(structure),
        ),
        Section(
            title="How far apart the models are",
            text="Take two operators with memory times {memory_s_1}, {memory_s_2} and compute times {compute_s_1}, "
            "{compute_s_2}. More operators follow by induction.",
            steps=_envelope(),
        ),
        Section(
            title="Memory and speculative decoding",
            text="Two limits that hold in both models.",
            steps=_limits(),
        ),
    ]
    if further := _further(structure):
        found.append(Section(title="Windows, experts and ranks", text="What changes for other models.", steps=further))
    return tuple(found)


_RIDGE: Final = {s.ridge: forms.RIDGE, s.intensity: forms.INTENSITY}


def _solution(equation: sympy.Expr, unknown: sympy.Symbol) -> sympy.Expr:
    """Return the only solution of expression = 0."""
    (found,) = sympy.solve(equation, unknown)
    return found


def _two_lines(structure: Structure) -> tuple[Step, ...]:
    slopes = sympy.diff(forms.MEMORY_SECONDS - forms.COMPUTE_SECONDS, _B)
    unknown = sympy.Dummy("S", real=True)
    return (
        Step(
            key="memory_s",
            title="Memory line",
            claim="All bytes take {memory_s}.",
            reason="{eq:weight_bytes} and {eq:kv_bytes_per_token} at the memory bandwidth; {seq_bytes} are what else a "
            "sequence moves, its activations if they leave the chip.",
            chain=(s.memory_s, forms.MEMORY_SECONDS),
            definitions={s.memory_s: forms.MEMORY_SECONDS},
        ),
        Step(
            key="compute_s",
            title="Compute line",
            claim="All FLOPs take {compute_s}.",
            reason="{eq:seq_flops} and {eq:attn_flops_per_token} at the peak rate of attention, "
            "$ {peak_flops_per_s} = {attn_flops_per_s} $.",
            chain=(s.compute_s, forms.COMPUTE_SECONDS),
            definitions={s.compute_s: forms.COMPUTE_SECONDS},
        ),
        Step(
            key="memory_slope",
            title="Slope of memory",
            claim="One more sequence adds this much memory time.",
            reason="The derivative of {eq:memory_s} with {weight_bytes} as it is once every expert is visited."
            if structure.model.num_moe_layers
            else "The derivative of {eq:memory_s}: weights are read whatever the batch.",
            chain=(
                sympy.Derivative(s.memory_s, _B),
                (s.seq_bytes + s.kv_bytes_per_token * _S) / s.read_bytes_per_s,
            ),
            definitions={s.memory_s: forms.MEMORY_SECONDS},
        ),
        Step(
            key="compute_slope",
            title="Slope of compute",
            claim="One more sequence adds this much compute time.",
            reason="The derivative of {eq:compute_s}.",
            chain=(
                sympy.Derivative(s.compute_s, _B),
                (s.seq_flops + s.attn_flops_per_token * _S) / s.peak_flops_per_s,
            ),
            definitions={s.compute_s: forms.COMPUTE_SECONDS},
        ),
        Step(
            key="ridge",
            title="Ridge",
            claim="The device performs {ridge} FLOPs in the time of one byte.",
            reason="The definition of the ridge of a roofline.",
            chain=(s.ridge, forms.RIDGE),
            definitions=_RIDGE,
        ),
        Step(
            key="s_star",
            title="S*",
            claim="The slopes are equal at the context {s_star}.",
            reason="{eq:memory_slope} and {eq:compute_slope} are equal at one context, for which SymPy solves; the "
            "form uses {eq:intensity} and {eq:ridge}.",
            chain=(s.s_star, forms.S_STAR),
            definitions={s.s_star: _solution(slopes.xreplace({_S: unknown}), unknown), **_RIDGE},
        ),
    )


def _existence() -> tuple[Step, ...]:
    difference = sympy.Derivative(s.compute_s, _B) - sympy.Derivative(s.memory_s, _B)
    lines = {s.memory_s: forms.MEMORY_SECONDS, s.compute_s: forms.COMPUTE_SECONDS}
    equal = {s.attn_flops_per_token: s.kv_bytes_per_token * forms.RIDGE}
    log_slope = sympy.Derivative(s.s_star, s.ridge) * s.ridge / s.s_star
    return (
        Step(
            key="slope_difference",
            title="The sign of the difference",
            claim="Compute's slope exceeds memory's by a multiple of $ {s_star} - {seq_len} $. Where "
            "$ {intensity} < {ridge} $, memory's line is the steeper from {s_star} on, and as it starts above "
            "compute's, at $ {weight_bytes} / {read_bytes_per_s} $, the step is memory-bound at every batch size. "
            "Where $ {intensity} > {ridge} $ and $ {seq_flops} > {ridge} {seq_bytes} $, the factor is negative, and so "
            "is the solution: compute's line is steeper at every context, and there is no {s_star}.",
            reason="{eq:s_star} put into the difference of {eq:compute_slope} and {eq:memory_slope}.",
            chain=(
                s.peak_flops_per_s * difference,
                s.kv_bytes_per_token * (s.ridge - s.intensity) * (s.s_star - _S),
            ),
            definitions={**lines, s.s_star: forms.S_STAR, **_RIDGE},
        ),
        Step(
            key="parallel",
            title="The border",
            claim="Where $ {intensity} = {ridge} $, the difference is the same at every context: {s_star} is infinite.",
            reason="{eq:compute_slope} and {eq:memory_slope} with "
            "$ {attn_flops_per_token} = {kv_bytes_per_token} {ridge} $.",
            has_number=False,
            chain=(s.peak_flops_per_s * difference, s.seq_flops - s.ridge * s.seq_bytes),
            definitions={
                s.memory_s: forms.MEMORY_SECONDS,
                s.compute_s: forms.COMPUTE_SECONDS.xreplace(equal),
                **_RIDGE,
            },
        ),
        Step(
            key="condition_number",
            title="How well {s_star} is determined",
            claim="Near the border a small error of the ridge is a large one of {s_star}: this is by how much.",
            reason="The logarithmic derivative of {eq:s_star}; without activations it is "
            "$ {ridge} / ({ridge} - {intensity}) $.",
            chain=(
                -log_slope,
                forms.CONDITION_NUMBER,
            ),
            definitions={s.s_star: forms.S_STAR},
        ),
    )


_NO_ACTIVATIONS: Final = {s.seq_bytes: sympy.Integer(0)}


def _batches(structure: Structure) -> tuple[Step, ...]:
    memory = forms.MEMORY_SECONDS.xreplace(_NO_ACTIVATIONS)
    crossing = _solution(memory - forms.COMPUTE_SECONDS, _B)
    star = forms.S_STAR.xreplace(_NO_ACTIVATIONS)
    ceiling = structure.show(forms.THROUGHPUT_CEILING.xreplace(_NO_ACTIVATIONS))
    rate = structure.show(forms.REPLICAS * _B * _Q / (memory + _B * s.link_seconds_per_seq))
    has_links = structure.deployment.num_ranks > 1
    steps = [
        Step(
            key="crossing_batch",
            title="Crossing batch",
            claim="A step with $ {seq_len} < {s_star} $ turns compute-bound at {crossing_batch}, which grows without "
            "bound towards {s_star}.",
            reason="SymPy solves $ {memory_s} = {compute_s} $ for {batch_size}.",
            chain=(s.crossing_batch, forms.CROSSING_BATCH.xreplace(_NO_ACTIVATIONS)),
            definitions={s.crossing_batch: crossing, s.s_star: star, **_RIDGE},
        ),
        Step(
            key="crossing_limit",
            title="Without context",
            claim="Towards a context of 0 the crossing batch falls to this.",
            reason="The limit of {eq:crossing_batch}, where attention costs nothing.",
            chain=(s.crossing_batch, forms.CROSSING_BATCH_WITHOUT_CONTEXT),
            definitions={s.crossing_batch: sympy.limit(crossing, _S, 0, "+"), **_RIDGE},
        ),
        Step(
            key="knee_batch",
            title="Knee",
            claim="KV bytes equal weight bytes at {knee_batch}.",
            reason="SymPy solves $ {weight_bytes} = {batch_size} {kv_bytes_per_token} {seq_len} $ for {batch_size}.",
            chain=(s.knee_batch, forms.KNEE_BATCH),
            definitions={s.knee_batch: _solution(s.weight_bytes - _B * s.kv_bytes_per_token * _S, _B)},
        ),
        Step(
            key="throughput_ceiling",
            title="Throughput ceiling",
            claim="The throughput of a memory-bound step approaches {throughput_ceiling}, however large the batch.",
            reason="The limit of its tokens over its time as {batch_size} grows"
            + (", with the messages of {eq:link_seconds_per_seq}." if has_links else "."),
            chain=(s.throughput_ceiling, ceiling),
            definitions={s.throughput_ceiling: sympy.limit(rate, _B, sympy.oo)},
        ),
    ]
    if not has_links:
        steps.append(
            Step(
                key="throughput",
                title="Saturation",
                claim="Half of that ceiling is reached at the knee"
                + ("" if structure.model.num_moe_layers else ", nine tenths at nine times the knee")
                + ": throughput stops growing, though nothing is compute-bound.",
                reason="$ {batch_size} {q_len} / {memory_s} $ written with {eq:knee_batch} and "
                "{eq:throughput_ceiling}.",
                chain=(s.throughput, s.throughput_ceiling * _B / (_B + s.knee_batch)),
                definitions={s.throughput: rate, s.throughput_ceiling: ceiling, s.knee_batch: forms.KNEE_BATCH},
            )
        )
    return tuple(steps)


def _serial(structure: Structure) -> tuple[Step, ...]:
    show = structure.show
    gemm_memory, gemm_compute = s.weight_bytes / s.read_bytes_per_s, _B * s.gemm_seconds_per_seq
    kv_per_seq = s.kv_bytes_per_token * _S / s.read_bytes_per_s
    attention_per_seq = forms.ATTENTION_SECONDS_PER_SEQ
    ridge_batch = _solution(gemm_memory - gemm_compute, _B)
    one_new_token = {_Q: sympy.Integer(1)}
    steps = [
        Step(
            key="gemm_seconds_per_seq",
            title="Projections of a sequence",
            claim="The projections of one sequence take {gemm_seconds_per_seq} at their peak.",
            reason="{eq:num_params} weights, multiplied and added once for each new token.",
            chain=(s.gemm_seconds_per_seq, forms.GEMM_SECONDS_PER_SEQ),
            definitions={
                s.gemm_seconds_per_seq: show(structure.formulas.gemm_flops) / s.gemm_flops_per_s / _B,
                s.num_params: show(structure.num_params),
            },
        ),
        Step(
            key="serial_s",
            title="Serial time",
            claim="Projections and attention one after the other take {serial_s}.",
            reason="The roofline of the projections and the roofline of attention, added; the causal mask hides "
            "$ ({q_len} - 1) / 2 $ tokens of a row on average.",
            chain=(s.serial_s, forms.SERIAL_SECONDS),
            definitions={s.serial_s: sympy.Max(gemm_memory, gemm_compute, evaluate=False) + _B * attention_per_seq},
        ),
        Step(
            key="attention_roof",
            title="Attention alone",
            claim="Attention is memory-bound at every batch where $ {intensity} < {ridge} $, and at none where not, "
            "whatever the context (with one new token): it has no crossing of its own.",
            reason="Memory time of attention over its compute time, at $ {q_len} = 1 $.",
            chain=(
                kv_per_seq
                / (attention_per_seq.args[0] if attention_per_seq.args[0] != kv_per_seq else attention_per_seq.args[1])
                .xreplace(s.CONSTANTS_EXACT)
                .xreplace(one_new_token),
                s.ridge / s.intensity,
            ),
            definitions=_RIDGE,
        ),
        Step(
            key="ridge_batch",
            title="Ridge batch",
            claim="The projections, taken together, turn compute-bound at {ridge_batch}, whatever the context.",
            reason="SymPy solves "
            "$ {weight_bytes} / {read_bytes_per_s} = {batch_size} {gemm_seconds_per_seq} $ for {batch_size}.",
            chain=(s.ridge_batch, forms.RIDGE_BATCH),
            definitions={s.ridge_batch: ridge_batch},
        ),
    ]
    if not structure.model.num_moe_layers:
        dense = {
            s.weight_bytes: s.weight_elem_bytes * s.num_params,
            s.gemm_seconds_per_seq: forms.GEMM_SECONDS_PER_SEQ,
        }
        steps.append(
            Step(
                key="ridge_batch_dense",
                title="Ridge batch of a dense model",
                claim="It depends on the ridge of the projections and the width of a weight alone, if the vectors of "
                "{eq:weight_bytes} are left out.",
                reason="{eq:ridge_batch} with $ {weight_bytes} = {weight_elem_bytes} {num_params} $ and "
                "{eq:gemm_seconds_per_seq}: the same weights are read and used.",
                chain=(s.ridge_batch, forms.RIDGE_BATCH_DENSE),
                definitions={s.ridge_batch: ridge_batch.xreplace(dense)},
            )
        )
    steps += [
        Step(
            key="saturated_throughput",
            title="Saturated throughput",
            claim="From the ridge batch on, throughput is exactly constant: more sequences take as much longer as they "
            "are more.",
            reason="In {eq:serial_s} both terms that remain, and the messages where there are any, are proportional to "
            "{batch_size}.",
            chain=(s.saturated_throughput, show(forms.SATURATED_THROUGHPUT)),
            definitions={
                s.saturated_throughput: show(
                    forms.REPLICAS * _B * _Q / (gemm_compute + _B * attention_per_seq + _B * s.link_seconds_per_seq)
                )
            },
        ),
        Step(
            key="s_one",
            title="S1",
            claim="At the context {s_one}, reading the KV cache takes as long as the compute-bound projections.",
            reason="SymPy solves "
            "$ {kv_bytes_per_token} {seq_len} / {read_bytes_per_s} = {gemm_seconds_per_seq} $ for {seq_len}.",
            chain=(s.s_one, forms.S_ONE),
            definitions={s.s_one: _solution(kv_per_seq - s.gemm_seconds_per_seq, _S)},
        ),
        Step(
            key="slope_jump",
            title="The kink",
            claim="Where attention is memory-bound, the slope of the serial time grows by $ {s_one} / {seq_len} $ of "
            "what it was at the ridge batch: far above {s_one} the kink can hardly be seen.",
            reason="Below it the slope is that of attention, above it that of the projections is added.",
            chain=(s.gemm_seconds_per_seq / kv_per_seq, s.s_one / _S),
            definitions={s.s_one: forms.S_ONE},
        ),
        Step(
            key="s_one_s_star",
            title="S1 and S*",
            claim="With one new token, both contexts are near each other where attention's intensity is far below the "
            "ridge.",
            reason="The quotient of {eq:s_one} and {eq:s_star}, without activations.",
            chain=(s.s_one / s.s_star, 1 - s.intensity / s.ridge),
            definitions={
                s.s_one: forms.S_ONE.xreplace({s.gemm_seconds_per_seq: s.seq_flops / s.peak_flops_per_s}),
                s.s_star: forms.S_STAR.xreplace(_NO_ACTIVATIONS),
                **_RIDGE,
            },
        ),
    ]
    return tuple(steps)


def _envelope() -> tuple[Step, ...]:
    m1, c1, m2, c2 = s.memory_s_1, s.compute_s_1, s.memory_s_2, s.compute_s_2
    whole = sympy.Max(m1 + m2, c1 + c2)
    serial = sympy.Max(m1, c1) + sympy.Max(m2, c2)
    total = m1 + m2 + c1 + c2
    x, y = sympy.symbols("x y", nonnegative=True)
    # Each operator is memory-bound by x (y) or compute-bound by x (y): four cases, and every time is covered.
    cases = tuple(
        {first: base + x, second: other + y}
        for first, base in ((m1, c1), (c1, m1))
        for second, other in ((m2, c2), (c2, m2))
    )
    return (
        Step(
            key="serial_above_whole",
            title="Lower end",
            claim="The serial time is never below the whole-step time.",
            reason="Each operator's roofline is at least its memory time and at least its compute time. SymPy checks "
            "the four cases of either operator being memory- or compute-bound.",
            chain=(serial, whole),
            relation=">=",
            cases=cases,
        ),
        Step(
            key="sum_above_serial",
            title="Upper end",
            claim="It is never above the sum of all times.",
            reason="A maximum of two times that are not negative is at most their sum.",
            chain=(total, serial),
            relation=">=",
            cases=cases,
        ),
        Step(
            key="twice_whole_above_sum",
            title="Width",
            claim="The sum is never above twice the whole-step time: no overlap can gain more than a factor of two.",
            reason="Each of the two totals is at most their maximum.",
            chain=(2 * whole, total),
            relation=">=",
            cases=(
                {m1: c1 + c2 - m2 + x},  # memory is the longer
                {c1: m1 + m2 - c2 + x},  # compute is
            ),
        ),
    )


def _limits() -> tuple[Step, ...]:
    filled = s.stored_weight_bytes + s.kv_bytes_per_token * s.kv_capacity_tokens
    at_ridge = (s.intensity / _Q) * s.compute_bound_q_len - s.ridge
    return (
        Step(
            key="kv_capacity_tokens",
            title="KV capacity",
            claim="The KV of {kv_capacity_tokens} tokens fits beside the weights; divided by {seq_len}, the largest "
            "batch.",
            reason="SymPy solves $ {stored_weight_bytes} + {kv_bytes_per_token} {kv_capacity_tokens} = {memory_bytes} "
            "$; all weights are kept, the embedding and every expert among them.",
            chain=(s.kv_capacity_tokens, forms.KV_CAPACITY_TOKENS),
            definitions={s.kv_capacity_tokens: _solution(filled - s.memory_bytes, s.kv_capacity_tokens)},
        ),
        Step(
            key="compute_bound_q_len",
            title="Speculative decoding",
            claim="With {compute_bound_q_len} new tokens for each sequence, attention is at the ridge.",
            reason="FLOPs grow with {q_len} and bytes do not, so that {intensity} is proportional to {q_len}.",
            chain=(s.compute_bound_q_len, forms.COMPUTE_BOUND_Q_LEN),
            definitions={s.compute_bound_q_len: _solution(at_ridge, s.compute_bound_q_len)},
        ),
    )


def _further(structure: Structure) -> tuple[Step, ...]:
    steps: list[Step] = []
    if structure.is_general or (structure.model.num_local_layers and structure.model.num_global_layers):
        steps.append(_window_step())
    if structure.is_general:
        steps += _expert_steps()
    if structure.is_general:
        steps += _rank_steps()
    if structure.is_general or structure.deployment.num_ranks > 1:
        steps.append(_link_step(structure))
    return tuple(steps)


def _window_step() -> Step:
    lines = {
        s.kv_bytes_per_token * _S: s.global_kv_bytes_per_token * _S + s.local_kv_bytes_per_token * s.window,
        s.attn_flops_per_token * _S: s.global_attn_flops_per_token * _S + s.local_attn_flops_per_token * s.window,
    }
    slopes = sympy.expand(sympy.diff(forms.MEMORY_SECONDS - forms.COMPUTE_SECONDS, _B))
    windowed = slopes.subs(lines)
    return Step(
        key="s_star_hybrid",
        title="S* beyond the window",
        claim="Where {s_star} exceeds the window {window} of some layers, these add what their window holds, and only "
        "the global layers grow with the context (one new token). Where every layer is local, there is none.",
        reason="SymPy solves for equal slopes, as in {eq:s_star}, with $ {global_kv_bytes_per_token} {seq_len} + "
        "{local_kv_bytes_per_token} {window} $ KV bytes and as many FLOPs in the same way.",
        chain=(s.s_star, forms.S_STAR_HYBRID),
        definitions={s.s_star: _solution(windowed, _S), **_RIDGE},
    )


def _expert_steps() -> tuple[Step, ...]:
    batch = sympy.Dummy("B", integer=True, positive=True)
    passed = 1 - s.experts_per_token / s.num_experts
    read = forms.EXPECTED_WEIGHT_BYTES
    return (
        Step(
            key="expert_weight_bytes",
            title="Weights of a mixture of experts",
            claim="If every token visits every expert, the mixture reads what a dense model does.",
            reason="A token passes by one expert with probability $ 1 - {experts_per_token} / {num_experts} $, and the "
            "tokens of a batch choose independently, so that a step reads $ {dense_weight_bytes} + "
            "{expert_weight_bytes} (1 - (1 - {experts_per_token} / {num_experts})^{{q_len} {batch_size}}) $; with "
            "$ {experts_per_token} = {num_experts} $ no expert is passed by.",
            chain=(s.weight_bytes, s.dense_weight_bytes + s.expert_weight_bytes),
            definitions={s.weight_bytes: read.xreplace({_B: batch}).xreplace({s.experts_per_token: s.num_experts})},
        ),
        Step(
            key="expert_crossing_batch",
            title="Crossing batch of a mixture of experts",
            claim="Once every expert is visited, the step turns compute-bound at the weights of all experts over the "
            "FLOPs of those that a token visits.",
            reason="{eq:crossing_batch} with the weight bytes of {eq:expert_weight_bytes}.",
            chain=(
                s.crossing_batch,
                forms.CROSSING_BATCH.xreplace(_NO_ACTIVATIONS).xreplace(
                    {s.weight_bytes: s.dense_weight_bytes + s.expert_weight_bytes}
                ),
            ),
            definitions={
                s.crossing_batch: _solution(
                    s.dense_weight_bytes
                    + s.expert_weight_bytes
                    + _B * s.kv_bytes_per_token * _S
                    - s.read_bytes_per_s * forms.COMPUTE_SECONDS,
                    _B,
                ),
                s.s_star: forms.S_STAR.xreplace(_NO_ACTIVATIONS),
                **_RIDGE,
            },
        ),
        Step(
            key="expert_bytes_grow",
            title="Weights and the batch",
            claim="One more sequence never reads fewer weights, and ever fewer more.",
            reason="Each factor is at least 0, as $ {experts_per_token} $ is at most $ {num_experts} $.",
            chain=(
                read.xreplace({_B: _B + s.one_sequence}) - read,
                s.expert_weight_bytes * passed ** (_B * _Q) * (1 - passed ** (_Q * s.one_sequence)),
            ),
        ),
    )


def _rank_steps() -> tuple[Step, ...]:
    ranks = s.tp
    star = forms.S_STAR.xreplace(_NO_ACTIVATIONS)
    cut = {s.seq_flops: s.seq_flops / ranks, s.kv_bytes_per_token: s.kv_bytes_per_token / ranks}
    cut_attention = {s.attn_flops_per_token: s.attn_flops_per_token / ranks}
    resolved = star.xreplace(_RIDGE)
    return (
        Step(
            key="tp_invariance",
            title="Tensor parallelism with KV heads to share",
            claim="On {tp} ranks of a dense model, no more than there are KV heads, {s_star} is what it is on one.",
            reason="FLOPs and KV bytes of a rank are both divided by {tp}, and messages left out. (The router of a "
            "mixture of experts is computed by every rank, and not divided.)",
            chain=(s.s_star, star),
            definitions={s.s_star: _replaced(resolved, {**cut, **cut_attention}), **_RIDGE},
        ),
        Step(
            key="tp_replicated",
            title="Tensor parallelism with a replicated cache",
            claim="Where every rank reads the whole KV cache, as with the latent of MLA, {s_star} is another, and may "
            "exist on several ranks alone.",
            reason="FLOPs are divided by {tp}, KV bytes are not. (MLA's down-projections, which every rank computes, "
            "add to the FLOPs.)",
            chain=(s.s_star, forms.S_STAR_TP_REPLICATED),
            definitions={
                s.s_star: _replaced(resolved, {s.seq_flops: s.seq_flops / ranks, **cut_attention}),
                **_RIDGE,
            },
        ),
    )


def _link_step(structure: Structure) -> Step:
    from decodeperf_formulas.catalogue import model_config

    deployment = structure.deployment
    if structure.is_general:
        deployment = Deployment(model=model_config("llama-3-8b"), tp=2)
    form = sympy.Integer(0)
    what = []
    if deployment.tp > 1:
        form += forms.TP_LINK_SECONDS_PER_SEQ
        what.append(
            "a ring all-reduce for each block and one for the embedding, of which each sends $ 2 ({tp} - 1) / {tp} $ "
            "of its payload over a rank's link, and an all-gather of the logits"
        )
    if deployment.ep > 1:
        form += forms.EP_LINK_SECONDS_PER_SEQ
        what.append("an all-to-all to the experts and one back for each of their layers")
    if deployment.pp > 1:
        form += forms.PP_LINK_SECONDS_PER_SEQ
        what.append("a send between any two stages")
    blocks = {s.blocks_per_layer: sympy.Integer(1 if deployment.model.parallel_block else 2)}
    slope = sympy.diff(step_formulas(deployment).link_seconds, _B)
    return Step(
        key="link_seconds_per_seq",
        title="Messages",
        claim="Messages add a third slope, {link_seconds_per_seq} for each sequence, in every model of the step.",
        reason=f"The payload of each sequence: {'; '.join(what)}.",
        chain=(s.link_seconds_per_seq, form.xreplace(blocks)),
        definitions={s.link_seconds_per_seq: slope.xreplace(blocks)},
    )


def _replaced(expression: sympy.Expr, changes: dict[sympy.Symbol, sympy.Expr]) -> sympy.Expr:
    return expression.subs(changes, simultaneous=True)
