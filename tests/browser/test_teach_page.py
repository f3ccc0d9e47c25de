"""The Teach page in Chromium, against the running service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import (
    NEEDS_CHROMIUM,
    save_screenshot,
    upload,
    wait_for_charts,
)
from tests.support.photos import make_photo
from tests.support.running import Running, start
from tests.support.taught_photos import as_form
from tests.support.teach_page import (
    HEAD,
    Teach,
    add_photos,
    fill,
    payloads,
    photo_of,
    photos_of,
    try_photo,
)

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with the demo's weights: to random ones all photos look nearly equal, and nothing can be measured."""
    with start(weights="demo") as service:
        yield service


def test_from_photos_to_a_head(page: Page, running: Running, teach: Teach) -> None:
    """Two classes are named and photographed, taught, measured, tried, found again after a reload, and deleted."""
    page.goto(f"{running.page}/teach")
    expect(page.get_by_text("10 to 20 are enough for a start")).to_be_visible()
    fill(page, "A name for all of it", "Colors")
    fill(page, "Name of class 1", "red")
    fill(page, "Name of class 2", "green")
    for name, photos in photos_of("red", "green").items():
        add_photos(page, name, *photos)
    expect(page.get_by_text("8 new", exact=True)).to_have_count(2)
    expect(page.get_by_role("img", name="New photo")).to_have_count(16)
    save_screenshot(page, "teach-draft")
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.get_by_text(re.compile(r"Right for \d+ of 16 photos"))).to_be_visible()
    expect(page.get_by_text(re.compile(r"expect between \d+% and \d+% to be right"))).to_be_visible()
    expect(page.locator("[class*=st-key-gallery-teach]").get_by_role("img", name="Taught photo of")).to_have_count(16)

    try_photo(page, photo_of("green", 100))
    expect(page.get_by_text("The taught photos that are most like it: green, green, green")).to_be_visible()
    expect(page.get_by_text("These places speak for “green”")).to_be_visible()
    save_screenshot(page, "teach-tried")
    page.get_by_role("tab", name="Use it in a program").click()
    expect(page.get_by_text(f"/v1/classify?head={HEAD}'")).to_be_visible()

    page.reload()
    expect(page.get_by_role("heading", name=HEAD)).to_be_visible()
    expect(page.get_by_text(re.compile(r"Right for \d+ of 16 photos"))).to_be_visible()
    expect(page.get_by_text("8 taught")).to_have_count(2)

    page.get_by_role("tab", name="Settings").click()
    page.get_by_role("button", name="Delete this head").click()
    page.get_by_role("dialog").get_by_role("button", name=f"Delete {HEAD}").click()
    expect(page.get_by_role("heading", name="Teach your own classes")).to_be_visible()
    assert httpx2.get(f"{running.api}/v1/heads/{HEAD}").status_code == 404


def test_other_things_are_none_of_these(page: Page, teach: Teach) -> None:
    """A photo that is like no taught one is not forced into a class."""
    page.goto(teach(photos_of("red", "green", count=12)))
    try_photo(page, make_photo(7))
    expect(page.get_by_text("None of these.")).to_be_visible()


def test_a_photo_in_the_wrong_class_is_moved(page: Page, running: Running, teach: Teach) -> None:
    """It stands beside one of the suggested class; one click moves it, and the head is taught again."""
    photos = photos_of("red", "green", count=12)
    page.goto(teach({"red": [*photos["red"], photo_of("green", 50)], "green": photos["green"]}))
    expect(page.get_by_text("These look as if they were in the wrong class")).to_be_visible()
    expect(page.get_by_text("in red", exact=False).first).to_be_visible()
    save_screenshot(page, "teach-doubtful")
    page.get_by_role("button", name="Move to green").click()
    expect(page.get_by_text("13 taught")).to_be_visible()
    expect(page.get_by_text("in the wrong class")).to_have_count(0)
    examples = httpx2.get(f"{running.api}/v1/heads/{HEAD}").json()["examples"]
    assert sorted(example["class"] for example in examples) == ["green"] * 13 + ["red"] * 12


def test_a_change_of_somebody_else_is_not_overwritten(page: Page, running: Running, teach: Teach) -> None:
    """The click is refused with the reason, and works once the page shows the new state."""
    photos = photos_of("red", "green", count=12)
    page.goto(teach({"red": [*photos["red"], photo_of("green", 50)], "green": photos["green"]}))
    move = page.get_by_role("button", name="Move to green")
    expect(move).to_be_visible()
    wait_for_charts(page)
    files = as_form({"green": [photo_of("green", 60)]})
    httpx2.post(f"{running.api}/v1/heads/{HEAD}/examples", files=files, timeout=60).raise_for_status()
    move.click()
    expect(page.get_by_text("This page shows the newest state now")).to_be_visible()
    expect(page.get_by_text("13 taught")).to_have_count(2)
    move.click()
    expect(page.get_by_text("14 taught")).to_be_visible()


def test_what_is_missing_stands_beside_its_field(page: Page, running: Running) -> None:
    """Teach with an empty form names each missing thing where it belongs, and sends nothing."""
    page.goto(f"{running.page}/teach")
    expect(page.get_by_text("10 to 20 are enough for a start")).to_be_visible()
    add_photos(page, "class 1", photo_of("red", 0), b"not a photo")
    expect(page.get_by_text("1.jpg was not added")).to_be_visible()
    page.get_by_role("button", name="Teach", exact=True).click()
    for sentence in ("Give it a name.", "Give this class a name.", "Something is missing"):
        expect(page.get_by_text(sentence)).to_be_visible()
    fill(page, "A name for all of it", "杯子")
    expect(page.get_by_text("Latin letters and digits")).to_be_visible()
    fill(page, "Name of class 1", "same")
    fill(page, "Name of class 2", "same")
    expect(page.get_by_text("Another class has this name")).to_be_visible()
    save_screenshot(page, "teach-missing")
    assert httpx2.get(f"{running.api}/v1/heads").json()["heads"] == []


def test_one_click_takes_five_photos(page: Page, running: Running) -> None:
    """The camera starts only after the switch, takes bursts one after the other, and goes out with the switch."""
    page.goto(f"{running.page}/teach")
    switch = page.get_by_text("Use the camera for class 1")
    switch.click()
    take = page.get_by_role("button", name="Take 5 photos")
    for count in (5, 10):
        expect(take).to_be_enabled()
        take.click()
        expect(page.get_by_text(f"{count} new", exact=True)).to_be_visible()
    page.get_by_role("button", name="See and sort out the photos of class 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Take out").first.click()
    expect(page.get_by_role("dialog").get_by_role("img")).to_have_count(9)
    page.keyboard.press("Escape")
    expect(page.get_by_text("9 new", exact=True)).to_be_visible()
    stream = page.locator("video").evaluate_handle("video => video.srcObject")
    switch.click()
    expect(take).to_have_count(0)
    page.wait_for_function("stream => stream.getTracks().every(track => track.readyState === 'ended')", arg=stream)


@pytest.mark.parametrize(("label", "suffix"), [("ONNX", "onnx"), ("Weights and card", "zip")])
def test_export(page: Page, teach: Teach, label: str, suffix: str) -> None:
    """Each format is downloaded under the head's name, with the network in it."""
    page.goto(teach(photos_of("red", "green")))
    page.get_by_role("tab", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    assert download.value.suggested_filename == f"{HEAD}.{suffix}"
    assert Path(download.value.path()).stat().st_size > 20_000_000  # 11 million weights, float16 or float32


def test_classify_with_a_head(page: Page, running: Running, teach: Teach) -> None:
    """The Classify page shows what a head says beside the model's classes, for one photo and for many."""
    teach(photos_of("red", "green", count=12))
    for photos in (photos_of("red", count=3, first=200)["red"], [photo_of("green", 100)]):
        page.goto(running.page)
        page.get_by_role("combobox", name="Also use the taught classes of …").click()
        page.get_by_role("option", name=HEAD).click()
        page.keyboard.press("Escape")
        upload(page, *payloads(*photos))
        if len(photos) > 1:
            expect(page.get_by_text(re.compile(rf"^{HEAD}: \w"))).to_have_count(3)
            expect(page.get_by_text(re.compile(rf"^{HEAD}: red \d+%")).first).to_be_visible()
        else:
            expect(page.get_by_text("Top classes")).to_be_visible()
            expect(page.get_by_test_id("stAlert").get_by_text("green")).to_be_visible()
            save_screenshot(page, "classify-with-a-head")
