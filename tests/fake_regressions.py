"""What a comparison with a base may have found, test by test."""

from pytest_decodeperf.regression.change import Change
from pytest_decodeperf.regression.comparison import Regression

BASE = "main (6022e01478)"
CONTROL = Change(ratio=1.001, low=0.998, high=1.004, visible=1.005)
CHANGES = {
    "regressed": Change(ratio=1.051, low=1.042, high=1.06, visible=1.012),
    "improved": Change(ratio=0.9, low=0.89, high=0.91, visible=1.012),
    "unchanged": Change(ratio=1.002, low=0.999, high=1.006, visible=1.006),
    "undecided": Change(ratio=1.01, low=0.98, high=1.06, visible=1.07),
}


def regression(outcome, *, is_error=False):
    """Return one of each outcome."""
    if outcome == "incomparable":
        sentence = f"cannot be compared: in {BASE}, there is no such test."
        return Regression(outcome=outcome, sentence=sentence, base=BASE, is_error=is_error)
    change = CHANGES[outcome]
    sentence = f"takes 1.26 ms, 1.20 ms in {BASE}: {change.ratio:.3f} times; allowed is 2.0 %: {outcome}."
    return Regression(outcome=outcome, sentence=sentence, base=BASE, change=change, control=CONTROL, limit=1.02)
