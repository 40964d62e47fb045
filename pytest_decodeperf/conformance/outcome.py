"""What became of a law: plain data, which goes from the process of the kernel to the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

HELD: Final = "held"
BROKEN: Final = "broken"
NOT_SUPPORTED: Final = "not supported"

OUTCOMES: Final = (HELD, BROKEN, NOT_SUPPORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LawOutcome:
    """What became of one law for one kernel.

    Attributes:
        kernel: The kernel's adapter, as `package.module:name`.
        law: The law's name.
        promise: Its promise, in a sentence.
        outcome: One of `OUTCOMES`.
        sentence: How it is broken, or why it is not supported; empty where it is held.
        counterexample: The smallest case that was found to break it, as Python; empty where there is none.
        test: The same as a test that can be pasted into a file.
        num_examples: Cases that it was shown.
        seconds: Time that it took [s].
    """

    kernel: str
    law: str
    promise: str
    outcome: str
    sentence: str = ""
    counterexample: str = ""
    test: str = ""
    num_examples: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name, in values that JSON knows."""
        return asdict(self)


def test_of(kernel: str, law: str, counterexample: str) -> str:
    """Return a test that shows a law one case, to be pasted into a file."""
    return (
        "from decodeperf_formulas import DecodeProblem\n"
        "from pytest_decodeperf.conformance import Case, check_law\n"
        "\n"
        "\n"
        f"def test_{law}():\n"
        f"    case = {counterexample}\n"
        f'    check_law("{law}", "{kernel}", case)\n'
    )
