"""Make the README's pictures: ``python -m docs.screenshots http://127.0.0.1:8501 http://127.0.0.1:8000``.

The arguments are the addresses of the running page and of its API. The photos are the page's own samples.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, expect, sync_playwright

from frontend.api_client import ApiClient
from frontend.components.samples import FOLDER, load_samples
from tests.support.browser import CHROMIUM, upload, wait_for_charts

IMAGES = Path(__file__).parent / "images"
WIDTH_PX, TIMEOUT_MS, QUALITY = 1280, 60_000, 80
CLASSES = {"cat.jpg": "cat", "cup.jpg": "cup", "bee.jpg": "bee", "horses.jpg": "horse", "pyramid.jpg": "pyramid"}

CARDS, PHOTOS_PER_CLASS = ("Name of class 1", "Name of class 2"), 16
TAUGHT = {"my cup": ["cup.jpg"], "other things": ["bee.jpg", "cat.jpg", "horses.jpg", "pyramid.jpg", "red-panda.jpg"]}


def make_photos(folder: Path) -> list[Path]:
    """Write nine photos in four formats, and a file that is no photo; return them in alphabetical order."""
    for sample in load_samples():
        (folder / sample.photo.name).write_bytes(sample.photo.data)
    (folder / "notes.jpg").write_text("not a photo\n")
    cat = Image.open(FOLDER / "cat.jpg")
    cat.crop((100, 0, 400, 300)).save(folder / "cat-close.png")
    cat.convert("L").save(folder / "cat-gray.gif")
    ImageOps.mirror(cat).save(folder / "cat-mirrored.webp")
    return sorted(folder.iterdir())


def make_crops(folder: Path, names: list[str], count: int) -> list[Path]:
    """Write ``count`` different parts of the sample photos of these names, as if they were photos of their own."""
    random, files = np.random.default_rng(0), []
    for number in range(count):
        photo = Image.open(FOLDER / names[number % len(names)])
        side = round(min(photo.size) * random.uniform(0.45, 0.95))
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        files.append(folder / f"{names[0]}-{number}.jpg")
        photo.crop((left, top, left + side, top + side)).save(files[-1], quality=90)
    return files


def make_zip(path: Path, names: dict[str, Path]) -> Path:
    """Write a zip of files under these names."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in names.items():
            archive.write(file, name)
    return path


def take(browser: Browser, name: str, height: int, show: Callable[[Page], None], dark: bool = False) -> None:
    """Open a page, let ``show`` fill it, and save what the window shows."""
    page = browser.new_page(viewport={"width": WIDTH_PX, "height": height}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(TIMEOUT_MS)
    show(page)
    wait_for_charts(page)
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").save(IMAGES / f"{name}.webp", quality=QUALITY, method=6)
    page.close()


def main(url: str, api: str) -> None:
    """Save a picture of each page; of the first one also in a dark window."""
    client = ApiClient(api)
    model = client.models()["models"][0]
    known = client.classes(model["name"], model["variant"])
    expect.set_options(timeout=TIMEOUT_MS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        photos = Path(folder, "photos")
        photos.mkdir()
        files = make_photos(photos)
        batch = make_zip(Path(folder, "holiday.zip"), {file.name: file for file in files})
        labeled = {f"{label}/{name}": photos / name for name, label in CLASSES.items() if label in known}
        evaluation = make_zip(Path(folder, "labeled.zip"), labeled)

        def show_one(page: Page) -> None:
            page.goto(url)
            page.get_by_role("button", name=load_samples()[0].alt).click()
            expect(page.get_by_text("Top classes")).to_be_visible()

        def show_many(page: Page) -> None:
            page.goto(url)
            upload(page, *files)
            expect(page.get_by_text("Details").first).to_be_visible()

        def show_batch(page: Page) -> None:
            page.goto(f"{url}/batch")
            upload(page, batch)
            page.get_by_role("button", name="Classify the zip").click()
            expect(page.get_by_text("could not be classified")).to_be_visible()

        def show_evaluate(page: Page) -> None:
            page.goto(f"{url}/evaluate")
            page.get_by_role("tab", name="Zip").click()
            page.get_by_test_id("stFileUploaderDropzoneInput").last.set_input_files(str(evaluation))
            expect(page.get_by_text("Most confident mistakes")).to_be_visible()

        def show_teach(page: Page) -> None:
            page.goto(f"{url}/teach")
            for label, text in (("A name for all of it", "Cups"), *zip(CARDS, TAUGHT, strict=True)):
                page.get_by_label(label).fill(text)
                page.get_by_label(label).press("Enter")
                wait_for_charts(page)
            for number, (name, names) in enumerate(TAUGHT.items()):
                crops = make_crops(Path(folder), names, PHOTOS_PER_CLASS)
                upload(page, *crops, into=page.get_by_test_id("stFileUploaderDropzoneInput").nth(number))
                expect(page.get_by_role("button", name=f"See and sort out the photos of {name}")).to_be_visible()
            page.get_by_role("button", name="Teach", exact=True).click()
            expect(page.get_by_role("heading", name="cups")).to_be_visible()
            upload(page, FOLDER / "cup.jpg", into=page.get_by_test_id("stFileUploaderDropzoneInput").nth(2))
            expect(page.get_by_text("These places speak for")).to_be_visible()

        def show_numbers(path: str) -> Callable[[Page], None]:
            def show(page: Page) -> None:
                page.goto(f"{url}/{path}")
                expect(page.get_by_test_id("stMetric").first).to_be_visible()

            return show

        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        take(browser, "classify", 1150, show_one)
        take(browser, "classify-dark", 1150, show_one, dark=True)
        take(browser, "many", 1250, show_many)
        take(browser, "teach", 1150, show_teach)
        take(browser, "batch", 1000, show_batch)
        take(browser, "evaluate", 1100, show_evaluate)
        take(browser, "analytics", 1000, show_numbers("analytics"))
        take(browser, "status", 900, show_numbers("status"))


if __name__ == "__main__":
    main(*sys.argv[1:])
