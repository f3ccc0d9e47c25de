"""Make the README's pictures, with the running page: ``python -m docs.screenshots http://127.0.0.1:8501``.

The photos are samples of scikit-image (``pip install --no-deps scikit-image``); ``notebooks/pipeline.ipynb`` cuts its
photos out of ``many.png``.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import expect, sync_playwright

from tests.support.browser import CHROMIUM, upload, wait_for_charts

IMAGES = Path(__file__).parent / "images"
HEIGHTS_PX = {"one": 1000, "many": 1250}


def make_photos(samples: Path, folder: Path) -> list[Path]:
    """Write seven photos in four formats, and a file that is no photo; return them in alphabetical order."""
    for name, source in (("astronaut", "astronaut"), ("cat", "chelsea"), ("coffee", "coffee")):
        (folder / f"{name}.png").write_bytes((samples / f"{source}.png").read_bytes())
    (folder / "rocket.jpg").write_bytes((samples / "rocket.jpg").read_bytes())
    (folder / "notes.jpg").write_text("not a photo\n")
    cat = Image.open(samples / "chelsea.png").convert("RGB")
    cat.crop((100, 0, 400, 300)).save(folder / "cat-close.jpg")
    cat.convert("L").save(folder / "cat-gray.gif")
    ImageOps.mirror(cat).save(folder / "cat-mirrored.webp")
    return sorted(folder.iterdir())


def main(url: str) -> None:
    """Save a picture of the page with one photo and with all photos."""
    package = find_spec("skimage")
    if not package or not package.origin:
        sys.exit("scikit-image is not installed: run `pip install --no-deps scikit-image`")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        photos = make_photos(Path(package.origin).parent / "data", Path(folder))
        cat = [photo for photo in photos if photo.name == "cat.png"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, files in (("one", cat), ("many", photos)):
            page = chromium.new_page(viewport={"width": 1280, "height": HEIGHTS_PX[name]})
            page.goto(url)
            upload(page, *files)
            expect(page.get_by_text("Top classes" if name == "one" else "Details").first).to_be_visible(timeout=60_000)
            wait_for_charts(page)
            page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1])
