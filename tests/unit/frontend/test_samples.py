"""The sample photos of the page: what they are, whose they are, and that one click classifies them."""

from __future__ import annotations

import io
import json
import tomllib

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from frontend.components.samples import CHOSEN, FOLDER, load_samples
from tests.support.photos import make_photo

MAX_PX, MAX_BYTES = 640, 100_000


def test_every_photo_has_a_credit_and_is_small() -> None:
    """The folder holds exactly the six photos of CREDITS.toml, each with author, source and alternative text."""
    credits = tomllib.loads((FOLDER / "CREDITS.toml").read_text())["photo"]
    assert {path.name for path in FOLDER.iterdir()} == {"CREDITS.toml", *(credit["file"] for credit in credits)}
    assert len(credits) == len(load_samples()) == 6
    for credit, sample in zip(credits, load_samples(), strict=True):
        assert credit["author"]
        assert credit["source"].startswith("https://")
        assert len(sample.alt.split()) > 2
        assert len(sample.photo.data) < MAX_BYTES
        assert max(Image.open(io.BytesIO(sample.photo.data)).size) <= MAX_PX


@pytest.mark.parametrize("name", [sample.photo.name for sample in load_samples()])
def test_one_click_classifies_a_sample(page: AppTest, name: str) -> None:
    """A click on a sample's button shows its result; the buttons stay for the next one."""
    page.run()
    page.button(key=name).click().run()
    assert not page.exception
    assert json.loads(page.code[2].value)["id"] == name
    assert page.button(key=name)


def test_an_upload_takes_the_place_of_the_sample(page: AppTest) -> None:
    """With a photo of the visitor's own the samples are gone, and do not come back when it is removed."""
    page.run()
    page.button(key=load_samples()[0].photo.name).click().run()
    page.file_uploader[0].upload("own.jpg", make_photo(), "image/jpeg").run()
    assert not page.exception
    assert json.loads(page.code[2].value)["id"] == "own.jpg"
    assert CHOSEN not in page.session_state
    assert not [button for button in page.button if button.key == load_samples()[0].photo.name]
