"""An installed Chromium, and pages in it that must keep to themselves."""

import shutil

import pytest

ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (package chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a page; afterwards it must have complained of nothing and asked for nothing but itself."""
    contexts, complaints, requests = [], [], []

    def visit(path, width=1280, scheme="light", drawn=True):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))

        def only_itself(route):
            if route.request.url == path.as_uri():
                route.continue_()
            elif not route.request.url.startswith("data:"):
                requests.append(route.request.url)
                route.abort()

        page.route("**/*", only_itself)
        page.goto(path.as_uri())
        if drawn:
            page.wait_for_selector("html[data-drawn]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == []
