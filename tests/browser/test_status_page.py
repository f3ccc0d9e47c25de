"""The Status page in Chromium, and every page without a service."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from serve_app.launcher.environment import free_port
from tests.support.browser import NEEDS_CHROMIUM, page_server, save_screenshot, wait_for_charts
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM
OWN = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")


def test_status_page(page: Page, running: Running) -> None:
    """The page reports a ready service and its counters."""
    page.goto(f"{running.page}/status")
    expect(page.get_by_text("Ready: every stage is up.")).to_be_visible()
    expect(page.get_by_text("Mean batch size")).to_be_visible()
    save_screenshot(page, "status")


def test_nothing_comes_from_other_hosts(page: Page, running: Running) -> None:
    """No page loads a font, an icon or a script from another host, or reports that it was opened."""
    others: list[str] = []
    page.on("request", lambda request: None if request.url.startswith(OWN) else others.append(request.url))
    for path in ("", "teach", "batch", "evaluate", "analytics", "status"):
        page.goto(f"{running.page}/{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        wait_for_charts(page)
    assert not others


def test_a_service_that_is_down_is_explained(page: Page) -> None:
    """Without the API every page that needs it says so and what to do."""
    with page_server(API_URL=f"http://127.0.0.1:{free_port()}") as url:
        for path in ("", "/status", "/batch", "/evaluate"):
            page.goto(f"{url}{path}")
            expect(page.get_by_text("The classification service is not responding.")).to_be_visible()
            expect(page.get_by_text("make run")).to_be_visible()
            expect(page.get_by_role("button", name="Retry")).to_be_visible()
        save_screenshot(page, "down")
