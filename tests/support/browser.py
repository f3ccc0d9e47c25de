"""What the browser tests share: where Chromium is, uploads, keys, axe-core, screenshots, a page server of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FilePayload, Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from serve_app.launcher.environment import free_port
from tests.support.paths import ROOT

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("SCREENSHOTS")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="no Chromium: install it (Debian: apt install chromium) or set CHROMIUM; CI never skips these tests",
)


def upload(page: Page, *files: Path | FilePayload, into: Locator | None = None) -> None:
    """Choose files in the page's first uploader that can be seen, or another one, once the script has ended.

    Uploaders of other tabs are in the page, too, sometimes before the one of the open tab.
    """
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    seen = page.get_by_test_id("stFileUploader").filter(visible=True).first
    uploader = into or seen.get_by_test_id("stFileUploaderDropzoneInput")
    send(page, lambda: uploader.set_input_files(files))  # type: ignore[arg-type] # its type says one kind at a time


def upload_by_dialog(page: Page, open_dialog: Callable[[], None], file: Path) -> None:
    """Choose a file in the dialog that ``open_dialog`` opens."""

    def choose() -> None:
        with page.expect_file_chooser() as dialog:
            open_dialog()
        dialog.value.set_files(file)

    send(page, choose)


def send(page: Page, choose: Callable[[], None]) -> None:
    """Choose files, and again if the browser does not send them.

    On a busy machine, files that are chosen within milliseconds of the script's end are lost in 1 of 10 cases.
    """
    for tries_left in (2, 1, 0):
        try:
            with page.expect_request(lambda request: "/upload_file/" in request.url, timeout=15_000):
                choose()
            return
        except PlaywrightTimeoutError:
            if not tries_left:
                raise


def tab_to(page: Page, target: Locator, max_keys: int = 80) -> None:
    """Press Tab until an element has the focus, as a person without a mouse does."""
    for _ in range(max_keys):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{max_keys} times Tab did not reach {target}")


def serious_findings(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical on the page as it is now, each with the elements it concerns."""
    wait_for_charts(page)
    violations = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:300]} ({node['failureSummary']})"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def download_csv(page: Page) -> list[str]:
    """Click the button CSV and return the lines of the file."""
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    return Path(download.value.path()).read_text().splitlines()


def wait_for_charts(page: Page) -> None:
    """Wait until the script has ended, no element is outdated or still loading, and every chart is drawn."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.locator("[data-stale=true]")).to_have_count(0)
    expect(page.get_by_test_id("stSkeleton").filter(visible=True)).to_have_count(0)
    charts = page.get_by_test_id("stVegaLiteChart")
    expect(charts.filter(has=page.locator(".marks"))).to_have_count(charts.count())  # Vega has drawn into it


def save_screenshot(page: Page, name: str) -> None:
    """Save a picture of the whole page in the folder that the environment's SCREENSHOTS names, if it does."""
    if SCREENSHOTS:
        wait_for_charts(page)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


@contextmanager
def page_server(**environment: str) -> Iterator[str]:
    """Run a page server with more environment variables; yield its URL once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "frontend/app.py", f"--server.port={port}"]
    env = {**os.environ, **environment}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            printed = iter(process.stdout.readline, "")
            assert any("URL:" in line for line in printed), "the page server ended before it printed its URL"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()  # on SIGTERM the server waits for browsers to hang up, and the test's page is still open
