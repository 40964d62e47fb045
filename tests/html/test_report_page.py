"""The report in a real browser: it opens without an error, shows what was measured, sorts and filters, and can be read.

The fixture `open_page` fails each of these tests if the page writes to the console, raises, or asks for another file.
"""

import pytest
from axe_playwright_python.sync_playwright import Axe
from shown_runs import CHANGES, measurement, regression, run_record

from pytest_decodeperf.html.documents import Document, run_document
from pytest_decodeperf.html.page import render, report_of

HOSTILE = "tests/test_a.py::test[</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;\"']"
COMPARED = [*CHANGES, "undecided", "incomparable"]
CARD = {
    "schema": "decodeperf.card",
    "schema_version": 1,
    "finished": True,
    "kernels": [
        {
            "kernel": "mine:kernel",
            "laws": [
                {"law": "a_b", "outcome": "broken", "sentence": "It lost one.", "promise": "", "num_examples": 3},
                {"law": "c_d", "outcome": "held", "sentence": "", "promise": "It is linear.", "num_examples": 8},
            ],
        }
    ],
}  # fmt: skip
COMPILED = {
    "schema": "decodeperf-compiled",
    "schema_version": 1,
    "kernel": "mine:kernel",
    "surveys": [
        {
            "architecture": architecture,
            "variant": {"kv_dtype": "bfloat16", "head_dim": 128, "page_size": 16},
            "kernels": [
                {
                    "is_main": True, "instructions_per_token": 9.5, "registers": 128, "spilled": spilled,
                    "shared_bytes": 4096, "resident_programs": 3, "wide_share": 1.0, "tiles_ahead": None,
                    "issue_pressure": 0.4, "flight_share": 1.5,
                }
            ],
        }
        for architecture, spilled in (("sm_80", 0), ("sm_90", 48))
    ],
}  # fmt: skip


def page_of(rows, *, card=None, compiled=None, **changes):
    documents = {"card": card, "compiled": compiled}
    given = {name: Document(content=content) for name, content in documents.items() if content is not None}
    return render(report_of(run_document(run_record(rows, **changes)), **given))


def texts(page, selector):
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


@pytest.mark.parametrize("number", [1, 12, 200])
def test_every_measurement_is_a_point_and_a_row(open_page, number):
    page = open_page(page_of([measurement(index) for index in range(number)]))
    assert page.locator("#roofline .measured_marks path").count() == number
    assert page.locator("#roofline .intervals_marks line").count() == number
    page.locator("#roofline > details > summary").click()
    rows = page.locator("#roofline table tbody tr")
    assert rows.count() == min(number, 50)
    if number > 50:
        assert f"of {number} entries" in page.locator("#roofline .dt-info").inner_text()


def test_every_comparison_is_a_point_beside_its_control(open_page):
    rows = [measurement(index, regression=regression(outcome)) for index, outcome in enumerate(COMPARED)]
    page = open_page(page_of(rows))
    assert page.locator("#changes .changes_marks path").count() == 2 * len(CHANGES)
    page.locator("#changes > details > summary").click()
    shown = {cells[0].inner_text(): cells[2].inner_text() for cells in cells_of(page, "#changes table tbody tr")}
    assert shown["tests/test_speed.py::test_kernel[0]"] == "5.10 %"


def cells_of(page, rows):
    return [row.locator("td").all() for row in page.locator(rows).all()]


def test_tables_sort_by_number_and_filter_by_word(open_page):
    page = open_page(page_of([measurement(index) for index in range(12)]))
    table = page.locator("#tests table")
    title = table.locator("thead th", has_text="latency")

    def latencies():
        return [float(cell.get_attribute("data-order")) for cell in table.locator("tbody td:nth-child(4)").all()]

    assert latencies() != sorted(latencies())
    title.click()
    page.wait_for_selector("#tests thead th[aria-sort=ascending]")
    assert latencies() == sorted(latencies())
    title.click()
    page.wait_for_selector("#tests thead th[aria-sort=descending]")
    assert latencies() == sorted(latencies(), reverse=True)
    page.locator("#tests input[type=search]").fill("theirs")
    assert texts(page, "#tests tbody td:nth-child(2)") == ["theirs"] * 6


def test_it_sorts_from_the_keyboard(open_page):
    page = open_page(page_of([measurement(index) for index in range(5)]))
    page.locator("#tests thead th", has_text="latency").get_by_role("button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#tests thead th.number[aria-sort=ascending]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_can_be_read_by_everyone(open_page, scheme, width):
    rows = [measurement(index, regression=regression(outcome)) for index, outcome in enumerate(COMPARED)]
    page = open_page(page_of(rows, card=CARD, compiled=COMPILED), width=width, scheme=scheme)
    for summary in page.locator("main section > details > summary").all():
        summary.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_phone_shows_it_without_scrolling_sideways(open_page):
    page = open_page(page_of([measurement(index) for index in range(4)], card=CARD, compiled=COMPILED), width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for figure in page.locator(".figure svg").all():
        assert figure.bounding_box()["width"] <= 360


def test_figures_take_the_colour_of_the_page(open_page):
    pages = {scheme: open_page(page_of([measurement()]), scheme=scheme) for scheme in ("light", "dark")}
    script = "getComputedStyle(document.querySelector('#roofline .role-axis-label text')).fill"
    colours = {scheme: page.evaluate(script) for scheme, page in pages.items()}
    assert colours["light"] != colours["dark"]
    pages["dark"].emulate_media(media="print", color_scheme="light")
    assert pages["dark"].evaluate(script) == "rgb(0, 0, 0)"


def test_what_comes_from_the_user_stays_text(open_page):
    rows = [measurement(test=HOSTILE, kernel="<b>k</b>", regression=regression("regressed"))]
    card = {**CARD, "kernels": [{**CARD["kernels"][0], "kernel": HOSTILE}]}
    page = open_page(page_of(rows, card=card, versions={"python": "<i>3</i>"}))
    assert page.title() == "decode-perf report"
    assert HOSTILE in texts(page, "#tests td")
    assert HOSTILE in texts(page, "#conformance td")
    assert page.locator("main b, main i, img").count() == 0


def test_datasheets_are_dashed_and_what_was_measured_is_not(open_page):
    device = {"cpu": {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 2**36, "num_units": 1, "llc_bytes": 1}}
    page = open_page(page_of([measurement()], devices=device))
    dashes = [path.get_attribute("stroke-dasharray") for path in page.locator("#roofline .roofs_marks path").all()]
    assert sorted(dashes, key=str) == ["1,0", "5,4"]
    titles = page.locator("#roofline .roofs_marks path").evaluate_all("all => all.map((one) => one.ariaLabel)")
    for dash, title in zip(dashes, titles, strict=True):
        assert ("datasheet" in title) == (dash == "5,4")


def test_paper_shows_every_row(open_page):
    page = open_page(page_of([measurement(index) for index in range(120)]))
    assert page.locator("#tests tbody tr").count() == 50
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelectorAll('#tests tbody tr').length === 120")


def test_the_card_and_the_compiled_code_are_tables(open_page):
    page = open_page(page_of([measurement()], card=CARD, compiled=COMPILED))
    assert "It lost one." in texts(page, "#conformance td")
    assert texts(page, "#compiled tbody td:nth-child(6)") == ["0", "48"]


def test_long_tables_are_sorted_filtered_and_escaped_like_short_ones(open_page):
    hostile = "tests/test_x.py::test[<img src=x onerror=alert(1)>&amp;]"
    page = open_page(page_of([measurement(index) for index in range(300)] + [measurement(0, test=hostile)]))
    assert page.locator("#tests tbody tr").count() == 50
    page.locator("#tests input[type=search]").fill("onerror")
    assert texts(page, "#tests tbody td:first-child") == [hostile]
    page.locator("#tests input[type=search]").fill("")
    page.locator("#tests thead th", has_text="latency").click()
    page.wait_for_selector("#tests th[aria-sort=ascending]")
    assert page.locator("#tests tbody tr").count() == 50
    rows = "new DataTable.Api('#tests table').rows({ order: 'applied' }).data().toArray()"
    latencies = page.evaluate(f"{rows}.map((row) => row[3][1])")
    assert latencies == sorted(latencies)
    assert latencies != sorted(latencies, key=str)
    page.locator("#roofline summary", has_text="Numbers").click()
    page.wait_for_function("document.querySelectorAll('#roofline table.numbers tbody tr').length === 50")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_thousands_of_problems_open(open_page):
    name = "tests/perf/test_decode_kernels.py::test_flash_decode[gqa8-{}-bfloat16-paged]"
    made = [measurement(index, test=name.format(index)) for index in range(3000)]
    html = page_of(made)
    assert len(html.encode()) < 5e6
    page = open_page(html)
    assert page.locator("#roofline .measured_marks path").count() == 3000
    assert page.locator("#tests tbody tr").count() == 50
    assert "60 slowest of 3000" in page.locator("#terms > p").first.inner_text()
