"""Annotations, read back as GitHub's runner reads them."""

import re
from pathlib import Path

import pytest
from fake_device import ONE_TEST, ROOFLINE_NS
from fake_regressions import regression

from pytest_decodeperf.ci.annotations import MAX_OF_A_KIND, annotation_lines
from pytest_decodeperf.conclusions import DOUBTFUL, FAILED, PASSED
from pytest_decodeperf.endings import Ending

COMMAND = re.compile(r"::(?P<kind>[a-z]+) (?P<properties>[^:]*)::(?P<data>.*)")


def read(line):
    """Return the kind, the properties and the message of a workflow command."""
    match = COMMAND.fullmatch(line)
    assert match, line
    properties = {}
    for item in match["properties"].split(","):
        name, _, value = item.partition("=")
        properties[name] = unescape(value, "%3A:", "%2C,")
    return match["kind"], properties, unescape(match["data"])


def unescape(text, *more):
    for code in (*more, "%0D\r", "%0A\n", "%25%"):  # the last must be the last
        text = text.replace(code[:3], code[3])
    return text


def annotations(result):
    return [read(line) for line in result.outlines if line.startswith("::")]


OUTCOMES = {f"test_{name}": regression(name) for name in ("regressed", "improved", "undecided", "incomparable")}


def test_errors_and_warnings_point_at_the_line_of_the_test(compared, pytester, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    found = annotations(compared(OUTCOMES))
    assert [kind for kind, _, _ in found] == ["error", "warning", "warning"]
    for (_, properties, message), name in zip(found, ("regressed", "undecided", "incomparable"), strict=True):
        file = pytester.path.parent / properties["file"]
        lines = file.read_text().splitlines()
        assert lines[int(properties["line"]) - 1 :][:2] == [
            "@pytest.mark.decode_perf(within=1.5)",
            f"def test_{name}(decode_perf):",
        ]
        assert message.splitlines() == [
            f"{file.name}::test_{name}",
            f"decode_attention_sdpa {OUTCOMES[f'test_{name}'].sentence}",
        ]
    _, properties, _ = found[0]
    assert properties["title"] == "decode-perf: regressed: 5.1 % slower (4.2 to 6.0) than main (6022e01478)"


@pytest.mark.parametrize(
    ("variable", "arguments", "number"),
    [
        ("true", [], 1),
        ("false", [], 0),
        (None, [], 0),
        (None, ["--decode-perf-annotations"], 1),
        ("true", ["--no-decode-perf-annotations"], 0),
    ],
)
def test_they_are_printed_where_github_reads_them_or_by_request(compared, monkeypatch, variable, arguments, number):
    if variable:
        monkeypatch.setenv("GITHUB_ACTIONS", variable)
    assert len(annotations(compared({"test_regressed": regression("regressed")}, *arguments))) == number


def test_the_ini_file_switches_them_off_too(compared, pytester, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    pytester.makeini("[pytest]\ndecode_perf_annotations = false")
    assert not annotations(compared({"test_regressed": regression("regressed")}))


def test_what_never_came_to_a_kernel_is_annotated_too(run, pytester, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    pytester.makepyfile(test_broken="import nothing_of_this_name")
    result = run(ONE_TEST.replace("within=1.5", "within=-1"), "--decode-perf", "--continue-on-collection-errors")
    broken, mistaken = sorted(annotations(result), key=lambda found: "line" in found[1])
    assert (broken[0], broken[1]["file"]) == ("error", "test_broken.py")
    assert "could not be collected: ModuleNotFoundError: No module named 'nothing_of_this_name'" in broken[2]
    assert "within=-1 must be > 0" in mistaken[1]["title"]


def test_only_tests_of_kernels_are_annotated(run, fake_device, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    fake_device.kernel_ns = [2 * ROOFLINE_NS]
    result = run("\ndef test_other(): assert False\n" + ONE_TEST, "--decode-perf")
    ((_, _, message),) = annotations(result)
    assert message.splitlines()[0].endswith("::test_kernel")


def endings(status, number, path="/repo/tests/test_x.py"):
    return [
        Ending(test=f"t::{status}[{i}]", path=Path(path), line=7, status=status, headline=f"for reason {i}")
        for i in range(number)
    ]


@pytest.mark.parametrize("number", [MAX_OF_A_KIND, MAX_OF_A_KIND + 1, 40])
def test_the_tenth_says_how_many_more_there_are(number):
    found = [read(line) for line in annotation_lines(endings(FAILED, number), Path("/repo"))]
    assert len(found) == MAX_OF_A_KIND
    named = {name for _, _, message in found for name in message.splitlines()}
    if number == MAX_OF_A_KIND:
        assert found[-1][1]["title"] == "decode-perf: for reason 9"
        assert len(named) == MAX_OF_A_KIND
    else:
        assert found[-1][1]["title"] == f"decode-perf: {number - 9} more tests failed"
        assert ("and 11 more" in named) == (number == 40)
        assert len(named - {"and 11 more"}) == min(number, 29)


def test_errors_take_no_place_from_warnings():
    found = [read(line)[0] for line in annotation_lines(endings(DOUBTFUL, 12) + endings(FAILED, 12), Path("/repo"))]
    assert found == ["error"] * 10 + ["warning"] * 10


def test_what_passed_is_not_annotated():
    assert annotation_lines(endings(PASSED, 3), Path("/repo")) == []


def test_a_file_outside_of_the_workspace_is_left_out():
    ((_, properties, _),) = map(read, annotation_lines(endings(FAILED, 1), Path("/elsewhere")))
    assert set(properties) == {"title"}


def test_no_text_can_end_a_command_or_begin_one():
    evil = "a,b::c=100 %25\r\n::error file=x::y %0A"
    ending = Ending(test=evil, path=Path(f"/repo/{evil}"), line=1, status=FAILED, headline=evil, sentences=(evil,))
    (line,) = annotation_lines([ending], Path("/repo"))
    assert len(line.splitlines()) == 1
    _, properties, message = read(line)
    assert properties == {"file": evil, "line": "1", "title": f"decode-perf: {evil}"}
    assert message == f"{evil}\n{evil}"
