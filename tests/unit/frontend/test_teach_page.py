"""The Teach page against the real API, without Ray; tests/browser/test_teach_page.py uses it as a visitor does."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient, Photo
from frontend.components.pictures import THUMBNAIL_PX, make_picture
from frontend.heads_client import HeadsClient
from serve_app.errors import OverloadedError
from serve_app.heads_config import HeadsConfig
from tests.support.local_service import LocalService
from tests.support.taught_photos import photos_of

HEAD = "colors"
PHOTOS = {
    name: [Photo(f"{name}-{n}.jpg", data) for n, data in enumerate(group)]
    for name, group in photos_of("red", "green", count=3).items()
}


def teach_script() -> None:
    from frontend.api_client import ApiClient
    from frontend.views.teach import show_teach

    show_teach(ApiClient())


@pytest.fixture
def page(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page Teach; ``page.run()`` opens it."""
    monkeypatch.setattr("frontend.api_client.ApiClient", lambda: client)
    return AppTest.from_function(teach_script, default_timeout=60)


@pytest.fixture
def heads(client: ApiClient, service: LocalService, tmp_path: Path) -> HeadsClient:
    """Heads of the service, which has none yet."""
    service.keep_heads(HeadsConfig(folder=str(tmp_path)))
    return HeadsClient(client)


def texts(page: AppTest) -> str:
    """Return what the page says in boxes."""
    return "\n".join(box.value for box in (*page.info, *page.warning, *page.error, *page.success))


def fill(page: AppTest) -> AppTest:
    """Name a head and two classes, and choose their photos."""
    page.run()
    for field, text in zip(page.text_input, ("Colors", *PHOTOS), strict=True):
        field.set_value(text)
    page.run()
    for name, photos in PHOTOS.items():
        (uploader,) = [each for each in page.file_uploader if each.label == f"Add photos of {name}"]
        uploader.set_value([(photo.name, photo.data, "image/jpeg") for photo in photos]).run()
    return page


def teach(page: AppTest) -> AppTest:
    """Press Teach."""
    (button,) = [each for each in page.button if each.label == "Teach"]
    return button.click().run()


def test_switched_off(page: AppTest) -> None:
    """One sentence names the setting that turns it on."""
    page.run()
    assert not page.exception
    assert "`heads: {folder: heads}`" in page.info[0].value
    assert not page.button


def test_a_head_that_is_not_there(page: AppTest, heads: HeadsClient) -> None:
    """A link to a deleted head says so, and leads to the list."""
    page.query_params["head"] = "gone"
    page.run()
    assert not page.exception
    assert "gone" in page.error[0].value
    page.button[0].click().run()
    assert "Teach your own classes" in page.title[0].value


def test_pictures_of_taught_photos(page: AppTest, heads: HeadsClient, service: LocalService) -> None:
    """The session knows which photo got which id, although the API keeps no photos."""
    teach(fill(page))
    assert not page.exception
    assert page.query_params["head"] == HEAD
    assert service.heads is not None
    stored = service.heads.store.read(HEAD)
    by_sha = {photo.key: photo for photos in PHOTOS.values() for photo in photos}
    limits = {"max_image_bytes": 2**24, "max_pixels": 10**7}
    pictures = page.session_state["taught-pictures"]
    assert len(pictures) == 6
    for example in stored.examples:
        assert pictures[example.id] == make_picture(by_sha[example.photo_sha256], limits, THUMBNAIL_PX)
    assert not page.session_state["teach-drafts"][HEAD].photos()


def test_a_refused_request_keeps_the_photos(page: AppTest, heads: HeadsClient, service: LocalService) -> None:
    """The reason stands under the button; the next click teaches the same photos."""
    fill(page)
    service.client.failing = OverloadedError("too busy", 7)
    teach(page)
    assert not page.exception
    assert heads.list()["heads"] == []
    assert page.error
    service.client.failing = None
    teach(page)
    assert len(heads.get(HEAD)["examples"]) == 6
    assert not page.error


def test_a_name_that_is_taken(page: AppTest, heads: HeadsClient) -> None:
    """Nothing is replaced."""
    etag = heads.create(HEAD, PHOTOS)["etag"]
    teach(fill(page))
    assert "taught already" in texts(page)
    assert heads.get(HEAD)["etag"] == etag


def test_adding_photos_and_a_class(page: AppTest, heads: HeadsClient) -> None:
    """A head that is opened by its link takes more photos, and a new class."""
    heads.create(HEAD, {"red": PHOTOS["red"]})
    page.query_params["head"] = HEAD
    page.run()
    assert "This head has one class" in texts(page)
    (add,) = [each for each in page.button if each.label == "Add a class"]
    add.click().run()
    page.text_input[0].set_value("green").run()
    (uploader,) = [each for each in page.file_uploader if each.label == "Add photos of green"]
    uploader.set_value([(photo.name, photo.data, "image/jpeg") for photo in PHOTOS["green"]]).run()
    teach(page)
    assert not page.exception
    assert heads.get(HEAD)["labels"] == ["green", "red"]


def test_a_wrong_answer_becomes_an_example(page: AppTest, heads: HeadsClient) -> None:
    """The photo that was tried gets its right class with a click, and the next Teach adds it."""
    heads.create(HEAD, PHOTOS)
    page.query_params["head"] = HEAD
    page.run()
    (tried,) = photos_of("red", count=1, first=50)["red"]
    (uploader,) = [each for each in page.file_uploader if each.label == "A photo to try"]
    uploader.set_value([("tried.jpg", tried, "image/jpeg")]).run()
    (right,) = [each for each in page.selectbox if each.label.startswith("Not right?")]
    assert right.options == ["green", "red"]
    right.set_value("red").run()
    (button,) = [each for each in page.button if each.label == "Teach it this"]
    button.click().run()
    assert "It is a new photo of **red** now" in texts(page)
    teach(page)
    assert not page.exception
    assert [each["class"] for each in heads.get(HEAD)["examples"]].count("red") == 4


def test_share_and_roll_back(page: AppTest, heads: HeadsClient) -> None:
    """The switch shares a head, and an earlier version serves again."""
    first = heads.create(HEAD, {"red": PHOTOS["red"]})["version"]
    heads.add(HEAD, {"green": PHOTOS["green"]})
    page.query_params["head"] = HEAD
    page.run()
    (share,) = [each for each in page.toggle if each.label == "Other API keys may use it"]
    share.set_value(True).run()
    assert heads.get(HEAD)["public"]
    (back,) = [each for each in page.button if each.label == "Serve this version again"]
    back.click().run()
    assert not page.exception
    assert heads.get(HEAD)["version"] == first
    assert heads.get(HEAD)["labels"] == ["red"]
