"""Suggestions on the Teach page, with two API keys: a visitor suggests, the owner decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient, Photo
from frontend.heads_client import HeadsClient
from serve_app.config import KeysConfig
from serve_app.heads_config import HeadsConfig
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService
from tests.support.taught_photos import photos_of

HEAD, OWNER, VISITOR = "colors", "alice's", "bob's"
PHOTOS = {
    name: [Photo(f"{name}-{n}.jpg", data) for n, data in enumerate(group)]
    for name, group in photos_of("red", "green", count=3).items()
}
SENT = [Photo(f"{n}.jpg", data) for n, data in enumerate(photos_of("red", count=8, first=50)["red"])]
Open = Callable[[str], AppTest]


def teach_script() -> None:
    from frontend.api_client import ApiClient
    from frontend.views.teach import show_teach

    show_teach(ApiClient())


@pytest.fixture
def clients(service: LocalService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ApiClient]]:
    """A client per key; the owner has a public head."""
    service.keys = ApiKeys(KeysConfig(hashes={key.partition("'")[0]: hash_key(key) for key in (OWNER, VISITOR)}))
    service.keep_heads(HeadsConfig(folder=str(tmp_path)))
    with TestClient(create_app(service)) as http:
        made = {}
        for key in (OWNER, VISITOR):
            monkeypatch.setenv("API_KEY", key)
            made[key] = ApiClient("http://testserver", transport=http._transport)
        owner = HeadsClient(made[OWNER])
        owner.share(HEAD, owner.create(HEAD, PHOTOS)["etag"], True)
        yield made


@pytest.fixture
def open_page(clients: dict[str, ApiClient], monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the head's page as it is served with one of the keys."""

    def open_as(key: str) -> AppTest:
        monkeypatch.setattr("frontend.api_client.ApiClient", lambda: clients[key])
        page = AppTest.from_function(teach_script, default_timeout=60)
        page.query_params["head"] = HEAD
        return page.run()

    return open_as


def texts(page: AppTest) -> str:
    """Return what the page says."""
    boxes = (*page.subheader, *page.markdown, *page.caption, *page.info, *page.error, *page.success)
    return "\n".join(box.value for box in boxes)


def button(page: AppTest, label: str) -> Any:
    """Return the first button of that name."""
    return next(each for each in page.button if each.label == label)


def test_a_visitor_suggests_the_right_class(open_page: Open, clients: dict[str, ApiClient]) -> None:
    """In place of "Teach it this"; the page says what is stored, and who decides; the second time nothing is sent."""
    for expected in ("Suggested as **green**", "The owner has this photo already"):
        page = open_page(VISITOR)
        (uploader,) = [each for each in page.file_uploader if each.label == "A photo to try"]
        uploader.set_value([(SENT[0].name, SENT[0].data, "image/jpeg")]).run()
        assert "not the photo but 512 numbers that describe it" in texts(page)
        assert not [each for each in page.button if each.label in ("Teach it this", "Teach")]
        (right,) = [each for each in page.selectbox if each.label.startswith("Not right?")]
        assert right.options == ["green", "red"]
        right.set_value("green").run()
        button(page, "Suggest it to the owner").click().run()
        assert not page.exception
        assert expected in texts(page)
    (waiting,) = HeadsClient(clients[OWNER]).suggestions(HEAD)["suggestions"]
    assert (waiting["class"], waiting["caller"]) == ("green", "bob")
    assert "waits" not in texts(page)


def test_the_owner_decides(open_page: Open, clients: dict[str, ApiClient]) -> None:
    """One by one, or those that are shown at once; the list of heads says how many wait."""
    owner, visitor = HeadsClient(clients[OWNER]), HeadsClient(clients[VISITOR])
    for photo in SENT:
        visitor.suggest(HEAD, photo, "red")
    page = open_page(OWNER)
    assert "8 suggestions wait" in texts(page)
    assert "Suggested as **red**" in texts(page)
    assert "by bob on 20" in texts(page)
    assert "The head says: **red" in texts(page)
    assert "and 2 more, when these are decided" in texts(page)
    button(page, "Approve as red").click().run()
    assert not page.exception
    assert "7 suggestions wait" in texts(page)
    button(page, "Reject").click().run()
    assert "6 suggestions wait" in texts(page)
    assert owner.get(HEAD)["photos"] == 7
    button(page, "Approve these 6").click().run()
    assert not page.exception
    assert "suggestions wait" not in texts(page)
    assert (owner.get(HEAD)["photos"], len(owner.get(HEAD)["versions"])) == (13, 3)
    visitor.suggest(HEAD, PHOTOS["red"][0], "green")
    button(page, "All heads").click().run()
    assert "1 suggestion waits" in texts(page)


def test_a_change_of_somebody_else_is_not_overwritten(open_page: Open, clients: dict[str, ApiClient]) -> None:
    """The approval is refused with the reason, and works once the page shows the new state."""
    HeadsClient(clients[VISITOR]).suggest(HEAD, SENT[0], "red")
    page = open_page(OWNER)
    HeadsClient(clients[OWNER]).add(HEAD, {"red": SENT[1:2]})
    button(page, "Approve as red").click().run()
    assert "This page shows the newest state now" in texts(page)
    button(page, "Approve as red").click().run()
    assert not page.exception
    assert HeadsClient(clients[OWNER]).get(HEAD)["photos"] == 8
