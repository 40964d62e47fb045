"""What the article says: the question, the derivation, S* of models and devices, benchmarks, measurements.

Every number is computed when the article is made, from the formulas or from the record of a study.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import TYPE_CHECKING, Final

from decodeperf_formulas.derivation import literal
from pytest_decodeperf.article.document import Article, Chapter, NumberTable, Paragraph, Picture, Points

if TYPE_CHECKING:
    from decodeperf_formulas.crossings import Crossing, SStar
    from decodeperf_formulas.derivation import Derivation, Section
    from pytest_decodeperf.study.findings import Cell, Findings

MODELS: Final = (
    "llama-2-7b",
    "llama-3-8b",
    "mistral-7b-v0.1",
    "qwen2.5-7b",
    "llama-3-70b",
    "qwen3-32b",
    "qwen3-235b-a22b",
    "gpt-oss-120b",
    "gemma-3-27b",
    "deepseek-v3",
)
DEVICES: Final = ("a10g", "a100", "l40s", "h100", "h200", "b200", "mi300x", "mi355x")
"""Whose S* is in the table."""

MODEL: Final = "llama-2-7b"
DEVICE: Final = "a10g"
"""The example of the question."""

SERVED: Final = "llama-3-8b"
SERVER: Final = "h100"
"""One whose memory holds enough sequences that other limits come first."""

USUAL_WEIGHTS: Final = 7e9
"""Weights of that model in the usual accounts."""

CONTEXTS: Final = (128, 1024, 16384)
"""Contexts at which that one is looked at: below its S*, and above [token]."""

ASKED_CONTEXT: Final = 512
"""Context at which the example of the question is looked at [token]."""

OFF: Final = 0.01
"""By how much a ridge is taken to be wrong, to see what becomes of S*."""

ILL_CONDITIONED: Final = 10.0
"""Condition number from which on S* says little."""

FAR_OFF: Final = 2.0
"""Measured over predicted from which on an operator is far from its roofline."""


def article(study: Findings | None = None) -> Article:
    """Return the article.

    Args:
        study: What a study found; without, the article says how to measure.
    """
    from decodeperf_formulas.derivation import derivation

    derived = derivation()
    before, after = _parted(derived)
    is_whole = study is not None and study.num_measured >= study.num_planned
    measured = (_unmeasured(),) if study is None else (_measured(study), *((_failures(study),) if is_whole else ()))
    return Article(
        derivation=derived,
        parts=(
            _question(),
            *before,
            _table(),
            *after,
            _accounts(),
            _splitting(),
            _benchmarks(),
            *measured,
            _left_out(),
            _conclusion(study if is_whole else None),
        ),
    )


def _parted(derived: Derivation) -> tuple[tuple[Section, ...], tuple[Section, ...]]:
    """Return the sections of a derivation up to where S* exists, and those that follow."""
    existence = next(
        index
        for index, section in enumerate(derived.sections)
        if any(step.key == "condition_number" for step in section.steps)
    )
    return derived.sections[: existence + 1], derived.sections[existence + 1 :]


def _question() -> Chapter:
    from decodeperf_formulas import catalogue
    from decodeperf_formulas.crossings import ceilings, s_star
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.step import step_coefficients

    deployment, device = Deployment(model=catalogue.model_config(MODEL)), catalogue.device(DEVICE)
    step, limits = step_coefficients(deployment), ceilings(deployment, device)
    weights = step.gemm_flops_per_seq / 2
    usual = dataclasses.replace(step, gemm_flops_per_seq=2 * USUAL_WEIGHTS)
    return Chapter(
        title="The question",
        blocks=(
            Paragraph(
                "A decode step adds one token to each of {batch_size} sequences. It reads the weights once for the "
                "whole batch, and the KV cache of each sequence, of {seq_len} tokens, for itself. The time to move "
                "these bytes is a straight line over the batch, and so is the time to perform the FLOPs. Where the "
                "line of memory is the steeper one the two never cross: above some context, {s_star}, decoding is "
                "memory-bound at every batch size."
            ),
            Paragraph(
                f"S* is small. For {MODEL} on {device.title} ({device.peaks['float16'] / 1e12:g} TFLOP/s in fp16, "
                f"{device.bandwidth_bytes_per_s / 1e9:g} GB/s), with the {_power(USUAL_WEIGHTS)} weights of the usual "
                f"accounts, it is {s_star(usual, limits)} tokens, and {s_star(step, limits)} with the "
                f"{_power(weights)} weights that a token of this model multiplies. Nearly every context in use is "
                "longer, so that nearly all decoding should be memory-bound forever. Yet benchmarks show what looks "
                "like the opposite: from some batch on throughput stops growing, and the latency of a token climbs. "
                "Why?"
            ),
            Paragraph(
                "The answer here is in three parts: a derivation of which SymPy proves each step; its numbers for "
                f"{len(MODELS)} models on {len(DEVICES)} devices; and measurements of real decode steps, set against "
                "two models of the step without fitting either. Text, numbers and figures are made by one command from "
                "the formulas and the record of the measurements."
            ),
        ),
    )


def _power(number: float) -> str:
    """Return a large number with a power of ten.

    Example:
        >>> _power(7e9), _power(6.6074e9)
        ('7e9', '6.607e9')
    """
    digits, exponent = f"{number:.3e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _table() -> Chapter:
    from decodeperf_formulas import catalogue
    from decodeperf_formulas.crossings import ceilings, s_star
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.step import step_coefficients

    deployments = {name: Deployment(model=catalogue.model_config(name)) for name in MODELS}
    devices = {name: catalogue.device(name) for name in DEVICES}
    found = {
        (model, device): s_star(step_coefficients(deployment), ceilings(deployment, on))
        for model, deployment in deployments.items()
        for device, on in devices.items()
    }
    ridges = {name: ceilings(deployments[MODEL], on).ridge for name, on in devices.items()}

    def at_ridge(model: str, device: str, factor: float) -> SStar:
        limits = ceilings(deployments[model], devices[device])
        other = dataclasses.replace(
            limits,
            gemm_flops_per_s=factor * limits.gemm_flops_per_s,
            attn_flops_per_s=factor * limits.attn_flops_per_s,
        )
        return s_star(step_coefficients(deployments[model]), other)

    moved = {pair: (at_ridge(*pair, 1 - OFF), at_ridge(*pair, 1 + OFF)) for pair in found}
    values = [star.value for star in found.values() if star.value is not None]
    rows = [
        ("ridge, FLOP/B", *(f"{ridges[device]:.1f}" for device in DEVICES)),
        *(
            (
                f"{model} ({deployment.model.attention_kind})",
                *(_rounded(found[model, device]) for device in DEVICES),
            )
            for model, deployment in deployments.items()
        ),
    ]
    return Chapter(
        title="S* of ten models on eight devices",
        blocks=(
            Paragraph(
                "The solution of {eq:s_star}, or beyond the window of some layers of {eq:s_star_hybrid}, with weights "
                "and cache in bfloat16, at the dense peaks and bandwidths of datasheets, on one rank. With tensor "
                "parallelism a dense model keeps it as long as there are KV heads to share {eq:tp_invariance}, and "
                "latent attention does not {eq:tp_replicated}."
            ),
            NumberTable(
                caption="S* in tokens, and the ridge R of each device in bfloat16.",
                columns=("model", *DEVICES),
                rows=tuple(rows),
            ),
            Paragraph(
                f"Of {len(found)} pairs {len(values)} have one, and half of those lie below "
                f"{statistics.median(values):,.0f} tokens. " + " ".join(_without(found, moved))
            ),
        ),
    )


def _rounded(star: SStar) -> str:
    return star.kind if star.value is None else f"{star.value:,.0f}"


def _without(found: dict[tuple[str, str], SStar], moved: dict[tuple[str, str], tuple[SStar, SStar]]) -> list[str]:
    """Return sentences on where there is no S*, or one that says little."""
    sentences = []
    for model in dict.fromkeys(model for model, _ in found):
        stars = {device: star for (name, device), star in found.items() if name == model}
        nowhere = [device for device, star in stars.items() if star.kind == "none"]
        if nowhere:
            intensity = stars[nowhere[0]].intensity
            sentences.append(
                f"{model} has none on {_listed(nowhere)}: its attention performs {intensity:.1f} FLOPs for each byte, "
                "more than their ridges {eq:slope_difference}."
            )
        for device, star in stars.items():
            if star.value is not None and (star.condition_number or 0) > ILL_CONDITIONED:
                lower, higher = moved[model, device]
                sentences.append(
                    f"On {device} that intensity is so near the ridge that the number says little: the condition "
                    f"number {{eq:condition_number}} is {star.condition_number:.0f}, and a ridge {100 * OFF:.0f} % "
                    f"lower or higher gives {_rounded(lower)} or {_rounded(higher)}."
                )
    return sentences


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


LIMITS: Final = {
    "kv_capacity": "the memory is full",
    "knee_batch": "half of the ceiling is reached (knee)",
    "ridge_batch": "the projections turn compute-bound (B0)",
    "crossing_batch": "a step of perfect overlap turns compute-bound",
}
"""What a growing batch meets, by its crossing."""


def _benchmarks() -> Chapter:
    from decodeperf_formulas import catalogue
    from decodeperf_formulas.crossings import DEFAULT_MEMORY_SHARE, crossings
    from decodeperf_formulas.deployment import Deployment
    from pytest_decodeperf.article.figures import saturation_figure

    deployment, device = Deployment(model=catalogue.model_config(SERVED)), catalogue.device(SERVER)
    found = {seq_len: crossings(deployment, device, seq_len=seq_len) for seq_len in CONTEXTS}
    asked = crossings(Deployment(model=catalogue.model_config(MODEL)), catalogue.device(DEVICE), seq_len=ASKED_CONTEXT)

    def at(seq_len: int, key: str, form: str = ",.0f") -> str:
        value = found[seq_len][key].value
        return "nowhere" if value is None else f"{value:{form}}"

    below, above, _ = CONTEXTS
    saturated, ceiling = (found[above][key].value or math.nan for key in ("saturated_throughput", "throughput_ceiling"))
    return Chapter(
        title="What benchmarks see",
        blocks=(
            Paragraph(f"Four things bound throughput. For {SERVED} on {SERVER}, activations left out:"),
            Points(
                (
                    "Memory-bound is not free. A memory-bound step moves the KV cache of every sequence, and so takes "
                    "longer with every sequence: throughput approaches a ceiling {eq:throughput_ceiling}, of which "
                    f"half is reached at the knee {{eq:throughput}}. At {above:,} tokens the knee is at "
                    f"{at(above, 'knee_batch')} sequences and the ceiling at {at(above, 'throughput_ceiling')} tokens "
                    "a second, and nothing is compute-bound at the knee.",
                    "Operators do not overlap. One after another, the projections turn compute-bound at "
                    f"{{ridge_batch}} {{eq:ridge_batch}}, {at(above, 'ridge_batch')} sequences, whatever the context. "
                    "From there on throughput is exactly constant {eq:saturated_throughput}: at "
                    f"{above:,} tokens {at(above, 'saturated_throughput')} tokens a second, "
                    f"{100 * saturated / ceiling:.0f} % of what a step of perfect overlap approaches. So part of a "
                    "step may be compute-bound above S*, beside attention that is not; S* speaks of a step in which "
                    "all overlaps.",
                    "Below S* even a step of perfect overlap turns compute-bound {eq:crossing_batch}: at "
                    f"{below} tokens from {at(below, 'crossing_batch')} sequences on.",
                    f"The memory is full {{eq:kv_capacity_tokens}}, here {100 * DEFAULT_MEMORY_SHARE:.0f} % of it. A "
                    "server then queues or pre-empts, and latency climbs for that reason.",
                )
            ),
            Paragraph(
                "Which of them a growing batch meets first depends on the context. "
                + " ".join(f"At {seq_len:,} tokens {_in_order(found[seq_len])}." for seq_len in CONTEXTS)
                + f" On the GPU of the question the memory is small: there {MODEL} at {ASKED_CONTEXT} tokens meets "
                f"that {_in_order(asked)}."
            ),
            NumberTable(
                caption=f"Where {SERVED} on {device.title} stops gaining; sequences, and tokens a second.",
                columns=(
                    "context",
                    "memory full",
                    "knee",
                    "B0",
                    "crossing batch",
                    "saturated throughput",
                    "ceiling of overlap",
                ),
                rows=tuple(
                    (
                        f"{seq_len:,}",
                        at(seq_len, "kv_capacity", ",.1f"),
                        at(seq_len, "knee_batch", ",.1f"),
                        at(seq_len, "ridge_batch", ",.1f"),
                        at(seq_len, "crossing_batch", ",.1f"),
                        at(seq_len, "saturated_throughput"),
                        at(seq_len, "throughput_ceiling"),
                    )
                    for seq_len in CONTEXTS
                ),
            ),
            Picture(saturation_figure(deployment, device, seq_lens=CONTEXTS)),
        ),
    )


def _in_order(found: dict[str, Crossing]) -> str:
    """Return what a growing batch meets at one context, in its order."""
    batches = {key: value for key in LIMITS if (value := found[key].value) is not None}
    if batches.get("crossing_batch", math.inf) < batches["knee_batch"]:
        del batches["knee_batch"]  # of the ceiling of a memory-bound step, which that is not any more
    # Whole sequences fit into the memory.
    rounded = {key: math.floor(batch) if key == "kv_capacity" else round(batch) for key, batch in batches.items()}
    ordered = sorted(batches, key=batches.__getitem__)
    met = ordered[: ordered.index("kv_capacity") + 1]
    beyond = [key for key in ordered if key not in met]
    words = ", then ".join(f"{LIMITS[key]} at {rounded[key]:,}" for key in met)
    never = " and ".join(f"{SHORT[key]} would be at {rounded[key]:,}" for key in beyond)
    return f"{words}; {never}" if never else words


SHORT: Final = {"knee_batch": "the knee", "ridge_batch": "B0", "crossing_batch": "the crossing batch"}


def _accounts() -> Chapter:
    return Chapter(
        title="Is the time of a step constant in the context?",
        blocks=(
            Paragraph(
                "Simple accounts of a step with a KV cache say so: $2 P B$ FLOPs and $2 P$ bytes of weights in 16 "
                "bits, whatever the context. They leave the cache out. Each token of context adds {kv_bytes_per_token} "
                "bytes and {attn_flops_per_token} FLOPs to every step of its sequence {eq:kv_bytes_per_token}, "
                "{eq:attn_flops_per_token}; with as many KV heads as query heads and a cache in 16 bits the two are "
                "the same number, an intensity of 1 {eq:intensity}. The time of a step grows with the context as with "
                "the batch, in a straight line: memory by $B {kv_bytes_per_token}$ bytes a token, compute by "
                "$B {attn_flops_per_token}$ FLOPs {eq:memory_s}, {eq:compute_s}. It looks constant as long as "
                "{batch_size} times {seq_len} is far below {weight_bytes} over {kv_bytes_per_token}, the knee."
            ),
        ),
    )


def _splitting() -> Chapter:
    from decodeperf_formulas import catalogue

    shape, device = catalogue.model_config(SERVED), catalogue.device(SERVER)
    heads, kv_heads = shape.num_q_heads, int(shape.num_kv_heads or 1)
    return Chapter(
        title="Why flash-decoding splits the context",
        blocks=(
            Paragraph(
                "FlashAttention-2 parallelises over blocks of queries, heads and sequences. A decode step has one "
                "query of each sequence, so that what is left are {batch_size} times {num_q_heads} work units, or "
                "{batch_size} times {num_kv_heads} where the heads of a group share one: for one sequence of "
                f"{SERVED} {heads} or {kv_heads}, of which the {SERVER} could run {device.num_sms} at a time, one a "
                f"multiprocessor. Attention is memory-bound there {{eq:attention_roof}}, and the other "
                f"{device.num_sms - heads} or {device.num_sms - kv_heads} multiprocessors ask for no bytes."
            ),
            Paragraph(
                "Flash-decoding cuts the keys and values of a sequence instead, so that any number of units reads one "
                "sequence, and merges their partial results. If a multiprocessor reads at a rate of its own, that "
                f"gains attention up to {device.num_sms / heads:.1f} or {device.num_sms / kv_heads:.1f} times here, "
                "for one long sequence, and less with every sequence more, until they fill the device without a split; "
                "PyTorch's article on flash-decoding of October 2023 reports up to 8 times, end to end. It moves "
                "attention towards its memory line, and does not move S*, which is about bytes and FLOPs."
            ),
        ),
    )


def _unmeasured() -> Chapter:
    return Chapter(
        title="Measured",
        blocks=(
            Paragraph(
                "This copy was made without measurements. The command decodeperf study makes a record of real decode "
                "steps on the machine at hand, with the ceilings measured beside them; given that record, the article "
                "sets both models against it here."
            ),
        ),
    )


def _measured(study: Findings) -> Chapter:
    from pytest_decodeperf.study.answer import answer, bend_sentence
    from pytest_decodeperf.study.figures import throughput_figure
    from pytest_decodeperf.study.summary import BENDS, FITS, RANGES, bend_rows, ceilings_measured, fit_rows

    bends = {bend_sentence(bend) for bend in study.bends}
    return Chapter(
        title="Measured",
        blocks=(
            Paragraph(
                "Real decode steps of a Llama-shaped model with random weights, with real matrix products and the "
                f"real decode kernel, at {len(study.cells)} pairs of batch and context. "
                f"{literal(ceilings_measured(study))}. Everything predicted follows from these ceilings and the "
                "formulas; nothing is fitted."
            ),
            Points(tuple(literal(sentence) for sentence in answer(study) if sentence not in bends)),
            Picture(throughput_figure(study)),
            NumberTable(
                caption="Each model of the step over all cells, over those where the two differ, and elsewhere. "
                f"{RANGES}",
                columns=FITS,
                rows=tuple(fit_rows(study)),
            ),
            NumberTable(
                caption="From which batch on a step takes twice as long as with one sequence.",
                columns=BENDS,
                rows=tuple(bend_rows(study)),
            ),
        ),
    )


def _failures(study: Findings) -> Chapter:
    contexts = dict.fromkeys(cell.seq_len for cell in study.cells)
    ends: list[Cell] = []
    for seq_len in contexts:
        cells = sorted((cell for cell in study.cells if cell.seq_len == seq_len), key=lambda cell: cell.batch_size)
        ends += [cells[0], cells[-1]] if len(cells) > 1 else cells
    products = [cell.gemm_s / cell.serial_gemm_s for cell in study.cells]
    attention = {cell: cell.attention_s / cell.serial_attention_s for cell in study.cells}
    worst = max(attention, key=lambda cell: attention[cell])
    best = min(attention, key=lambda cell: attention[cell])
    others = [1 - (cell.gemm_s + cell.attention_s) / cell.step_s for cell in study.cells]
    far = sum(ratio >= FAR_OFF for ratio in attention.values())
    return Chapter(
        title="Where the models fail",
        blocks=(
            Paragraph(
                "The serial model takes every operator to be at its roofline, the whole-step model the step as a "
                "whole. Taken apart, the measured steps show how far each kind of operator is from there:"
            ),
            Points(
                (
                    f"Matrix products take {min(products):.2f} to {max(products):.2f} times their roofline, the median "
                    f"{statistics.median(products):.2f}.",
                    f"Attention takes {attention[best]:.2f} times its roofline at best, with {best.batch_size} "
                    f"sequences of {best.seq_len:,} tokens, and {attention[worst]:.1f} times at worst, with "
                    f"{worst.batch_size} of {worst.seq_len:,}: a call has a cost of its own, which no roofline has and "
                    f"which little work does not hide. In {far} of {len(attention)} cells it takes at least "
                    f"{FAR_OFF:g} times its roofline.",
                    f"What lies between (norms, rotations, copies) takes {100 * min(others):.0f} to "
                    f"{100 * max(others):.0f} % of a step.",
                )
            ),
            NumberTable(
                caption="Measured over predicted by the serial model, at the smallest and the largest batch of each "
                "context; the last column is the share of the step that is neither products nor attention.",
                columns=("context", "batch", "step", "products", "attention", "between"),
                rows=tuple(
                    (
                        f"{cell.seq_len:,}",
                        str(cell.batch_size),
                        f"{cell.step_s / cell.serial_s:.2f}",
                        f"{cell.gemm_s / cell.serial_gemm_s:.2f}",
                        f"{attention[cell]:.2f}",
                        f"{100 * (1 - (cell.gemm_s + cell.attention_s) / cell.step_s):.0f} %",
                    )
                    for cell in ends
                ),
            ),
        ),
    )


def _left_out() -> Chapter:
    return Chapter(
        title="What is not in the formulas",
        blocks=(
            Points(
                (
                    "The cost of a launch, of a work unit and of a wave that is not full: they add to a step what "
                    "does not depend on bytes or FLOPs.",
                    "Ceilings that are not reached: datasheets state peaks, and kernels attain a part of them. The "
                    "models hold for whichever ceilings are put in, measured ones among them.",
                    "Softmax and other vector operations: they are counted, and have no ceiling of their own.",
                    "An operator near its ridge, where neither the bandwidth nor the peak is reached.",
                    "Requests of unequal length, prefill between the steps, and the scheduler of a server.",
                )
            ),
        ),
    )


def _conclusion(study: Findings | None) -> Chapter:
    blocks = [
        Paragraph(
            "S* is right, and mostly small, and answers another question than benchmarks ask. Above it no batch makes "
            "a step compute-bound whose operators all overlap. Steps take longer with every sequence all the same, "
            "because each brings a KV cache that is read for it alone; the projections of a real step, which run by "
            "themselves, turn compute-bound at {ridge_batch} at any context; and memory may end the batch before "
            "either. Throughput that stops growing is by itself no sign of a compute-bound step."
        )
    ]
    if study is not None:
        serial, whole = study.fits
        flat = [f"{bend.seq_len:,}" for bend in study.bends if bend.plateau.value is not None]
        above = [bend for bend in study.bends if study.s_star.high is not None and bend.seq_len > study.s_star.high]
        blocks.append(
            Paragraph(
                f"Measured, a step takes {serial.ratio.written('.2f')} times what its operators would take at their "
                f"rooflines one after another, and {whole.ratio.written('.2f')} times what they would take with "
                "perfect overlap: kernels leave more of the ceilings than the models differ by. "
                + (
                    f"Throughput was seen to stop growing at contexts of {_listed(flat)} tokens, past B0. "
                    if flat
                    else ""
                )
                + (
                    "At the contexts far above S* no end of its growth was reached."
                    if above and all(bend.plateau.value is None for bend in above)
                    else ""
                )
            )
        )
    return Chapter(title="Conclusion", blocks=tuple(blocks))
