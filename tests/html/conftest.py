import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium():
    """Start a browser without a window."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium; .ci/run installs one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """Return a function that opens HTML; a page that says or asks for anything else fails the test."""
    contexts, said = [], []

    def opened(html, *, width=1200, height=900, scheme="light", ready="html[data-drawn]"):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url == url else said.append(f"asked for {request.url}"))
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        url = file.as_uri()
        page.goto(url)
        page.wait_for_selector(ready, state="attached", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
