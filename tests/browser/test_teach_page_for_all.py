"""The Teach page in Chromium by keyboard, on a phone, under axe-core, and with hostile names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import (
    NEEDS_CHROMIUM,
    save_screenshot,
    serious_findings,
    tab_to,
    wait_for_charts,
)
from tests.support.configs import local, tuned
from tests.support.running import Running, start
from tests.support.teach_page import (
    HEAD,
    Teach,
    add_photos,
    overflow_px,
    photo_of,
    photos_of,
    suggest,
    try_photo,
)

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with the demo's weights, to which photos differ, that keeps taught and suggested photos."""
    config = tuned(local(), "Ingress", heads={"folder": "heads", "keep_photos": True})
    with start(config, weights="demo") as service:
        yield service


def waiting(page: Page, text: str) -> Locator:
    """Return the heading above the suggestions; the head's name has a badge with the same words."""
    return page.get_by_role("heading", name=text, exact=True)


def test_by_keyboard(page: Page, running: Running, teach: Teach) -> None:
    """Tab reaches names, uploaders and Teach, and Enter presses it."""
    page.goto(f"{running.page}/teach")
    expect(page.get_by_text("10 to 20 are enough for a start")).to_be_visible()
    for label, text in (("A name for all of it", HEAD), ("Name of class 1", "red"), ("Name of class 2", "green")):
        tab_to(page, page.get_by_label(label))
        page.keyboard.type(text)
        page.keyboard.press("Tab")
        wait_for_charts(page)
    for name, photos in photos_of("red", "green", count=2).items():
        add_photos(page, name, *photos)  # the system's dialog for files is out of reach of a test
    tab_to(page, page.get_by_role("button", name="Teach", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 taught")).to_have_count(2)


def test_on_a_phone(phone: Page, running: Running, teach: Teach) -> None:
    """Nothing is wider than a window of 360 px: empty, with photos, taught, tried, in the dialog."""
    phone.goto(f"{running.page}/teach")
    expect(phone.get_by_text("10 to 20 are enough for a start")).to_be_visible()
    assert overflow_px(phone) == 0
    add_photos(phone, "class 1", *photos_of("red")["red"])
    save_screenshot(phone, "teach-phone-draft")
    assert overflow_px(phone) == 0
    photos = photos_of("red", "green", count=12)
    phone.goto(teach({"red": [*photos["red"], photo_of("green", 50)], "green": photos["green"]}))
    try_photo(phone, photo_of("green", 100))
    expect(phone.get_by_text("The taught photos that are most like it")).to_be_visible()
    save_screenshot(phone, "teach-phone")
    for tab in ("How good is it", "Use it in a program", "Export", "Settings"):
        phone.get_by_role("tab", name=tab).click()
        assert overflow_px(phone) == 0, tab
    phone.get_by_role("button", name="See and sort out the photos of red").click()
    expect(phone.get_by_role("dialog")).to_be_visible()
    assert overflow_px(phone) == 0


def test_suggestions_by_keyboard_on_a_phone(phone: Page, running: Running, teach: Teach) -> None:
    """The owner sees each photo with what the head says; Tab and Enter approve and reject, within 360 px."""
    address = teach(photos_of("red", "green", count=8))
    suggest(running, {"red": [photo_of("red", 50), photo_of("red", 51)], "green": [photo_of("red", 52)]})
    phone.goto(address)
    expect(waiting(phone, "3 suggestions wait")).to_be_visible()
    expect(phone.get_by_role("img", name="Photo that is suggested as")).to_have_count(3)
    expect(phone.get_by_text(re.compile(r"The head says: .*red \d+%"))).to_have_count(3)
    save_screenshot(phone, "teach-phone-suggestions")
    assert overflow_px(phone) == 0
    for label, left in (("Approve as red", "2 suggestions wait"), ("Approve as red", "1 suggestion waits")):
        tab_to(phone, phone.get_by_role("button", name=label).first)
        phone.keyboard.press("Enter")
        expect(waiting(phone, left)).to_be_visible()
        wait_for_charts(phone)
    tab_to(phone, phone.get_by_role("button", name="Reject"))
    phone.keyboard.press("Enter")
    expect(waiting(phone, "1 suggestion waits")).to_have_count(0)
    examples = httpx2.get(f"{running.api}/v1/heads/{HEAD}").json()["examples"]
    assert sorted(example["class"] for example in examples) == ["green"] * 8 + ["red"] * 10


def test_hostile_names_of_classes(page: Page, running: Running, teach: Teach) -> None:
    """They are shown as text wherever a class is named: no link, picture, HTML, color, formula, and no request."""
    names = (
        "[click](http://evil.example) :red[hi] $x$",
        "<b>bold</b> ![x](http://evil.example/p.png) www.evil.example",
    )
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "evil" in request.url else None)
    photos = photos_of("red", "green", count=12)
    address = teach({names[0]: [*photos["red"], photo_of("green", 50)], names[1]: photos["green"]})
    suggest(running, {names[0]: [photo_of("red", 60)], names[1]: [photo_of("red", 61)]})
    page.goto(address)
    expect(waiting(page, "2 suggestions wait")).to_be_visible()
    try_photo(page, photo_of("green", 100))
    expect(page.get_by_text("The taught photos that are most like it")).to_be_visible()
    page.get_by_role("button", name="See and sort out the photos of").first.click()
    expect(page.get_by_role("dialog").get_by_role("button", name="Delete").first).to_be_visible()
    wait_for_charts(page)
    text = page.get_by_test_id("stMain").inner_text().replace("\u2060", "")
    assert all(name in text for name in names)
    colored = '[data-testid=stMarkdownContainer] [style*="color"]:not(:text-is("2 suggestions wait"))'  # our own badge
    forged = f'a[href*="evil"], img[src*="evil"], b, .katex, {colored}'
    assert page.locator(forged).count() == 0
    assert requests == []
    page.goto(f"{running.page}/teach")
    expect(page.get_by_role("button", name=f"Open {HEAD}")).to_be_visible()
    assert page.locator(forged).count() == 0
    assert requests == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, running: Running, teach: Teach, scheme: str) -> None:
    """No serious finding of axe-core: empty, with a camera, taught, tried, suggestions, each tab, list, dialogs."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100}, color_scheme=scheme)  # type: ignore[arg-type]

    def check(name: str) -> None:
        save_screenshot(page, f"teach-{name}-{scheme}")
        assert not serious_findings(page), name

    page.goto(f"{running.page}/teach")
    page.get_by_text("Use the camera for class 1").click()
    expect(page.get_by_role("button", name="Take 5 photos")).to_be_enabled()
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.get_by_text("Something is missing")).to_be_visible()
    check("empty")
    photos = photos_of("red", "green", count=12)
    address = teach({"red": [*photos["red"], photo_of("green", 50)], "green": photos["green"]})
    page.goto(f"{running.page}/teach")
    expect(page.get_by_role("button", name=f"Open {HEAD}")).to_be_visible()
    check("list")
    suggest(running, {"red": [photo_of("red", 60)], "green": [photo_of("red", 61)]})
    page.goto(address)
    try_photo(page, photo_of("green", 100))
    expect(page.get_by_text("The taught photos that are most like it")).to_be_visible()
    waiting(page, "2 suggestions wait").scroll_into_view_if_needed()
    check("suggestions")
    for tab in ("How good is it", "Use it in a program", "Export", "Settings"):
        page.get_by_role("tab", name=tab).click()
        check(f"head-{tab}")
    page.get_by_role("button", name="Delete this head").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check("delete")
    page.close()
