"""The Classify page against the real API."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient, Photo
from frontend.components.markdown import escape_markdown
from frontend.components.one_photo import _to_json
from serve_app.config import FeedbackConfig
from serve_app.errors import OverloadedError
from serve_app.observability.feedback_store import Feedback, labeled_images, read_votes
from tests.support.local_service import LocalService
from tests.support.photos import make_photo


def upload(page: AppTest) -> AppTest:
    page.run()
    return page.file_uploader[0].upload("cat.jpg", make_photo(), "image/jpeg").run()


@pytest.fixture
def feedback_page(page: AppTest, service: LocalService, tmp_path: Path) -> AppTest:
    """The page with one photo, on a service that keeps feedback and its photos in ``tmp_path``."""
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))
    return upload(page)


def test_without_photos(page: AppTest) -> None:
    """The empty page names the model."""
    page.run()
    assert not page.exception
    assert "What is in this photo?" in page.title[0].value
    assert "random" in page.caption[0].value


def test_one_photo(page: AppTest) -> None:
    """One photo gives its most likely class, the raw result and both snippets."""
    upload(page)
    assert not page.exception
    (prediction,) = [*page.success, *page.warning]
    result = json.loads(page.code[2].value)
    assert escape_markdown(result["predictions"][0]["label"]) in prediction.value
    assert "/v1/classify" in page.code[0].value
    assert "requests.post" in page.code[1].value


def test_another_classs_heat_map(page: AppTest) -> None:
    """The select beside the bars asks for another class's map; the vote stays with the first answer."""
    upload(page)
    first = json.loads(page.code[2].value)
    (select,) = [each for each in page.selectbox if each.label == "Heat map for"]
    assert select.value == first["predictions"][0]["class_id"]
    second = first["predictions"][1]
    select.select(second["class_id"]).run()
    assert not page.exception
    assert json.loads(page.code[2].value) == first
    plain, heat = page.image
    assert f"Heat map for “{second['label']}”" in heat.captions[0]
    assert plain.proto.imgs[0].alt == "Your photo cat.jpg"
    assert heat.proto.imgs[0].alt == f"Your photo with the places marked that speak for {second['label']}"


def test_result_as_json() -> None:
    """The JSON to copy is the result; lists of numbers take a line each, and texts keep their brackets and spaces."""
    result = {"id": 'a [\n  "1,  2" ].jpg', "values": [[0.5, -1e-9], [2]], "empty": []}
    text = _to_json(result)
    assert json.loads(text) == result
    assert "[ 0.5, -1e-09 ]" in text


def test_result_as_csv(page: AppTest) -> None:
    """The predictions can be copied as CSV, one class a line."""
    upload(page)
    lines = page.code[3].value.splitlines()
    assert lines[0] == "label,score,class_id"
    assert len(lines) == 1 + len(json.loads(page.code[2].value)["predictions"])


def test_zip(page: AppTest) -> None:
    """The photos of a zip are shown like uploaded ones."""
    page.run()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for i in range(3):
            archive.writestr(f"holiday/{i}.jpg", make_photo(i))
    page.file_uploader[2].upload("holiday.zip", data.getvalue(), "application/zip").run()
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric}["Classified"] == "3"


def test_a_zip_without_photos_says_so(page: AppTest) -> None:
    """The sentence names what is missing; the page stays usable."""
    page.run()
    data = io.BytesIO()
    zipfile.ZipFile(data, "w").close()
    page.file_uploader[2].upload("empty.zip", data.getvalue(), "application/zip").run()
    assert not page.exception
    assert "no photos in this zip" in page.error[0].value


def test_many_photos(page: AppTest, client: ApiClient) -> None:
    """Of six photos the broken one is counted as failed and shows the API's reason."""
    page.run()
    for i in range(5):
        page.file_uploader[0].upload(f"{i}.jpg", make_photo(i), "image/jpeg")
    page.file_uploader[0].upload("x.txt", b"text").run()
    assert not page.exception
    metrics = {metric.label: metric.value for metric in page.metric}
    assert (metrics["Photos"], metrics["Failed"]) == ("6", "1")
    detail = client.classify(Photo("x.txt", b"text"))["error"]["detail"]
    assert escape_markdown(detail) in page.error[0].value
    assert "goes into the tab Zip" in page.error[0].value


def test_an_overloaded_service_says_when_to_retry(page: AppTest, service: LocalService) -> None:
    """The API's title, reason and Retry-After are shown with the photo's name."""
    page.run()
    service.client.failing = OverloadedError("1024 images are in flight", 7)
    page.file_uploader[0].upload("cat.jpg", make_photo(), "image/jpeg").run()
    assert not page.exception
    assert page.error[0].value == r"**cat\.jpg** · **Overloaded**: 1024 images are in flight (retry in 7 s)"
    service.client.failing = None
    page.button(key="one-retry").click().run()
    assert not page.error


def test_feedback_reaches_the_training_set(feedback_page: AppTest, tmp_path: Path) -> None:
    """A thumb down is sent at once and again with the chosen class and photo; a thumb up keeps the predicted class."""
    best = json.loads(feedback_page.code[2].value)["predictions"][0]["label"]
    assert f"Is it {best}?" in str([element.value for element in feedback_page.markdown])
    assert "keeps the photo" in str([element.value for element in feedback_page.caption])
    feedback_page.feedback[0].set_value(0).run()
    assert not feedback_page.exception
    assert [(vote.correct, vote.label) for vote in read_votes(tmp_path)] == [(False, None)]
    right = "bee" if best != "bee" else "cow"
    (question,) = [each for each in feedback_page.selectbox if each.label == "What is it?"]
    question.select(right).run()
    assert not feedback_page.exception
    (kept,) = labeled_images(tmp_path)
    assert (kept.label, kept.path.read_bytes()) == (right, make_photo())
    assert "Thank you" in str([element.value for element in feedback_page.caption])
    feedback_page.run()
    assert len(list(read_votes(tmp_path))) == 2  # a rerun sends no vote again
    feedback_page.feedback[0].set_value(1).run()
    assert [photo.label for photo in labeled_images(tmp_path)] == [best]


def test_no_thumbs_without_feedback(page: AppTest) -> None:
    """A service that keeps no feedback gets a page without thumbs."""
    assert not upload(page).feedback


def test_unsaved_feedback_is_reported(feedback_page: AppTest, tmp_path: Path) -> None:
    """A vote that the service cannot write is reported under the thumbs."""
    (tmp_path / "votes").rmdir()
    feedback_page.feedback[0].set_value(0).run()
    assert "Your feedback was not saved: " in feedback_page.error[0].value


@pytest.mark.parametrize("photos", [1, 2])
def test_a_photo_over_the_limit_is_not_sent(
    photos: int, page: AppTest, service: LocalService, client: ApiClient
) -> None:
    """The page refuses it with the API's sentence, before anything is decoded or sent."""
    large = Photo("large.jpg", make_photo(0, 900, 900))
    limits = service.config.limits.model_copy(update={"max_image_bytes": len(large.data) - 1})
    service.configure(limits=limits)
    detail = client.classify(large)["error"]["detail"]
    page.run()
    for i in range(photos - 1):
        page.file_uploader[0].upload(f"{i}.jpg", make_photo(i, 100, 100), "image/jpeg")
    service.client.failing = AssertionError("sent") if photos == 1 else None
    # The browser's own limit is in whole megabytes; pasted pictures have none.
    page.file_uploader[0].upload("large.jpg", large.data, "image/jpeg").run()
    assert not page.exception
    (error,) = page.error
    assert error.value.startswith(rf"**large\.jpg** · **Too large**: {escape_markdown(detail)}. Make it smaller")
