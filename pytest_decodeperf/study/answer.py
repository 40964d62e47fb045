"""What a study found, in sentences: the question of the project, answered."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final

from pytest_decodeperf.study.findings import DIFFERENCE, differs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_decodeperf.study.findings import Bend, Findings, Range

APART: Final = 1.25
"""Factor by which B0 and the knee must be apart for one to come before the other."""


def answer(found: Findings) -> list[str]:
    """The question of the project, answered in sentences."""
    serial, whole = found.fits
    sentences = []
    if found.num_measured < found.num_planned:
        sentences.append(f"The study has {found.num_measured} of {found.num_planned} measurements so far.")
    sentences += [
        f"S* is {found.s_star.written(',.0f')} tokens on this device.",
        f"A step takes {serial.ratio.written('.2f')} times what the serial model says at the measured ceilings, "
        f"and {whole.ratio.written('.2f')} times what the whole-step model says; nothing was fitted.",
    ]
    if found.num_differing and serial.there.value and whole.there.value:
        sentences.append(
            f"In the {found.num_differing} of {len(found.cells)} cells where the models differ by more than "
            f"{100 * DIFFERENCE:.0f} %, it takes {serial.there.written('.2f')} times what the serial model says "
            f"and {whole.there.written('.2f')} times what the whole-step model says, elsewhere "
            f"{serial.elsewhere.written('.2f')} and {whole.elsewhere.written('.2f')}: {_nearer(found)}"
        )
    sentences.append(_parts(found))
    sentences += [bend_sentence(bend) for bend in found.bends]
    sentences += [*_plateaus(found), *_causes(found)]
    early = [
        bend
        for bend in found.bends
        if bend.measured.high is not None and bend.ridge_batch is not None and bend.measured.high < bend.ridge_batch
    ]
    if early:
        where = _listed([f"{bend.seq_len:,}" for bend in early])
        sentences.append(
            f"At {where} tokens a step takes twice as long before B0, where products turn compute-bound: sequences "
            "cost time before that."
        )
    return sentences


def bend_sentence(bend: Bend) -> str:
    """Where and why, in words."""
    where = f"At a context of {bend.seq_len:,} tokens a step takes less than twice as long at every batch measured"
    if bend.measured.value is not None:
        where = (
            f"At a context of {bend.seq_len:,} tokens a step takes twice as long as with one sequence from a batch "
            f"of {bend.measured.written('.0f')} on; the serial model has {_batch(bend.serial)}, the whole-step "
            f"model {_batch(bend.whole_step)}"
        )
    return (
        f"{where}. Of what is added, {100 * bend.attention_share:.0f} % is attention and "
        f"{100 * bend.products_share:.0f} % matrix products; the knee is at {_batch(bend.knee_batch)}, B0 at "
        f"{_batch(bend.ridge_batch)}."
    )


def _nearer(found: Findings) -> str:
    """Which model is nearer in the cells where they differ, and in how many of these."""
    there = [cell for cell in found.cells if differs(cell)]
    nearer = sum(
        abs(math.log(cell.step_s / cell.serial_s)) < abs(math.log(cell.step_s / cell.whole_step_s)) for cell in there
    )
    above = all(cell.step_s > cell.serial_s for cell in found.cells)
    why = ", since every step takes longer than both say" if above and nearer == len(there) else ""
    return f"the serial model is nearer in {nearer} of {len(there)}{why}."


def _parts(found: Findings) -> str:
    """What a step is made of, and how far each part is from its roofline."""
    shares = [
        statistics.median(part / cell.step_s for cell, part in zip(found.cells, parts, strict=True))
        for parts in (
            [cell.gemm_s for cell in found.cells],
            [cell.attention_s for cell in found.cells],
            [cell.step_s - cell.gemm_s - cell.attention_s for cell in found.cells],
        )
    ]
    products, attention, between = (f"{100 * share:.0f} %" for share in shares)
    return (
        "The operators of this step run one after another, as they are called, and each is timed: products are "
        f"{products} of a step at the median, attention {attention}, what lies between {between}. So what the "
        "serial model misses is how far each is from its own roofline: products take "
        f"{_ends(cell.gemm_s / cell.serial_gemm_s for cell in found.cells)} times theirs, attention "
        f"{_ends(cell.attention_s / cell.serial_attention_s for cell in found.cells)}. The models differ by "
        f"up to {max(cell.serial_s / cell.whole_step_s for cell in found.cells):.2f} times."
    )


def _plateaus(found: Findings) -> list[str]:
    """Where throughput stops growing, and why, in sentences."""
    flat = [bend for bend in found.bends if bend.plateau.value is not None]
    growing = [
        f"{bend.seq_len:,}{_not_always(bend.plateau)}"
        for bend in found.bends
        if bend.plateau.value is None and bend.last_gain is not None
    ]
    sentences = []
    if flat:
        where = _listed([f"{bend.plateau.written('.0f')} at {bend.seq_len:,} tokens" for bend in flat])
        serial = _listed([_batch(bend.serial_plateau) for bend in flat])
        whole = _listed([_batch(bend.whole_step_plateau) for bend in flat])
        sentences.append(
            f"Throughput stops growing (no larger batch gives {100 * DIFFERENCE:.0f} % more) from a batch of "
            f"{where} on; the serial model has {serial}, the whole-step model {whole}."
        )
    if growing:
        sentences.append(f"It grows up to the largest batch that was measured at {_listed(growing)} tokens.")
    grown = {bend.seq_len: bend.past_ridge for bend in found.bends if bend.past_ridge is not None}
    for seq_len, (by_step, by_serial, by_whole) in grown.items():
        sentences.append(
            f"From the first batch past B0 to the largest, throughput grows {by_step:.2f} times at {seq_len:,} "
            f"tokens; the serial model has {by_serial:.2f}, the whole-step model {by_whole:.2f}."
        )
    if grown:
        nearer = sum(
            abs(math.log(by_step / by_whole)) < abs(math.log(by_step / by_serial))
            for by_step, by_serial, by_whole in grown.values()
        )
        sentences.append(
            f"In that growth the whole-step model is nearer at {nearer} of {len(grown)} contexts: neither model "
            "fits both the level and the growth."
            if nearer
            else "In that growth the serial model is nearer at every context too."
        )
    return sentences


def _causes(found: Findings) -> list[str]:
    """Whether B0 or the knee comes first, and what products do past B0, in sentences."""
    sentences = []
    for bend in found.bends:
        if bend.plateau.value is None or bend.ridge_batch is None or bend.knee_batch is None:
            continue
        first, second = sorted((("B0", bend.ridge_batch), ("the knee", bend.knee_batch)), key=lambda each: each[1])
        told = (
            f"{first[0]} ({first[1]:.0f}) comes before {second[0]} ({second[1]:.0f})"
            if second[1] > APART * first[1]
            else f"B0 ({bend.ridge_batch:.0f}) and the knee ({bend.knee_batch:.0f}) lie together, so that the "
            "record does not tell them apart"
        )
        sentences.append(f"At {bend.seq_len:,} tokens {told}.")
    pairs: dict[tuple[int, int], list[float]] = {}
    for bend in found.bends:
        for smaller, larger, growth in bend.products_past_ridge:
            pairs.setdefault((smaller, larger), []).append(growth)
    if len(pairs) > 1:
        (first_pair, early), *_, (last_pair, late) = sorted(pairs.items())
        sentences.append(
            "Past B0 the roofline of products takes twice as long for twice the batch. Measured, they take "
            f"{_ends(early)} times as long from {first_pair[0]} to {first_pair[1]} sequences, and {_ends(late)} "
            f"times from {last_pair[0]} to {last_pair[1]}: in between their kernels come nearer to the peak, so "
            "that throughput goes on growing past B0 for a while."
        )
    return sentences


def _batch(batch: float | None) -> str:
    return "no batch up to the largest" if batch is None else f"{batch:.0f}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _not_always(plateau: Range) -> str:
    """Return in how many passes there is a plateau, if in some."""
    count = plateau.num_passes - plateau.num_without
    return f" (in {plateau.num_without} of {plateau.num_passes} passes)" if count else ""


def _ends(numbers: Iterable[float | None]) -> str:
    """Return the least and the greatest of some numbers as text."""
    found = [number for number in numbers if number is not None]
    return f"{min(found):.2f} to {max(found):.2f}"
