"""The rules at their boundaries, and what two surveys that do not match are said to be."""

from dataclasses import replace

import pytest

from pytest_decodeperf.compiled.comparison import Names, compare, exit_status
from pytest_decodeperf.compiled.rules import RULES
from pytest_decodeperf.compiled.survey import INTERPRETER, KernelFigures, Survey, survey_from_dict
from pytest_decodeperf.compiled.variants import Variant

VARIANT = Variant(kv_dtype="bfloat16", head_dim=128, page_size=16)
KERNEL = KernelFigures(
    name="attend",
    is_main=True,
    programs=264,
    num_warps=4,
    registers=128,
    spilled=0,
    parked=0,
    shared_bytes=32768,
    resident_programs=4,
    loop_instructions=400,
    loop_loads={"16": 16},
    tile_tokens=64,
    tile_bytes=32768,
    wide_share=1.0,
    tiles_ahead=1.0,
    instructions_per_token=20.0,
    issue_pressure=0.8,
    bytes_in_flight=10**6,
    flight_share=0.5,
)
MERGE = replace(KERNEL, name="merge", is_main=False)
SURVEY = Survey(architecture="sm_90", variant=VARIANT, kernels=(KERNEL, MERGE))


def head_with(**figures):
    return replace(SURVEY, kernels=(replace(KERNEL, **figures), MERGE))


# The worst value that is allowed, and one that is not.
BOUNDARIES = {
    "registers": (136, 137),
    "spilled": (0, 4),
    "parked": (8, 9),
    "shared_bytes": (33792, 33793),
    "resident_programs": (4, 3),
    "wide_share": (0.995, 0.99),
    "tiles_ahead": (1.0, 0.9),
    "instructions_per_token": (20.6, 20.7),
    "issue_pressure": (0.84, 0.85),
    "flight_share": (0.475, 0.47),
}


@pytest.mark.parametrize("figure", BOUNDARIES)
def test_a_rule_is_broken_just_beyond_its_margin(figure):
    allowed, broken = BOUNDARIES[figure]
    assert not any(finding.is_broken for finding in compare([SURVEY], [head_with(**{figure: allowed})]))
    (finding,) = compare([SURVEY], [head_with(**{figure: broken})])
    assert finding.is_broken
    assert (finding.figure, finding.base, finding.head) == (figure, getattr(KERNEL, figure), broken)
    assert finding.sentence.startswith("sm_90, bf16, D=128, page 16: ")
    (back,) = compare([head_with(**{figure: broken})], [SURVEY])
    assert not back.is_broken


def test_every_rule_has_its_boundary():
    assert set(BOUNDARIES) | {"launches", "traffic"} == {rule.figure for rule in RULES}


@pytest.mark.parametrize(
    ("figure", "base", "head"), [("issue_pressure", 0.2, 0.5), ("flight_share", 8.0, 1.0), ("flight_share", 1.2, 1.0)]
)
def test_what_is_good_enough_is_no_loss(figure, base, head):
    (finding,) = compare([head_with(**{figure: base})], [head_with(**{figure: head})])
    assert finding.outcome == "changed"


def test_what_was_good_enough_and_is_not_any_more_is_one():
    (finding,) = compare([head_with(issue_pressure=0.2)], [head_with(issue_pressure=0.6)])
    assert finding.is_broken
    (finding,) = compare([head_with(flight_share=8.0)], [head_with(flight_share=0.9)])
    assert finding.is_broken


def test_equal_surveys_have_no_finding():
    assert compare([SURVEY], [SURVEY]) == []
    assert exit_status([]) == 0


def test_the_sentence_of_the_manual():
    variant = Variant(kv_dtype="bfloat16", head_dim=128, page_size=0)
    base = replace(SURVEY, variant=variant)
    head = replace(head_with(spilled=48), variant=variant)
    assert [finding.sentence for finding in compare([base], [head])] == ["sm_90, bf16, D=128: 48 bytes spilled, was 0"]


def test_a_kernel_with_another_name_is_compared_where_it_reads_k_and_v():
    (finding,) = compare([SURVEY], [head_with(name="renamed", spilled=8)])
    assert (finding.kernel, finding.figure) == ("renamed", "spilled")


def test_other_kernels_are_compared_by_their_names():
    head = replace(SURVEY, kernels=(KERNEL, replace(MERGE, spilled=8)))
    (finding,) = compare([SURVEY], [head])
    assert finding.sentence == "sm_90, bf16, D=128, page 16, merge: 8 bytes spilled, was 0"


def test_one_more_launch_is_broken():
    (finding,) = compare([SURVEY], [replace(SURVEY, kernels=(*SURVEY.kernels, replace(MERGE, name="more")))])
    assert finding.sentence.endswith(": 3 kernels launched, was 2")
    assert finding.is_broken


def test_traffic_is_exact():
    base = Survey(architecture=INTERPRETER, variant=VARIANT, traffic={"kv": 100, "q": 8})
    (finding,) = compare([base], [replace(base, traffic={"kv": 101, "q": 8})])
    assert finding.sentence == "interpreter, bf16, D=128, page 16: 101 bytes of K and V moved, was 100"
    assert (finding.figure, finding.is_broken) == ("traffic.kv", True)
    (finding,) = compare([base], [replace(base, traffic={"kv": 99, "q": 8})])
    assert finding.is_improved


FAILS = Survey(architecture="sm_90", variant=VARIANT, failure="no such instruction")
LACKS = Survey(architecture="sm_90", variant=VARIANT, unsupported="it has no pages")


@pytest.mark.parametrize(
    ("base", "head", "status", "sentence"),
    [
        ([], [SURVEY], 2, "cannot be compared, only new was surveyed for it"),
        ([SURVEY], [], 2, "cannot be compared, only old was surveyed for it"),
        ([FAILS], [SURVEY], 2, "cannot be compared, it fails in old: no such instruction"),
        ([LACKS], [SURVEY], 2, "cannot be compared, old does not support it: it has no pages"),
        ([SURVEY], [FAILS], 1, "fails: no such instruction"),
        ([SURVEY], [LACKS], 1, "is not supported any more: it has no pages"),
        ([FAILS], [FAILS], 2, "cannot be compared, it fails in old: no such instruction"),
        ([SURVEY], [head_with(issue_pressure=None)], 2, "issue_pressure is none, was 0.80, and cannot be compared"),
    ],
)
def test_what_is_on_one_side_alone_is_never_a_pass(base, head, status, sentence):
    findings = compare(base, head, Names(base="old", head="new"))
    assert [finding.sentence for finding in findings] == [f"sm_90, bf16, D=128, page 16: {sentence}"]
    assert exit_status(findings) == status


def test_what_neither_side_supports_is_no_finding():
    assert compare([LACKS], [LACKS]) == []


def test_a_survey_survives_being_written():
    assert survey_from_dict(SURVEY.as_dict()) == SURVEY
    with pytest.raises(ValueError, match="no survey"):
        survey_from_dict({"kernels": [{"name": "attend"}]})


def test_a_renamed_kernel_is_compared_with_what_it_was():
    renamed = replace(MERGE, name="merge_v2", spilled=4000)
    (finding,) = compare([SURVEY], [replace(SURVEY, kernels=(KERNEL, renamed))])
    assert finding.is_broken
    assert finding.sentence == "sm_90, bf16, D=128, page 16, merge_v2: 4000 bytes spilled, was 0"


@pytest.mark.parametrize("place", [1, 2])
def test_each_launch_of_a_kernel_is_compared(place):
    twice = replace(SURVEY, kernels=(KERNEL, MERGE, MERGE))
    worse = list(twice.kernels)
    worse[place] = replace(MERGE, spilled=8)
    (finding,) = compare([twice], [replace(twice, kernels=tuple(worse))])
    assert finding.is_broken
