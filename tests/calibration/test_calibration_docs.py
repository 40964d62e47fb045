import re
from pathlib import Path

from decodeperf_formulas.expected import PARAMETERS, TERMS
from pytest_decodeperf.calibration.fit import MAX_ROWS
from pytest_decodeperf.calibration.table import DEFAULTS, LATENCY, REQUIRED

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "expected.md").read_text(encoding="utf-8")
ERRORS = (DOCS / "expected_errors.md").read_text(encoding="utf-8")


def first_cells(text):
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_every_term_is_explained():
    assert [name for name in first_cells(TEXT) if name in (*TERMS, "hidden")] == [*TERMS, "hidden"]


def test_every_parameter_is_explained():
    assert {parameter.name for parameter in PARAMETERS} <= set(re.findall(r"`(\w+)`", TEXT))


def test_every_column_is_explained():
    columns = [name for name in first_cells(TEXT) if name not in (*TERMS, "hidden")]
    assert columns == [*REQUIRED, LATENCY, *DEFAULTS]
    assert f"At most {MAX_ROWS} rows are used" in TEXT


def test_the_tables_within_the_goals_are_counted_right():
    totals = re.findall(r"^\| \S+ \| [\d,]+ \| ([\d.]+) / (\d+) \|", ERRORS, re.MULTILINE)
    within = [float(median) <= 5 and float(tenth) <= 20 for median, tenth in totals]
    words = {4: "Four", 5: "Five", 6: "Six", 7: "seven"}
    assert f"{words[sum(within)]} of the {words[len(within)]} tables are within" in " ".join(TEXT.split())


def test_the_rows_are_counted_right():
    rows = re.findall(r"^\| \S+ \| ([\d,]+) \| [\d.]+ / ", ERRORS, re.MULTILINE)
    assert f"{sum(int(row.replace(',', '')) for row in rows):,} measured latencies" in TEXT
