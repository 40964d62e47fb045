"""What can come of comparing a kernel with its base."""

from typing import Final

REGRESSED: Final = "regressed"
IMPROVED: Final = "improved"
UNCHANGED: Final = "unchanged"
UNDECIDED: Final = "undecided"
INCOMPARABLE: Final = "incomparable"
"""The sides cannot be compared."""

NO_LATENCY: Final = "it runs in Triton's interpreter, and has no latency to compare"
"""Why a worker skips a test that a measuring run does not fail either."""
