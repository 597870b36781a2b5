"""A headless Chromium for tests of pages; tests that ask for it are skipped with a reason where there is none."""

import contextlib
import shutil
import tempfile

import pytest

QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
ARGUMENTS = [*QUIET.split(), "--no-first-run"]


@contextlib.contextmanager
def chromium():
    """A browser with an empty profile; it listens on no port and fetches nothing of its own."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; type make env")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium here; type apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile, sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=path,
            args=ARGUMENTS,
            viewport={"width": 1400, "height": 900},
            accept_downloads=True,
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, path, unfold=True):
    """The page of a file, its folded sections open; fails when it logs anything, throws, or asks for anything that is
    not itself."""
    said = []
    page = browser.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: said.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    own = path.as_uri()
    page.on(
        "request", lambda r: None if r.url.startswith(("data:", "blob:", own)) else said.append(f"requested {r.url}")
    )
    page.goto(own)
    if unfold:
        page.evaluate("document.querySelectorAll('section > details').forEach((one) => { one.open = true; })")
    yield page
    page.close()
    assert not said
