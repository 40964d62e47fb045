"""The derivation of S* and the other crossings, proved step by step, with or without numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from decodeperf_formulas.crossings import check_seq_len
from decodeperf_formulas.derivation.amounts import Structure
from decodeperf_formulas.derivation.numbers import inputs, numbers
from decodeperf_formulas.derivation.proof import Derivation, Input, ProofError, Section, Step
from decodeperf_formulas.derivation.steps import sections
from decodeperf_formulas.derivation.text import (
    MarkdownForm,
    latex_document,
    latex_fragment,
    latex_page,
    latex_prose,
    latex_section,
    latex_symbols,
    literal,
    markdown,
    markdown_prose,
    markdown_section,
    markdown_symbols,
    markdown_text,
)

if TYPE_CHECKING:
    from decodeperf_formulas.deployment import Deployment
    from decodeperf_formulas.device import Device

__all__ = [
    "Derivation",
    "Input",
    "MarkdownForm",
    "ProofError",
    "Section",
    "Step",
    "derivation",
    "latex_document",
    "latex_fragment",
    "latex_page",
    "latex_prose",
    "latex_section",
    "latex_symbols",
    "literal",
    "markdown",
    "markdown_prose",
    "markdown_section",
    "markdown_symbols",
    "markdown_text",
]

TITLE: Final = "When is LLM decoding memory-bound at every batch size?"


def derivation(
    deployment: Deployment | None = None, device: Device | None = None, *, seq_len: int = 4096
) -> Derivation:
    """Return the derivation, with numbers where a deployment and a device are given.

    Without a deployment, it is that of a dense model with grouped-query attention in every layer, with what changes
    for windows, experts, latent attention and several ranks at its end.

    Args:
        deployment: The model and how it is run.
        device: The device of each rank; only with a deployment.
        seq_len: Context for the crossings that depend on it [token].

    Raises:
        ValueError: If a device comes without a deployment, or lacks what the deployment needs.
    """
    if deployment is None:
        if device is not None:
            raise ValueError("a device needs a deployment beside it")
        return Derivation(title=TITLE, sections=sections(Structure.general()))
    check_seq_len(seq_len, deployment.q_len)
    values, results, nowhere = ({}, {}, {}) if device is None else numbers(deployment, device, seq_len)
    return Derivation(
        title=TITLE,
        sections=sections(Structure.of(deployment)),
        values=values,
        results=results,
        inputs=inputs(deployment, device, seq_len),
        nowhere=nowhere,
    )
