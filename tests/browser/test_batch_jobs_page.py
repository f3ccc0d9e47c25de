"""The Batch jobs page in Chromium, against the running service."""

from __future__ import annotations

import zipfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser import NEEDS_CHROMIUM, download_csv, save_screenshot, upload
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM


def test_batch_job(page: Page, running: Running, files: list[Path], tmp_path: Path) -> None:
    """A zip becomes a job with its own URL, progress, failed files with reasons, a line in the history and a CSV."""
    archive = tmp_path / "holiday.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for path in files:
            into.write(path, path.name)
    page.goto(f"{running.page}/batch")
    expect(page.get_by_role("heading", name="Batch jobs")).to_be_visible()
    save_screenshot(page, "batch-empty")
    upload(page, archive)
    page.get_by_role("button", name="Classify the zip").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(page.get_by_text("64 of 64 images · 5 failed")).to_be_visible(timeout=120_000)
    expect(page.get_by_text("5 files could not be classified")).to_be_visible()
    assert "job=" in page.url
    page.goto(page.url)
    expect(page.get_by_text("64 of 64 images · 5 failed")).to_be_visible()
    expect(page.get_by_text("64 images, 5 failed").first).to_be_visible()
    save_screenshot(page, "batch")
    rows = download_csv(page)
    assert len(rows) == 65
    assert sum("unsupported_image" in row for row in rows) == 5
