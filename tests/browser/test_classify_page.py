"""The Classify page in Chromium, against the running service."""

from __future__ import annotations

import base64
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from serve_app.observability.feedback_store import labeled_images
from tests.support.browser import NEEDS_CHROMIUM, download_csv, save_screenshot, upload, wait_for_charts
from tests.support.photos import encode, make_photo, make_picture
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM


def test_one_photo(page: Page, running: Running, files: list[Path]) -> None:
    """One photo shows its classes, the heat map beside it, the time in the service and the raw result."""
    page.goto(running.page)
    expect(page.get_by_role("heading", name="What is in this photo?")).to_be_visible()
    upload(page, files[0])
    expect(page.get_by_text("Top classes")).to_be_visible()
    expect(page.get_by_text("Heat map for “")).to_be_visible()
    expect(page.get_by_text(re.compile(r"Time in the service · [\d.]+ ms"))).to_be_visible()
    expect(page.get_by_test_id("stImage").locator("img")).to_have_count(2)
    save_screenshot(page, "one")
    page.get_by_role("tab", name="JSON").click()
    expect(page.get_by_role("tabpanel", name="JSON").get_by_text('"predictions"')).to_be_visible()


def test_navigation_lists_exactly_the_registered_pages(page: Page, running: Running) -> None:
    """The navigation lists the six registered pages and no file that Streamlit found by itself."""
    page.goto(running.page)
    links = page.get_by_test_id("stTopNavLink")
    expect(links).to_have_count(6)
    assert [link.inner_text().split("\n")[-1] for link in links.all()] == [
        *("Classify", "Teach", "Batch jobs", "Evaluate", "Analytics", "Status")
    ]


def test_clicking_a_bar_shows_that_classs_heat_map(page: Page, running: Running, files: list[Path]) -> None:
    """A click on another class's bar replaces the heat map by that class's."""
    page.goto(running.page)
    upload(page, files[0])
    caption = page.get_by_text("Heat map for “")
    expect(caption).to_be_visible()
    before = caption.inner_text()
    wait_for_charts(page)
    box = page.get_by_test_id("stVegaLiteChart").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.75)
    expect(caption).not_to_have_text(before)


def test_many_photos_with_broken_ones(page: Page, running: Running, files: list[Path]) -> None:
    """Of 64 files the five broken ones fail with a reason, in cards, table and CSV; the others are classified."""
    page.goto(running.page)
    expect(page.get_by_role("heading", name="What is in this photo?")).to_be_visible()
    upload(page, *files)
    expect(page.get_by_test_id("stProgress").first).to_be_visible()
    metrics = page.get_by_test_id("stMetric")
    expect(metrics).to_have_count(4)
    expect(metrics.nth(1)).to_contain_text("59")
    expect(metrics.nth(3)).to_contain_text("5")
    save_screenshot(page, "many")
    page.get_by_text("Failed", exact=True).nth(1).click()
    expect(page.get_by_text("Unsupported image").first).to_be_visible()
    expect(page.get_by_test_id("stAlert")).to_have_count(5)
    page.get_by_text("All", exact=True).click()
    page.get_by_text("Table", exact=True).click()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    save_screenshot(page, "table")
    rows = download_csv(page)
    assert len(rows) == 65
    assert sum("Unsupported image" in row for row in rows) == 5


@pytest.mark.parametrize(("kind", "suffix"), [("HEIF", "heic"), ("AVIF", "avif")])
def test_formats_of_phones(page: Page, running: Running, tmp_path: Path, kind: str, suffix: str) -> None:
    """A HEIC and an AVIF are classified and shown, which Chromium could not do with the HEIC itself."""
    path = tmp_path / f"phone.{suffix}"
    path.write_bytes(encode(make_picture(), kind))
    page.goto(running.page)
    upload(page, path)
    expect(page.get_by_text("Top classes")).to_be_visible()
    expect(page.get_by_text(f"{kind} · 320 × 240 px")).to_be_visible()
    shown = page.get_by_role("img", name=f"Your photo {path.name}", exact=True)
    expect(shown).to_have_js_property("naturalWidth", 320)


def test_zip(page: Page, running: Running, files: list[Path], tmp_path: Path) -> None:
    """The photos of a zip are shown like a folder's."""
    archive = tmp_path / "holiday.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for path in files[:9]:
            into.write(path, path.name)
    page.goto(running.page)
    page.get_by_role("tab", name="Zip").click()
    zip_panel = page.get_by_role("tabpanel", name="Zip")
    upload(page, archive, into=zip_panel.get_by_test_id("stFileUploaderDropzoneInput"))
    expect(page.get_by_test_id("stMetric").nth(0)).to_contain_text("9")
    expect(page.get_by_test_id("stMetric").nth(3)).to_contain_text("1")


def test_drag_and_drop(page: Page, running: Running) -> None:
    """A photo that is dropped on the uploader is classified."""
    page.goto(running.page)
    zone = page.get_by_test_id("stFileUploaderDropzone").first
    dropped = page.evaluate_handle(
        """encoded => {
            const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.jpg", {type: "image/jpeg"}));
            return transfer;
        }""",
        base64.b64encode(make_photo()).decode(),
    )
    for event in ("dragenter", "dragover", "drop"):
        zone.dispatch_event(event, {"dataTransfer": dropped})
    expect(page.get_by_role("img", name="Your photo dropped.jpg", exact=True)).to_be_visible()
    expect(page.get_by_text("Top classes")).to_be_visible()


def test_folder(page: Page, running: Running, files: list[Path]) -> None:
    """A folder's 64 files are uploaded at once, by their names; the five broken ones fail."""
    page.goto(running.page)
    page.get_by_role("tab", name="Folder").click()
    upload(page, files[0].parent, into=page.locator("input[webkitdirectory]"))
    expect(page.get_by_test_id("stMetric").nth(0)).to_contain_text("64")
    expect(page.get_by_test_id("stMetric").nth(3)).to_contain_text("5")


def test_camera(page: Page, running: Running) -> None:
    """A picture from the camera is classified; the camera starts only after the switch."""
    page.goto(running.page)
    page.get_by_role("tab", name="Camera").click()
    page.get_by_text("Use the camera").click()
    # A click on the button before the first video frame takes no picture.
    page.wait_for_function("() => document.querySelector('video')?.readyState >= 2")
    page.get_by_role("button", name="Take Photo").click()
    expect(page.get_by_text("Top classes")).to_be_visible()


def test_paste(page: Page, running: Running) -> None:
    """A picture pasted with Ctrl+V is classified like an uploaded one."""
    page.goto(running.page)
    page.get_by_role("tab", name="Paste").click()
    page.get_by_test_id("stChatInputTextArea").evaluate(
        """(element, encoded) => {
            const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
            const clipboard = new DataTransfer();
            clipboard.items.add(new File([bytes], "pasted.jpg", {type: "image/jpeg"}));
            element.dispatchEvent(new ClipboardEvent("paste", {clipboardData: clipboard, bubbles: true}));
        }""",
        base64.b64encode(make_photo()).decode(),
    )
    expect(page.get_by_text("pasted.jpg")).to_be_visible()
    page.get_by_test_id("stChatInputSubmitButton").click()
    expect(page.get_by_text("Top classes")).to_be_visible()


def test_feedback_keeps_the_photo_under_its_right_class(
    page: Page, running: Running, files: list[Path], votes: Path
) -> None:
    """Where the service keeps feedback, a thumb down and a class put the photo into the training set."""
    page.goto(running.page)
    upload(page, files[0])
    expect(page.get_by_text("keeps the photo together with your feedback")).to_be_visible()
    page.get_by_test_id("stFeedback").get_by_role("radio").last.click()
    page.get_by_role("combobox", name="What is it?").click()
    page.get_by_role("option").first.click()
    expect(page.get_by_text("Thank you. The photo is saved with your feedback.")).to_be_visible()
    save_screenshot(page, "feedback")
    (kept,) = labeled_images(votes)
    assert kept.path.read_bytes() == files[0].read_bytes()
