"""One headless Chromium per file of tests, one page per test, and the files to upload."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve_app.release.rollout import ServeApi, previous_config
from tests.support.browser import CHROMIUM
from tests.support.photos import make_photo
from tests.support.running import Running

TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")  # its event loop runs until it closes: tests of other folders need their own
def browser() -> Iterator[Browser]:
    """Headless Chromium with a generated camera, which needs no permission."""
    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page in a wide window."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    yield page
    page.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """64 files named like photos; five of them hold text."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(64):
        broken = i % 13 == 7
        (folder / f"{i:02}.jpg").write_bytes(b"not a photo" if broken else make_photo(i))
    return sorted(folder.iterdir())


@pytest.fixture
def votes(running: Running, tmp_path: Path) -> Iterator[Path]:
    """The folder in which the running service keeps feedback and its photos during the test."""
    cluster = ServeApi(running.dashboard)
    before = previous_config(cluster.state())
    config = copy.deepcopy(before)
    deployments = config["applications"][0]["deployments"]
    (ingress,) = (deployment for deployment in deployments if deployment["name"] == "Ingress")
    ingress["user_config"]["feedback"] = {"folder": str(tmp_path), "keep_images": True}
    cluster.apply(config, 60)
    yield tmp_path
    cluster.apply(before, 60)
