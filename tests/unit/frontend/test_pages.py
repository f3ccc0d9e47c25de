"""The page's code against the real API in one process: client, heat map, both pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from frontend.client import Client, Photo, ProblemError, ServerDownError
from frontend.heatmap import open_upright, overlay
from serve_app.config import FeedbackConfig, JobsConfig, KeysConfig, LimitsConfig, WeightsConfig
from serve_app.errors import OverloadedError
from serve_app.http.app import create_app
from serve_app.http.auth import Keys, hash_of
from serve_app.observability.feedback_store import Feedback, labeled_images, read_votes
from tests.conftest import encode, make_photo, make_picture
from tests.support.local_service import LocalService

APP = str(Path(__file__).parents[2] / "frontend" / "app.py")


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    return LocalService(weights, LimitsConfig(max_images=4))


@pytest.fixture
def client(service: LocalService) -> Iterator[Client]:
    with TestClient(create_app(service)) as http:
        yield Client("http://testserver", transport=http._transport)


@pytest.fixture
def page(client: Client, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The app, talking to the API in this process."""
    monkeypatch.setattr("frontend.client.Client", lambda: client)
    st.cache_resource.clear()
    return AppTest.from_file(APP, default_timeout=30)


def photos(n: int) -> list[Photo]:
    return [Photo(f"{i}.jpg", make_photo(i)) for i in range(n)]


def test_client_classifies_one(client: Client) -> None:
    result = client.classify(photos(1)[0], explain_class=2)
    assert result["status"] == "ok"
    assert result["explanation"]["class_id"] == 2


def test_client_returns_an_images_error_as_its_result(client: Client) -> None:
    result = client.classify(Photo("x.txt", b"text"))
    assert (result["id"], result["error"]["status"]) == ("x.txt", 415)


def test_client_splits_by_the_limits(client: Client) -> None:
    """Ten photos at four per request: every one answered once, under its own index."""
    given = photos(10)
    given[3] = Photo("broken", b"text")
    results = {result["index"]: result for result in client.classify_many(given, 4, 10**6)}
    assert sorted(results) == list(range(10))
    assert [results[i]["id"] for i in range(10)] == [photo.name for photo in given]
    assert [i for i, result in results.items() if result["status"] == "error"] == [3]
    assert len(list(client.classify_many(given, 64, 50_000))) == 10


def test_client_loses_nothing_when_the_server_refuses(client: Client, service: LocalService) -> None:
    """A photo over the server's body limit: its group fails with a reason, the others are answered."""
    service.limits = LimitsConfig(max_images=4, max_body_bytes=100_000)
    given = [*photos(3), Photo("large.bmp", encode(make_picture(400, 400), "BMP"))]
    results = list(client.classify_many(given, 4, 100_000))
    assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
    (failed,) = [result for result in results if result["status"] == "error"]
    assert failed["error"]["code"] == "too_large"


def test_client_says_when_nobody_answers() -> None:
    nobody = Client("http://127.0.0.1:9")
    with pytest.raises(ServerDownError, match=r"127\.0\.0\.1:9 does not answer"):
        nobody.models()
    (result,) = nobody.classify_many(photos(1), 4, 10**6)
    assert result["error"]["code"] == "server_down"
    assert result["error"]["retryable"]


def test_client_passes_problems_on(client: Client, service: LocalService) -> None:
    service.failing = OverloadedError("busy")
    assert client.ready() is not None
    with pytest.raises(ProblemError):
        client._json("GET", "/v1/models/other/labels")


def test_overlay_covers_what_the_model_saw() -> None:
    """Strong evidence is bright, outside the crop is faded, and no opacity means no change."""
    photo = Image.new("RGB", (200, 100), (100, 100, 100))
    values = [[0.0, 0.0], [0.0, 5.0]]
    lit = np.asarray(overlay(photo, values, 0.8, 1.0)).astype(int)
    assert lit[75, 125].sum() > lit[25, 75].sum() + 200
    assert (lit[50, 10] > 100).all()
    plain = np.asarray(overlay(photo, values, 1.0, 0.0))
    assert (plain[:, 50:150] == 100).all()


def test_pictures_are_upright_or_absent() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_upright(encode(make_picture(300, 200), exif=exif))
    assert turned is not None
    assert turned.size == (200, 300)
    assert open_upright(b"text") is None


def test_page_with_nothing(page: AppTest) -> None:
    page.run()
    assert not page.exception
    assert "What is in this photo?" in page.title[0].value
    assert "random" in page.caption[0].value


def test_page_with_one_photo(page: AppTest) -> None:
    page.run()
    page.file_uploader[0].upload("cat.jpg", make_photo(), "image/jpeg").run()
    assert not page.exception
    shown = [*page.success, *page.warning]
    assert len(shown) == 1
    answer = json.loads(page.code[2].value)
    assert answer["predictions"][0]["label"] in shown[0].value
    assert "/v1/classify" in page.code[0].value
    assert "requests.post" in page.code[1].value


@pytest.fixture
def asked(page: AppTest, service: LocalService, tmp_path: Path) -> AppTest:
    """The page with one photo, where feedback and its photos are kept."""
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))
    page.run()
    return page.file_uploader[0].upload("cat.jpg", make_photo(), "image/jpeg").run()


def test_a_thumb_and_the_right_class_reach_the_training_set(asked: AppTest, tmp_path: Path) -> None:
    """Down: said at once, then with the class that is chosen and the photo; up: as the class that was answered."""
    best = json.loads(asked.code[2].value)["predictions"][0]["label"]
    assert f"Is it {best}?" in str([each.value for each in asked.markdown])
    assert "photo is kept" in str([each.value for each in asked.caption])
    asked.feedback[0].set_value(0).run()
    assert not asked.exception
    assert [(vote.correct, vote.label) for vote in read_votes(tmp_path)] == [(False, None)]
    right = "bee" if best != "bee" else "cow"
    asked.selectbox[0].select(right).run()
    assert not asked.exception
    (kept,) = labeled_images(tmp_path)
    assert (kept.label, kept.path.read_bytes()) == (right, make_photo())
    assert "Thank you" in str([each.value for each in asked.caption])
    asked.run()
    assert len(list(read_votes(tmp_path))) == 2  # a rerun says nothing twice
    asked.feedback[0].set_value(1).run()
    assert [each.label for each in labeled_images(tmp_path)] == [best]


def test_thumbs_are_there_only_where_they_are_kept(page: AppTest) -> None:
    page.run()
    page.file_uploader[0].upload("cat.jpg", make_photo(), "image/jpeg").run()
    assert not page.feedback


def test_feedback_that_cannot_be_kept_is_said(asked: AppTest, tmp_path: Path) -> None:
    (tmp_path / "votes").rmdir()
    asked.feedback[0].set_value(0).run()
    assert "Your answer could not be kept: the feedback cannot be written" in asked.error[0].value


def test_page_with_many_photos(page: AppTest) -> None:
    """Six photos, one of them text: all counted, the reason shown, filters work."""
    page.run()
    for i in range(5):
        page.file_uploader[0].upload(f"{i}.jpg", make_photo(i), "image/jpeg")
    page.file_uploader[0].upload("x.txt", b"text").run()
    assert not page.exception
    assert {m.label: m.value for m in page.metric}["Photos"] == "6"
    assert {m.label: m.value for m in page.metric}["Failed"] == "1"
    assert "not a JPEG" in page.error[0].value


def test_page_when_the_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    st.cache_resource.clear()
    page = AppTest.from_file(APP, default_timeout=30).run()
    assert "not answering" in page.error[0].value
    assert "make run" in page.error[0].value


@pytest.fixture
def closed_page(page: AppTest, service: LocalService) -> AppTest:
    """The same, with an API that wants a key which the page does not have."""
    service.keys = Keys(KeysConfig(hashes={"someone": "0" * 64}))
    return page


def test_page_without_the_key_that_the_api_wants(closed_page: AppTest) -> None:
    closed_page.run()
    assert not closed_page.exception
    assert "does not let this page in" in closed_page.error[0].value
    assert "API_KEY" in closed_page.error[0].value


def test_the_page_sends_its_key(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in no snippet; those name the variable that holds it."""
    service.keys = Keys(KeysConfig(hashes={"page": hash_of("key_of_the_page")}))
    monkeypatch.setenv("API_KEY", "key_of_the_page")
    with TestClient(create_app(service)) as http:
        client = Client("http://testserver", transport=http._transport)
        assert client.classify(photos(1)[0])["status"] == "ok"
        assert [r["status"] for r in client.classify_many(photos(2), 4, 10**7)] == ["ok", "ok"]
    for snippet in (client.curl("a.jpg"), client.python("a.jpg")):
        assert "API_KEY" in snippet
        assert "key_of_the_page" not in snippet


def test_an_overloaded_service_says_when_to_come_again(page: AppTest, service: LocalService) -> None:
    page.run()
    service.failing = OverloadedError("too many images wait", 7)
    page.file_uploader[0].upload("cat.jpg", make_photo(), "image/jpeg").run()
    assert not page.exception
    assert "Overloaded. too many images wait (there should be room in 7 s)" in page.error[0].value


AUTH = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": "not a secret",
    "client_id": "page",
    "client_secret": "not one either",
    "server_metadata_url": "https://id.example/.well-known/openid-configuration",
}


def test_where_signing_in_is_configured_nothing_is_shown_before(page: AppTest) -> None:
    page.secrets["auth"] = AUTH
    page.run()
    assert not page.exception
    assert [button.label for button in page.button] == ["Sign in"]
    assert not page.file_uploader


def test_secrets_that_cannot_be_read_open_nothing(
    page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in the file must not leave the page open to everyone."""
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text("[auth\n")
    monkeypatch.chdir(tmp_path)
    page.run()
    assert "stays closed" in page.error[0].value
    assert not page.file_uploader


def test_status_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> None:
        from frontend.client import Client
        from frontend.status import show_status

        show_status(Client())

    monkeypatch.setattr("frontend.client.Client", lambda: client)
    page = AppTest.from_function(script, default_timeout=30).run()
    assert not page.exception
    assert "Ready" in page.success[0].value
    assert {m.label for m in page.metric} == {"Up", "Images", "Failed", "Under way", "Mean batch"}


@pytest.fixture
def batch_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    def page() -> None:
        from frontend.batch import show_batch
        from frontend.client import Client

        show_batch(Client())

    monkeypatch.setattr("frontend.client.Client", lambda: client)
    return AppTest.from_function(page, default_timeout=30)


def test_batch_page_says_how_to_switch_jobs_on(batch_page: AppTest) -> None:
    batch_page.run()
    assert not batch_page.exception
    assert "switched off" in batch_page.info[0].value
    assert "jobs: {folder: …}" in batch_page.info[0].value


def test_batch_page(batch_page: AppTest, service: LocalService, tmp_path: Path) -> None:
    """Empty at first; a prefix that is not open says so, one that is becomes a job that waits and can be cancelled."""
    service.jobs = JobsConfig(folder=str(tmp_path), sources=("s3://photos/in",))
    batch_page.run()
    assert "No jobs yet" in batch_page.info[0].value
    batch_page.text_input[0].set_value("s3://photos/other").run()
    batch_page.button[0].click().run()
    assert "not below a prefix" in batch_page.error[0].value
    batch_page.text_input[0].set_value("s3://photos/in/2026").run()
    batch_page.button[0].click().run()
    assert not batch_page.exception
    assert batch_page.subheader[0].value == "s3://photos/in/2026"
    job = batch_page.query_params["job"]
    next(button for button in batch_page.button if button.label == "Cancel").click().run()
    assert any("cancelled" in text.value for text in batch_page.markdown)
    batch_page.query_params["job"] = "unknown"
    batch_page.run()
    assert "Unknown job" in batch_page.warning[0].value
    assert job in {button.key for button in batch_page.button}
