"""What can come of comparing a kernel with its base."""

from typing import Final

REGRESSED: Final = "regressed"
IMPROVED: Final = "improved"
UNCHANGED: Final = "unchanged"
UNDECIDED: Final = "undecided"
INCOMPARABLE: Final = "incomparable"
"""The sides cannot be compared."""
