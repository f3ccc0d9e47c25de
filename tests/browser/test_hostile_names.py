"""Hostile file names and unusual pictures in Chromium, against the running service."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

from tests.support.browser import NEEDS_CHROMIUM, save_screenshot, upload
from tests.support.hostile_text import HOSTILE_TEXTS
from tests.support.photos import encode, make_photo, make_picture
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM
# What no text from outside may become. Streamlit's own icons and pictures are elsewhere or have other sources.
FORGED = (
    'a[href*="evil"], a[href^="mailto:"], img[src*="evil"], img[src^="data:image/svg"], script:text("alert"), b, del, '
    "table, li, .katex, .math, code, [data-testid=stMarkdownContainer] [style*='color'], "
    "[data-testid=stMarkdownBadge], [data-testid=stIconMaterial]"
)


def forged(page: Page) -> list[str]:
    """Return the HTML of each element that a text from outside became; the side panel has texts of the model only."""
    main = page.get_by_test_id("stMain")
    texts = main.locator("[data-testid=stMarkdownContainer], [data-testid=stCaptionContainer]")
    return [element.evaluate("element => element.outerHTML") for element in texts.locator(FORGED).all()]


def payloads(names: list[str], data: bytes | None = None) -> list[FilePayload]:
    """Return files for an uploader; a browser may send any name."""
    return [{"name": name, "mimeType": "image/jpeg", "buffer": data or make_photo(i)} for i, name in enumerate(names)]


@pytest.fixture
def requests(page: Page) -> list[str]:
    """URLs of other hosts that the page asks for."""
    others: list[str] = []
    page.on("request", lambda request: others.append(request.url) if "evil" in request.url else None)
    return others


def zipped(path: Path, names: list[str], data: bytes | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, data or make_photo(i))
    return path


@pytest.mark.parametrize("data", [None, b"not a photo"], ids=["photos", "broken"])
def test_names_of_many_photos(data: bytes | None, page: Page, running: Running, requests: list[str]) -> None:
    """Every name is shown as text, under pictures and in errors: no link, picture, HTML, color, emoji or formula."""
    page.goto(running.page)
    upload(page, *payloads(HOSTILE_TEXTS[:24], data and data + bytes(1)))
    expect(page.get_by_test_id("stMetric").first).to_contain_text("24")
    expect(page.get_by_test_id("stAlert" if data else "stImage")).to_have_count(24)
    shown = page.get_by_test_id("stMain").inner_text().replace("\u2060", "")
    for name in ("[click](http", ":red[hi]", ":streamlit:", "$x$", "WWW.evil.example", "bob@evil.example"):
        assert name in shown
    assert forged(page) == []
    assert requests == []
    save_screenshot(page, f"hostile-{'broken' if data else 'photos'}")


def test_name_of_one_photo(page: Page, running: Running, requests: list[str]) -> None:
    """The name of a refused photo stands in its error."""
    name = " ".join(HOSTILE_TEXTS)[:200]
    page.goto(running.page)
    upload(page, *payloads([name], b"text"))
    expect(page.get_by_text("Unsupported image")).to_be_visible()
    assert forged(page) == []
    assert requests == []


def test_name_of_a_job(page: Page, running: Running, tmp_path: Path, requests: list[str]) -> None:
    """The name of a zip is a heading and a button in the history."""
    archive = zipped(tmp_path / "x.zip", ["ok.jpg"])
    name = "[click](www.evil.example) :red[hi] $x$ bob@evil.example.zip"
    page.goto(f"{running.page}/batch")
    upload(page, {"name": name, "mimeType": "application/zip", "buffer": archive.read_bytes()})
    page.get_by_role("button", name="Classify the zip").click()
    heading = page.locator("h3").first
    expect(heading).to_contain_text("click")
    assert heading.inner_text().replace("\u2060", "") == name
    expect(page.get_by_role("button", name="click")).to_be_visible()
    assert page.locator("a[href*=evil], a[href^=mailto], .katex").count() == 0
    assert requests == []
    save_screenshot(page, "hostile-job")
    if (cancel := page.get_by_role("button", name="Cancel")).count():
        cancel.click()


def test_tables_have_no_export_of_their_own(page: Page, running: Running) -> None:
    """Streamlit's export writes cells that spreadsheets run as formulas."""
    page.goto(f"{running.page}/status")
    page.get_by_test_id("stDataFrame").first.hover()
    toolbar = page.get_by_test_id("stElementToolbar").first
    expect(toolbar.get_by_label("Search")).to_be_visible()
    expect(toolbar.get_by_label("Download as CSV")).to_have_count(0)


def test_names_of_folders_that_are_no_classes(page: Page, running: Running, tmp_path: Path) -> None:
    """The Evaluate page names them as text."""
    archive = zipped(tmp_path / "x.zip", ["[a](www.evil.example)/:red[hi]/1.jpg", "$x$ :smile:/1.jpg"])
    page.goto(f"{running.page}/evaluate")
    page.get_by_role("tab", name="Zip").click()
    upload(page, archive, into=page.get_by_test_id("stFileUploaderDropzoneInput").last)
    expect(page.get_by_text("not classes of the model")).to_be_visible()
    assert forged(page) == []


def test_16_bit_gray_is_shown_with_its_heat_map(page: Page, running: Running) -> None:
    """Picture and heat map of a 16-bit gray photo were white."""
    gray = Image.fromarray(np.asarray(make_picture().convert("L")).astype(np.uint16) * 257)
    page.goto(running.page)
    upload(page, {"name": "gray.png", "mimeType": "image/png", "buffer": encode(gray, "PNG")})
    expect(page.get_by_text("Heat map for “")).to_be_visible()
    shown = page.get_by_test_id("stImage").locator("img")
    expect(shown).to_have_count(2)
    for i in range(2):
        pixels = np.asarray(Image.open(io.BytesIO(shown.nth(i).screenshot())).convert("L"))
        assert pixels.mean() < 220
        assert pixels.std() > 20
