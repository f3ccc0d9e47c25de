"""What a visitor does in the first minutes: without a mouse, and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from serve_app.observability.feedback_store import read_votes
from tests.support.browser import NEEDS_CHROMIUM, save_screenshot, tab_to, upload_by_dialog, wait_for_charts
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM
SAMPLE = "Face of a tabby cat"
PHONE_PX = 360


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """An empty page on a small phone with a touch screen."""
    page = browser.new_page(viewport={"width": PHONE_PX, "height": 740}, is_mobile=True, has_touch=True)
    yield page
    page.close()


def expect_answer(page: Page, name: str) -> None:
    """Wait until the page shows the result of a photo of this name."""
    expect(page.get_by_text("Top classes")).to_be_visible()
    expect(page.get_by_role("img", name=f"Your photo {name}", exact=True)).to_be_visible()
    wait_for_charts(page)


def test_without_a_mouse(page: Page, running: Running, files: list[Path], votes: Path) -> None:
    """Tab, arrows, Enter and Space alone: a sample, another class's map, a vote, an own photo, the search."""
    page.goto(running.page)
    expect(page.get_by_role("button", name=SAMPLE)).to_be_visible()
    tab_to(page, page.get_by_role("button", name=SAMPLE))
    page.keyboard.press("Enter")
    expect_answer(page, "cat.jpg")

    caption = page.get_by_text("Heat map for “")
    before = caption.inner_text()
    tab_to(page, page.get_by_role("combobox", name="Heat map for"))
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(caption).not_to_have_text(before)

    tab_to(page, page.get_by_test_id("stFeedback").get_by_role("radio").first)
    page.keyboard.press("Space")
    expect(page.get_by_text("Thank you.")).to_be_visible()
    assert len(list(read_votes(votes))) == 1
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")

    tab_to(page, page.get_by_test_id("stFileUploader").locator("button").first)
    upload_by_dialog(page, lambda: page.keyboard.press("Enter"), files[0])
    expect_answer(page, files[0].name)

    tab_to(page, page.get_by_test_id("stSidebar").locator("summary"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Search the classes"))
    classes = page.get_by_test_id("stSidebar").get_by_role("group").get_by_role("listitem")
    name = classes.first.inner_text()
    others = classes.filter(has_not_text=name)
    expect(others).not_to_have_count(0)
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(others).to_have_count(0)
    expect(classes.first).to_have_text(name)


def test_on_a_phone(phone: Page, running: Running, files: list[Path], votes: Path) -> None:
    """A sample, another class's map, a vote and an own photo by tapping; nothing is wider than the screen."""

    def fits() -> None:
        assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE_PX
        clipped = "element => element.getBoundingClientRect().right > innerWidth + 1"
        for button in phone.get_by_role("button").filter(visible=True).all():
            assert not button.evaluate(clipped), button

    phone.goto(running.page)
    phone.get_by_role("button", name=SAMPLE).tap()
    expect_answer(phone, "cat.jpg")
    fits()
    save_screenshot(phone, "phone-sample")

    caption = phone.get_by_text("Heat map for “")
    before = caption.inner_text()
    phone.get_by_role("combobox", name="Heat map for").tap()
    phone.get_by_role("option").nth(1).tap()
    expect(caption).not_to_have_text(before)

    phone.get_by_test_id("stFeedback").get_by_role("radio").first.tap()
    expect(phone.get_by_text("Thank you.")).to_be_visible()
    assert len(list(read_votes(votes))) == 1

    upload_by_dialog(phone, phone.get_by_test_id("stFileUploader").locator("button").first.tap, files[0])
    expect_answer(phone, files[0].name)
    fits()
    save_screenshot(phone, "phone-own")


@pytest.mark.parametrize("path", ["teach", "batch", "evaluate", "analytics", "status"])
def test_other_pages_fit_a_phone(phone: Page, running: Running, path: str) -> None:
    """No page scrolls sideways."""
    phone.goto(f"{running.page}/{path}")
    expect(phone.get_by_role("heading", level=1)).to_be_visible()
    wait_for_charts(phone)
    save_screenshot(phone, f"phone-{path}")
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE_PX
