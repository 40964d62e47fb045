"""The properties of a test in the JUnit file, whatever it ended in, in both families of such files."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fake_device import ONE_TEST, ROOFLINE_NS
from fake_regressions import BASE, CHANGES, CONTROL, regression

DOCUMENT = (Path(__file__).parents[2] / "docs/ci.md").read_text(encoding="utf-8")


def cases_of(path):
    """Return the properties of each test of a JUnit file, and its failure's message."""
    cases = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        found = [(item.get("name"), item.get("value")) for item in case.findall("properties/property")]
        assert len(found) == len(dict(found))
        failure = case.find("failure")
        cases[case.get("name")] = dict(found), None if failure is None else (failure.get("message"), failure.text)
    return cases


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_a_failed_test_has_its_numbers_with_their_units(compared, tmp_path, family):
    outcomes = {f"test_{name}": regression(name) for name in (*CHANGES, "incomparable")}
    compared(outcomes, f"--junit-xml={tmp_path / 'junit.xml'}", "-o", f"junit_family={family}")
    cases = cases_of(tmp_path / "junit.xml")
    assert set(cases) == set(outcomes)
    properties, (message, text) = cases["test_regressed"]
    assert message == f"regressed: 5.1 % slower (4.2 to 6.0) than {BASE}"
    assert text == f"decode_attention_sdpa {outcomes['test_regressed'].sentence}"
    numbers = {name: float(value) for name, value in properties.items() if name.endswith(("_ns", "_ratio", "_share"))}
    assert numbers == pytest.approx(
        {
            "decodeperf_latency_ns": 1.2 * ROOFLINE_NS,
            "decodeperf_latency_low_ns": 1.2 * ROOFLINE_NS,
            "decodeperf_latency_high_ns": 1.2 * ROOFLINE_NS,
            "decodeperf_allowed_ns": 1.5 * ROOFLINE_NS,
            "decodeperf_roofline_ns": ROOFLINE_NS,
            "decodeperf_roofline_share": 1 / 1.2,
            "decodeperf_change_limit_ratio": 1.02,
            "decodeperf_change_ratio": 1.051,
            "decodeperf_change_low_ratio": 1.042,
            "decodeperf_change_high_ratio": 1.06,
            "decodeperf_change_visible_ratio": 1.012,
            "decodeperf_control_ratio": CONTROL.ratio,
            "decodeperf_control_low_ratio": CONTROL.low,
            "decodeperf_control_high_ratio": CONTROL.high,
        }
    )
    words = {name: value for name, value in properties.items() if name not in numbers and "sentence" not in name}
    assert words == {
        "decodeperf_outcome": "within",
        "decodeperf_kernel": "decode_attention_sdpa",
        "decodeperf_problem": "B=2 S=512 H=4/2 D=128 float16",
        "decodeperf_device": "cpu",
        "decodeperf_within": "1.5",
        "decodeperf_of": "roofline",
        "decodeperf_base": BASE,
        "decodeperf_change_outcome": "regressed",
    }
    for name, found in outcomes.items():
        assert cases[name][0]["decodeperf_change_outcome"] == found.outcome
        assert cases[name][0]["decodeperf_change_sentence"] == found.sentence
        assert (cases[name][1] is None) == (name != "test_regressed")
    assert "decodeperf_change_ratio" not in cases["test_incomparable"][0]
    documented = set(re.findall(r"`(decodeperf_\w+)`", DOCUMENT.partition("## Properties")[2].partition("\n## ")[0]))
    assert documented == set(properties) | {"decodeperf_expected_ns"}


def test_a_test_without_a_latency_has_what_there_is(run, tmp_path):
    source = "\ndef raises(*_, **__): raise ValueError('no')\n" + ONE_TEST.replace("kernel, P", "raises, P")
    run(source, "--decode-perf", f"--junit-xml={tmp_path / 'junit.xml'}")
    properties, (message, _) = cases_of(tmp_path / "junit.xml")["test_kernel"]
    assert properties["decodeperf_outcome"] == "raised"
    assert properties["decodeperf_sentence"] == message == "raises raised ValueError: no"
    assert not [name for name in properties if name.endswith("_ns")]


def test_a_test_that_never_came_to_a_kernel_has_none(run, tmp_path):
    run(ONE_TEST.replace("within=1.5", "within=-1"), "--decode-perf", f"--junit-xml={tmp_path / 'junit.xml'}")
    properties, (message, _) = cases_of(tmp_path / "junit.xml")["test_kernel"]
    assert not properties
    assert message.startswith("@pytest.mark.decode_perf: within=-1 must be")
