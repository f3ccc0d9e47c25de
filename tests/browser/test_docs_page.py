"""The API's documentation in Chromium, which loads nothing from another host."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.support.browser import NEEDS_CHROMIUM
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM


def test_the_documentation_asks_no_other_host(page: Page, running: Running) -> None:
    """Scripts, styles, fonts and pictures all come from the service; the operations are shown."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{running.api}/docs")
    expect(page.get_by_text("Classify one or many images").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert len(asked) > 2
    assert [url for url in asked if not url.startswith((running.api, "data:", "blob:"))] == []
