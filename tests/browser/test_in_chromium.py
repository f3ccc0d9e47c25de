"""The page in real headless Chromium, against the running service."""

from __future__ import annotations

import base64
import copy
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve_app.analytics import etl
from serve_app.launcher.environment import free_port
from serve_app.observability.feedback_store import labeled_images
from serve_app.release.rollout import Cluster, previous_config
from tests.conftest import make_photo
from tests.support.logged import log_day
from tests.support.paths import ROOT
from tests.support.running import Running

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("SCREENSHOTS")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="no Chromium here: install it (Debian: apt install chromium) or set CHROMIUM; CI always runs these",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield page
    page.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """64 files, five of them no photos."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(64):
        broken = i % 13 == 7
        (folder / f"{i:02}.jpg").write_bytes(b"not a photo" if broken else make_photo(i))
    return sorted(folder.iterdir())


def upload(page: Page, *paths: Path) -> None:
    page.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files([str(path) for path in paths])


def shoot(page: Page, name: str) -> None:
    """Keep a picture for a human, where SCREENSHOTS says."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def test_one_photo(page: Page, running: Running, files: list[Path]) -> None:
    """Upload one: the top classes, the heat map beside the photo, times and snippets."""
    page.goto(running.page)
    expect(page.get_by_role("heading", name="What is in this photo?")).to_be_visible()
    upload(page, files[0])
    expect(page.get_by_text("Top classes")).to_be_visible()
    expect(page.get_by_text("What speaks for")).to_be_visible()
    expect(page.get_by_text(re.compile(r"Time in the service · [\d.]+ ms"))).to_be_visible()
    expect(page.get_by_test_id("stImage").locator("img")).to_have_count(2)
    page.wait_for_timeout(1500)
    shoot(page, "one")
    page.get_by_role("tab", name="JSON").click()
    expect(page.get_by_role("tabpanel", name="JSON").get_by_text('"predictions"')).to_be_visible()


def test_clicking_a_bar_shows_that_classs_map(page: Page, running: Running, files: list[Path]) -> None:
    page.goto(running.page)
    upload(page, files[0])
    caption = page.get_by_text("What speaks for")
    expect(caption).to_be_visible()
    before = caption.inner_text()
    bars = page.get_by_test_id("stVegaLiteChart").first
    expect(bars.locator("canvas, svg").first).to_be_visible()
    page.wait_for_timeout(1500)
    box = bars.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.75)
    expect(caption).not_to_have_text(before)


def test_many_photos_with_broken_ones(page: Page, running: Running, files: list[Path]) -> None:
    """Upload 64 with 5 broken: progress, 59 classified, 5 failed with their reason, table and downloads."""
    page.goto(running.page)
    expect(page.get_by_role("heading", name="What is in this photo?")).to_be_visible()
    upload(page, *files)
    expect(page.get_by_test_id("stProgress").first).to_be_visible()
    metrics = page.get_by_test_id("stMetric")
    expect(metrics).to_have_count(4)
    expect(metrics.nth(1)).to_contain_text("59")
    expect(metrics.nth(3)).to_contain_text("5")
    shoot(page, "many")
    page.get_by_text("Failed", exact=True).nth(1).click()
    expect(page.get_by_text("not a JPEG, PNG").first).to_be_visible()
    expect(page.get_by_test_id("stAlert")).to_have_count(5)
    page.get_by_text("All", exact=True).click()
    page.get_by_text("Table", exact=True).click()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    shoot(page, "table")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert len(rows) == 65
    assert sum("not a JPEG" in row for row in rows) == 5


def test_folder(page: Page, running: Running, files: list[Path]) -> None:
    """A whole folder at once; its 64 files are all photos by name, five are none by content."""
    page.goto(running.page)
    page.get_by_role("tab", name="Folder").click()
    page.locator("input[webkitdirectory]").set_input_files(str(files[0].parent))
    expect(page.get_by_test_id("stMetric").nth(0)).to_contain_text("64")
    expect(page.get_by_test_id("stMetric").nth(3)).to_contain_text("5")


def test_camera(page: Page, running: Running) -> None:
    """Chromium's stand-in camera: permission is asked only after the switch, then one photo is classified."""
    page.goto(running.page)
    page.get_by_role("tab", name="Camera").click()
    page.get_by_text("Use the camera").click()
    # Until frames arrive, Streamlit's button is there but a click on it takes nothing.
    page.wait_for_function("() => document.querySelector('video')?.readyState >= 2")
    page.get_by_role("button", name="Take Photo").click()
    expect(page.get_by_text("Top classes")).to_be_visible()


def test_paste(page: Page, running: Running) -> None:
    """A picture pasted with Ctrl+V is classified like an uploaded one."""
    page.goto(running.page)
    page.get_by_role("tab", name="Paste").click()
    box = page.get_by_test_id("stChatInputTextArea")
    box.evaluate(
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


def test_status_page(page: Page, running: Running) -> None:
    page.goto(f"{running.page}/status")
    expect(page.get_by_text("Ready: every stage answers.")).to_be_visible()
    expect(page.get_by_text("Mean batch")).to_be_visible()
    page.wait_for_timeout(1000)
    shoot(page, "status")


def test_batch_job(page: Page, running: Running, files: list[Path], tmp_path: Path) -> None:
    """A zip becomes a job with an address of its own; progress, the failed files with their reason, downloads."""
    archive = tmp_path / "holiday.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for path in files:
            into.write(path, path.name)
    page.goto(f"{running.page}/batch")
    expect(page.get_by_role("heading", name="Batch jobs")).to_be_visible()
    shoot(page, "batch-empty")
    upload(page, archive)
    page.get_by_role("button", name="Classify all of it").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    shoot(page, "batch-running")
    expect(page.get_by_text("64 of 64 images · 5 failed")).to_be_visible(timeout=120_000)
    expect(page.get_by_text("5 files could not be classified")).to_be_visible()
    assert "job=" in page.url
    page.goto(page.url)
    expect(page.get_by_text("64 of 64 images · 5 failed")).to_be_visible()
    expect(page.get_by_text("64 images, 5 failed").first).to_be_visible()
    page.wait_for_timeout(1500)
    shoot(page, "batch")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert len(rows) == 65
    assert sum("unsupported_image" in row for row in rows) == 5


def test_narrow_windows_work(browser: Browser, running: Running, files: list[Path]) -> None:
    """On a phone nothing is cut off sideways."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(running.page)
    upload(page, files[0])
    expect(page.get_by_text("Top classes")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(page, "narrow")
    page.close()


def test_evaluate(page: Page, running: Running, files: list[Path], tmp_path: Path) -> None:
    """A zip of folders named like classes: how often the model was right, where not, and a download."""
    labels = ("cat", "truck")
    archive = tmp_path / "labeled.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for i, path in enumerate(files[:7]):
            into.write(path, f"mine/{labels[i % 2]}/{path.name}")
    page.goto(f"{running.page}/evaluate")
    expect(page.get_by_role("heading", name="How good is the model?")).to_be_visible()
    page.get_by_role("tab", name="Zip").click()
    page.get_by_test_id("stFileUploaderDropzoneInput").last.set_input_files(str(archive))
    expect(page.get_by_text("Worst mistakes")).to_be_visible()
    expect(page.get_by_test_id("stMetric").filter(has_text="Photos")).to_contain_text("7")
    for words in ("Confusion", "Reliability", "By class", "Right where sure"):
        expect(page.get_by_text(words).first).to_be_visible()
    page.wait_for_timeout(1500)
    shoot(page, "evaluate")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 8


@contextmanager
def own_page(page: Page, path: str = "", **environment: str) -> Iterator[str]:
    """Run a page of our own and open it; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "frontend/app.py", f"--server.port={port}"]
    env = {**os.environ, **environment}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                page.goto(f"http://127.0.0.1:{port}{path}")
                break
            except Exception:  # its server is still starting
                page.wait_for_timeout(300)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_analytics(page: Page, running: Running, tmp_path: Path) -> None:
    """Two weeks of a log, one class doubled in the second: numbers, charts, and drift by name."""
    days = [date(2026, 3, n) for n in range(1, 15)]
    for day in days:
        log_day(tmp_path, day, 1000, doubled="cat" if day > days[6] else None)
    etl.run(tmp_path)
    with own_page(page, "/analytics", API_URL=running.api, PREDICTION_LOG=str(tmp_path)):
        expect(page.get_by_role("heading", name="Analytics", exact=True)).to_be_visible()
        expect(page.get_by_test_id("stMetric").filter(has_text="Images").first).to_contain_text("7,000")
        for words in ("Time per image, ms", "Confidence", "Least confident", "Drift"):
            expect(page.get_by_text(words).first).to_be_visible()
        expect(page.get_by_text(re.compile("class mix: (small|moderate|large)"))).to_be_visible()
        expect(page.get_by_text("sharpness: none")).to_be_visible()
        page.wait_for_timeout(2000)
        shoot(page, "analytics")


def test_server_down(page: Page) -> None:
    """Without the API both pages say so, and what to do."""
    with own_page(page, API_URL=f"http://127.0.0.1:{free_port()}") as url:
        expect(page.get_by_text("The classification service is not answering.")).to_be_visible()
        expect(page.get_by_text("make run")).to_be_visible()
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        shoot(page, "down")
        for other in ("status", "batch", "evaluate"):
            page.goto(f"{url}/{other}")
            expect(page.get_by_text("The classification service is not answering.")).to_be_visible()


def test_a_thumb_and_the_right_class(page: Page, running: Running, files: list[Path], tmp_path: Path) -> None:
    """Thumbs appear where feedback is kept; down, then a class: the photo is in the training set under it."""
    cluster = Cluster(running.dashboard)
    before = previous_config(cluster.state())
    config = copy.deepcopy(before)
    (ingress,) = (one for one in config["applications"][0]["deployments"] if one["name"] == "Ingress")
    ingress["user_config"]["feedback"] = {"folder": str(tmp_path), "keep_images": True}
    cluster.apply(config, 60)
    try:
        page.goto(running.page)
        upload(page, files[0])
        expect(page.get_by_text("With your answer the photo is kept")).to_be_visible()
        page.get_by_test_id("stFeedback").get_by_role("radio").last.click()
        page.get_by_role("combobox", name="What is it?").click()
        page.get_by_role("option").first.click()
        expect(page.get_by_text("Thank you. The photo is kept with it.")).to_be_visible()
        page.wait_for_timeout(500)
        shoot(page, "feedback")
    finally:
        cluster.apply(before, 60)
    (kept,) = labeled_images(tmp_path)
    assert kept.path.read_bytes() == files[0].read_bytes()
