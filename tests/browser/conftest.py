"""One headless Chromium per file of tests, one page per test, and the files to upload."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve_app.release.rollout import ServeApi, previous_config
from tests.support.browser import CHROMIUM
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.taught_photos import Photos, as_form
from tests.support.teach_page import HEAD, Teach

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


@pytest.fixture
def teach(running: Running) -> Iterator[Teach]:
    """Teach the head from photos by the API, and return the address of its page; the end of the test deletes it."""
    url = f"{running.api}/v1/heads/{HEAD}"

    def put(photos: Photos) -> str:
        httpx2.put(url, files=as_form(photos), timeout=60).raise_for_status()
        return f"{running.page}/teach?head={HEAD}"

    yield put
    httpx2.delete(url)


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A window as narrow as a small phone's."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    yield page
    page.close()
