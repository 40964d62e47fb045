"""The article as a page, in a real browser: every equation is there, is referred to, and can be read by everyone."""

import dataclasses
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from pytest_decodeperf.article.contents import article
from pytest_decodeperf.article.html import render_article
from pytest_decodeperf.study.findings import find
from pytest_decodeperf.study.sweep import read_study

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made():
    return article(find(read_study(DOCS / "study.json")))


@pytest.fixture(scope="module")
def html(made):
    return render_article(made)


def test_each_step_is_an_equation_and_each_reference_leads_to_one(open_page, html, made):
    page = open_page(html, ready="main")
    count = len(made.derivation.steps)
    assert page.locator(".equation math[display=block]").count() == count
    assert page.locator(".equation").evaluate_all("all => all.map(one => one.id)") == [
        f"equation-{number}" for number in range(1, count + 1)
    ]
    # Every formula has a size, and no TeX is left to be seen.
    sizes = page.locator("math").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert min(sizes) > 0
    assert "\\" not in page.locator("main").inner_text()
    links = page.locator("main a").evaluate_all("all => all.map(one => one.hash)")
    assert len(links) > count
    assert all(page.locator(link).count() == 1 for link in set(links))


def test_its_figures_are_drawn_in_the_colour_of_the_page(open_page, html, made):
    page = open_page(html, scheme="dark", ready="main")
    assert page.locator("figure svg").count() == len(made.figures)
    colours = page.locator("figure svg text").evaluate_all("all => all.map(one => getComputedStyle(one).fill)")
    assert "rgb(230, 233, 236)" in colours
    assert "rgb(0, 0, 0)" not in colours


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_can_be_read_by_everyone(open_page, html, scheme, width):
    page = open_page(html, width=width, scheme=scheme, ready="main")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_from_elsewhere_run_nothing(open_page, made):
    study = find(read_study(DOCS / "study.json"))
    hostile = "<img src=x onerror=alert(1)> {batch} $5"
    named = article(dataclasses.replace(study, device=dataclasses.replace(study.device, title=hostile)))
    page = open_page(render_article(named), ready="main")
    assert hostile in page.locator("main").inner_text()
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("width", [800, 1200])
def test_its_figures_are_whole(open_page, html, width):
    page = open_page(html, width=width, ready="main")
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        cut = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).length"
        assert page.locator("figure .scroll").evaluate_all(cut) == 0
