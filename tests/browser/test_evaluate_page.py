"""The Evaluate page in Chromium, against the running service."""

from __future__ import annotations

import zipfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser import NEEDS_CHROMIUM, download_csv, save_screenshot, upload
from tests.support.running import Running
from tests.support.weights import TINY_LABELS

pytestmark = NEEDS_CHROMIUM


def test_evaluate(page: Page, running: Running, files: list[Path], tmp_path: Path) -> None:
    """A zip with a folder per class gives metrics, both diagrams, the mistakes and a CSV."""
    labels = TINY_LABELS[:2]
    archive = tmp_path / "labeled.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for i, path in enumerate(files[:7]):
            into.write(path, f"mine/{labels[i % 2]}/{path.name}")
    page.goto(f"{running.page}/evaluate")
    expect(page.get_by_role("heading", name="How good is the model?")).to_be_visible()
    page.get_by_role("tab", name="Zip").click()
    upload(page, archive, into=page.get_by_test_id("stFileUploaderDropzoneInput").last)
    expect(page.get_by_text("Most confident mistakes")).to_be_visible()
    expect(page.get_by_test_id("stMetric").filter(has_text="Photos")).to_contain_text("7")
    for text in ("Confusion matrix", "Reliability diagram", "By class", "Accuracy when sure"):
        expect(page.get_by_text(text).first).to_be_visible()
    save_screenshot(page, "evaluate")
    assert len(download_csv(page)) == 8
