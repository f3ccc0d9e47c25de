"""What the browser tests of the Teach page share: photos that demo weights tell apart, and its widgets."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, Page

from tests.support.browser import upload, wait_for_charts
from tests.support.photos import encode
from tests.support.running import Running
from tests.support.taught_photos import COLORS, Photos, as_form

HEAD = "colors"
Teach = Callable[[Photos], str]


def photo_of(class_name: str, seed: int) -> bytes:
    """Return a picture of tiles in shades of the class's color; tiles and shades are others for each seed."""
    random = np.random.default_rng(seed)
    across = int(random.integers(1, 40))
    shades = 1 - random.random() * random.random((across, across, 1))
    colors = np.array(COLORS[class_name]) * shades * random.uniform(0.4, 1.1)
    return encode(
        Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8)).resize((160, 120), Image.Resampling.NEAREST)
    )


def photos_of(*class_names: str, count: int = 8, first: int = 0) -> dict[str, list[bytes]]:
    """Return ``count`` photos of each class."""
    return {name: [photo_of(name, first + seed) for seed in range(count)] for name in class_names}


def payloads(*photos: bytes) -> list[FilePayload]:
    return [{"name": f"{i}.jpg", "mimeType": "image/jpeg", "buffer": photo} for i, photo in enumerate(photos)]


def fill(page: Page, label: str, text: str) -> None:
    """Type into a field and wait until the page has taken it."""
    field = page.get_by_label(label)
    field.fill(text)
    field.press("Enter")
    wait_for_charts(page)


def add_photos(page: Page, subject: str, *photos: bytes) -> None:
    """Choose files in the uploader of a class."""
    region = page.get_by_role("region", name=f"Add photos of {subject}", exact=True)
    upload(page, *payloads(*photos), into=region.get_by_test_id("stFileUploaderDropzoneInput"))
    wait_for_charts(page)


def overflow_px(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    wait_for_charts(page)
    script = "element => element.scrollWidth - element.clientWidth"
    return max(int(page.locator(name).evaluate(script)) for name in ("html", "[data-testid=stMain]"))


def suggest(service: Running, photos: Photos) -> None:
    """Suggest photos by the API to the owner of the head."""
    url = f"{service.api}/v1/heads/{HEAD}/suggestions"
    httpx2.post(url, files=as_form(photos), timeout=60).raise_for_status()


def try_photo(page: Page, photo: bytes) -> None:
    """Choose a photo under "Try it"."""
    region = page.get_by_role("region", name="A photo to try")
    upload(page, *payloads(photo), into=region.get_by_test_id("stFileUploaderDropzoneInput"))
