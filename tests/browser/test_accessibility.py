"""Every page, light and dark, under axe-core in Chromium: no serious finding, contrast (WCAG AA) included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from serve_app.launcher.environment import free_port
from tests.support.browser import (
    NEEDS_CHROMIUM,
    page_server,
    save_screenshot,
    serious_findings,
    upload,
    wait_for_charts,
)
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM
Scheme = Literal["light", "dark"]


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    """The color scheme that the system asks for."""
    chosen: Scheme = request.param
    return chosen


@pytest.fixture
def page(browser: Browser, scheme: Scheme) -> Iterator[Page]:
    """An empty page in a wide window of a system with that color scheme."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100}, color_scheme=scheme)
    yield page
    page.close()


def check(page: Page, name: str) -> None:
    """Fail if axe-core finds something serious."""
    save_screenshot(page, name)
    findings = serious_findings(page)
    assert not findings, "\n".join(findings)


def test_the_system_decides_between_light_and_dark(page: Page, running: Running, scheme: Scheme) -> None:
    """The background is light on a light system and dark on a dark one."""
    page.goto(running.page)
    background = page.get_by_test_id("stApp").evaluate("element => getComputedStyle(element).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert red > 240 if scheme == "light" else red < 40


def test_classify_page(page: Page, running: Running, files: list[Path], scheme: Scheme) -> None:
    """Empty, with a sample's result and each of its tabs, with many photos, broken ones among them."""
    page.goto(running.page)
    page.get_by_text("classes", exact=False).first.wait_for()
    page.get_by_test_id("stSidebar").locator("summary").click()
    expect(page.get_by_label("Search the classes")).to_be_visible()
    check(page, f"classify-empty-{scheme}")
    page.get_by_role("button", name="Face of a tabby cat").click()
    expect(page.get_by_text("Top classes")).to_be_visible()
    for tab in ("Python", "JSON", "CSV"):
        page.get_by_role("tab", name=tab).click()
        check(page, f"classify-one-{tab}-{scheme}")
    upload(page, *files[:9])
    expect(page.get_by_test_id("stMetric")).to_have_count(4)
    check(page, f"classify-many-{scheme}")
    page.get_by_text("Table", exact=True).click()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    check(page, f"classify-table-{scheme}")


@pytest.mark.parametrize("path", ["teach", "batch", "evaluate", "analytics", "status"])
def test_other_pages(page: Page, running: Running, path: str, scheme: Scheme) -> None:
    """As they are when opened."""
    page.goto(f"{running.page}/{path}")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    wait_for_charts(page)
    check(page, f"{path}-{scheme}")


def test_without_a_service(page: Page, scheme: Scheme) -> None:
    """The sentence that the service does not respond."""
    with page_server(API_URL=f"http://127.0.0.1:{free_port()}") as url:
        page.goto(url)
        expect(page.get_by_role("button", name="Retry")).to_be_visible()
        check(page, f"down-{scheme}")
