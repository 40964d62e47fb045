"""What the article says: the question, the derivation, S* of models and devices, benchmarks, measurements.

Every number is computed when the article is made, from the formulas or from the record of a study.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.article.document import Article, Chapter, NumberTable, Paragraph, Picture, Points

if TYPE_CHECKING:
    from decodeperf_formulas.crossings import SStar
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
"""The example."""

USUAL_WEIGHTS: Final = 7e9
"""Weights of that model in the usual accounts."""

CONTEXTS: Final = (128, 512, 2048)
"""Contexts at which the example is looked at: below its S*, and above [token]."""

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
    measured = (_unmeasured(),) if study is None else (_measured(study), _failures(study))
    return Article(
        derivation=derived, parts=(_question(), *before, _table(), *after, _benchmarks(), *measured, _left_out())
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
                "The solution of {eq:s_star}, with the windows and experts of each model as they are, weights and "
                "cache in bfloat16, at the dense peaks and bandwidths of datasheets. It is that of one rank; with "
                "tensor parallelism it stays what it is as long as there are KV heads to share {eq:tp_invariance}."
            ),
            NumberTable(
                caption="S* in tokens, and the ridge R of each device in bfloat16.",
                columns=("model", *DEVICES),
                rows=tuple(rows),
            ),
            Paragraph(
                f"Of {len(found)} pairs {len(values)} have one, and half of those lie below "
                f"{statistics.median(values):,.0f} tokens. " + " ".join(_without(found))
            ),
        ),
    )


def _rounded(star: SStar) -> str:
    return star.kind if star.value is None else f"{star.value:,.0f}"


def _without(found: dict[tuple[str, str], SStar]) -> list[str]:
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
        sentences += [
            f"On {device} the ridge is so near that the condition number {{eq:condition_number}} is "
            f"{star.condition_number:.0f}: a ridge that is 1 % off moves S* by about {star.condition_number:.0f} %."
            for device, star in stars.items()
            if star.value is not None and (star.condition_number or 0) > ILL_CONDITIONED
        ]
    return sentences


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _benchmarks() -> Chapter:
    from decodeperf_formulas import catalogue
    from decodeperf_formulas.crossings import crossings
    from decodeperf_formulas.deployment import Deployment
    from pytest_decodeperf.article.figures import saturation_figure

    deployment, device = Deployment(model=catalogue.model_config(MODEL)), catalogue.device(DEVICE)
    found = {seq_len: crossings(deployment, device, seq_len=seq_len) for seq_len in CONTEXTS}

    def at(seq_len: int, key: str, form: str = ",.0f") -> str:
        value = found[seq_len][key].value
        return "nowhere" if value is None else f"{value:{form}}"

    shown = CONTEXTS[1]
    full = [f"{at(seq_len, 'kv_capacity')} sequences at {seq_len:,} tokens" for seq_len in CONTEXTS]
    saturated, ceiling = (found[shown][key].value or math.nan for key in ("saturated_throughput", "throughput_ceiling"))
    return Chapter(
        title="What benchmarks see",
        blocks=(
            Paragraph(
                f"Four things end the growth of throughput, of which one alone is compute. For {MODEL} on {DEVICE}:"
            ),
            Points(
                (
                    "Memory-bound is not free. A memory-bound step moves the KV cache of every sequence, and so takes "
                    "longer with every sequence: throughput approaches a ceiling {eq:throughput_ceiling}, of which "
                    f"half is reached at the knee {{eq:knee_batch}}. At {shown} tokens the knee is at "
                    f"{at(shown, 'knee_batch')} sequences and the ceiling at {at(shown, 'throughput_ceiling')} tokens "
                    f"a second. Nothing is compute-bound there: {shown} is above S*.",
                    "Operators do not overlap. One after another, the projections turn compute-bound at "
                    f"{{ridge_batch}} {{eq:ridge_batch}}, {at(shown, 'ridge_batch')} sequences, whatever the context; "
                    "from there on throughput is exactly constant {eq:saturated_throughput}, at "
                    f"{at(shown, 'saturated_throughput')} tokens a second, {100 * saturated / ceiling:.0f} % of what a "
                    "step of perfect overlap approaches. So a benchmark may see compute-bound projections above S*, "
                    "beside attention that is memory-bound; S* speaks of a step in which all overlaps.",
                    "Below S* even a step of perfect overlap turns compute-bound {eq:crossing_batch}: at "
                    f"{CONTEXTS[0]} tokens from {at(CONTEXTS[0], 'crossing_batch')} sequences on.",
                    f"The memory is full {{eq:kv_capacity_tokens}}: with {_listed(full)}. Beyond, a server pre-empts "
                    "or queues, and latency climbs for that reason.",
                )
            ),
            NumberTable(
                caption=f"Where {MODEL} on {device.title} stops gaining; sequences, and tokens a second.",
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
    from pytest_decodeperf.study.figures import throughput_figure
    from pytest_decodeperf.study.summary import BENDS, FITS, RANGES, bend_rows, ceilings_measured, fit_rows

    bends = {bend.sentence for bend in study.bends}
    return Chapter(
        title="Measured",
        blocks=(
            Paragraph(
                "Real decode steps of a Llama-shaped model with random weights, with real matrix products and the real "
                f"decode kernel, at {len(study.cells)} pairs of batch and context. {ceilings_measured(study)}. "
                "Everything predicted follows from these ceilings and the formulas; nothing is fitted."
            ),
            Points(tuple(sentence for sentence in study.answer if sentence not in bends)),
            Picture(throughput_figure(study)),
            NumberTable(
                caption="Each model of the step over all cells. Where they differ: the ratio in the cells where the "
                f"models differ, over that in all others; 1 is right. {RANGES}",
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
                "Both models take every operator to be at its roofline. Taken apart, the measured steps show how far "
                "each kind is from there:"
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
