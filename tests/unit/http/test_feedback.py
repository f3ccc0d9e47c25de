"""Feedback: what the endpoint takes and refuses, and what training finds in the folder afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from serve_app.config import FeedbackConfig, LimitsConfig, WeightsConfig
from serve_app.errors import DatasetError, NotReadyError
from serve_app.observability.feedback_store import Feedback, Vote, class_folder, labeled_images, read_votes
from serve_app.training.data import list_images
from tests.support.faults import DiskRecorder, emptied, full_disk
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.weights import LABELS

PHOTO = make_photo()


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    service = LocalService(weights, LimitsConfig(max_image_bytes=200_000))
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))
    return service


def say(http: TestClient, image: bytes | None = None, **body: Any) -> httpx2.Response:
    """Send feedback: JSON, or a form with the image."""
    body = {"request_id": "req_1", **body}
    if image is None:
        return http.post("/v1/feedback", json=body)
    return http.post("/v1/feedback", data={k: str(v) for k, v in body.items()}, files={"image": ("x", image)})


def keep(folder: Path, request: str, label: str) -> None:
    """Keep a vote with an image of its own, as the route does."""
    vote = Vote(time=0, request_id=request, index=0, correct=None, label=label, version=None, caller=None, image=None)
    Feedback(FeedbackConfig(folder=str(folder), keep_images=True)).keep(vote, (label.encode(), "png"))


def test_a_vote_is_kept(http: TestClient, tmp_path: Path) -> None:
    """As one line of JSON, with the weights that it speaks of, and without an image."""
    assert say(http, index=3, correct=False).status_code == 204
    (path,) = (tmp_path / "votes").iterdir()
    written = json.loads(path.read_text())
    assert (written["request_id"], written["index"], written["correct"]) == ("req_1", 3, False)
    assert (written["version"], written["label"], written["image"]) == ("random", None, None)
    assert labeled_images(tmp_path) == []


def test_an_image_with_its_class_becomes_training_data(http: TestClient, tmp_path: Path) -> None:
    """The file keeps its bytes, in a class folder that training reads."""
    answer = http.post("/v1/classify", content=PHOTO).json()
    said = say(http, PHOTO, request_id=answer["id"], label="cow")
    assert (said.status_code, said.content) == (204, b"")
    assert say(http, make_photo(1), request_id="req_2", label="dog", correct=True).status_code == 204
    (cow, dog) = sorted(labeled_images(tmp_path), key=lambda image: image.label)
    assert (cow.label, dog.label) == ("cow", "dog")
    assert cow.path.read_bytes() == PHOTO
    assert cow.path.suffix == ".jpeg"
    files, labels = list_images(tmp_path / "images")
    assert [(path, labels[at]) for path, at in files] == [(cow.path, "cow"), (dog.path, "dog")]
    assert [vote.request_id for vote in read_votes(tmp_path)] == [answer["id"], "req_2"]


def test_the_last_vote_on_an_image_counts(http: TestClient, tmp_path: Path) -> None:
    """A later class replaces an earlier one, also across requests; a vote without a class withdraws its own."""
    say(http, PHOTO, label="cow")
    say(http, PHOTO, label="dog")
    assert [image.label for image in labeled_images(tmp_path)] == ["dog"]
    say(http, PHOTO, request_id="req_2", label="eel")
    assert [image.label for image in labeled_images(tmp_path)] == ["eel"]
    say(http, request_id="req_2", correct=False)
    assert [image.label for image in labeled_images(tmp_path)] == ["dog"]


@pytest.mark.parametrize(
    ("image", "body", "status", "sentence"),
    [
        (None, {}, 400, "send `correct` (true or false)"),
        (None, {"correct": True, "index": -1}, 400, "index: Input should be greater than or equal to 0"),
        (None, {"lable": "cow"}, 400, "send `correct` (true or false)"),
        (None, {"label": "cwo"}, 422, "label: 'cwo' is not a class of the model; similar labels: cow"),
        (None, {"label": "../../etc"}, 422, "is not a class of the model"),
        (PHOTO, {"correct": True}, 422, "send the class as `label`"),
        (b"text", {"label": "cow"}, 415, "not a JPEG"),
        (PHOTO[:3000], {"label": "cow"}, 422, "truncated"),
        (bytes(200_001), {"label": "cow"}, 413, "the image has 200,001 bytes; the limit is 200,000 (0.2 MB)"),
    ],
)
def test_what_is_refused_leaves_nothing(
    http: TestClient, tmp_path: Path, image: bytes | None, body: dict[str, Any], status: int, sentence: str
) -> None:
    refused = say(http, image, **body)
    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/problem+json")
    assert sentence in refused.json()["detail"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_image_goes_through_the_stages(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """It is decoded where other images are, and nothing is kept while that stage is not available."""
    service.client.failing = NotReadyError("the preprocess stage is not available; retry later")
    assert say(http, PHOTO, label="cow").status_code == 503
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    service.client.failing = None
    assert say(http, PHOTO, label="cow").status_code == 204


def test_an_image_has_the_deadline_of_its_request(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """A stage that takes too long is a 504; the image is in flight no more."""
    service.client.delay_s = 60
    form = {"data": {"request_id": "a", "label": "cow"}, "files": {"image": ("x", PHOTO)}}
    late = http.post("/v1/feedback", **form, headers={"X-Request-Timeout-Ms": "50"})  # type: ignore[arg-type]
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert http.get("/v1/status").json()["admission"]["images"] == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_image_is_kept_without_consent(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path)))
    assert http.get("/v1/models").json()["feedback"] == {"keep_images": False}
    assert "this service keeps no images" in say(http, PHOTO, label="cow").json()["detail"]
    assert say(http, label="cow").status_code == 204
    assert list((tmp_path / "images").iterdir()) == []


def test_off_by_default(http: TestClient, service: LocalService) -> None:
    service.feedback = None
    assert http.get("/v1/models").json()["feedback"] is None
    assert (said := say(http, correct=True)).json()["code"] == "feedback_off"
    assert said.status_code == 404


def test_a_full_disk_is_no_crash(http: TestClient, tmp_path: Path) -> None:
    """A folder that went away: 503, worth trying again."""
    (tmp_path / "votes").rmdir()
    assert (said := say(http, correct=True)).status_code == 503
    assert "cannot be written" in said.json()["detail"]


def test_a_folder_that_cannot_be_stops_nothing(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """Votes get 503 with the reason and no path, everything else goes on; once the folder can be, votes are kept."""
    (tmp_path / "file").write_text("")
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path / "file" / "x")))
    said = say(http, correct=True)
    assert (said.status_code, said.json()["detail"]) == (
        503,
        "the feedback cannot be written now: Not a directory; retry later",
    )
    assert http.post("/v1/classify", content=PHOTO).status_code == 200
    (tmp_path / "file").unlink()
    assert say(http, correct=True).status_code == 204
    assert len(list(read_votes(tmp_path / "file" / "x"))) == 1


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_vote_that_is_not_on_disk_is_not_accepted(
    http: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """A full disk gets 503, worth trying again, and leaves no file."""
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full_disk)
        said = say(http, PHOTO, label="cow")
    assert (said.status_code, said.json()["retryable"]) == (503, True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_votes_and_images_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image and vote are fsynced before they get their names, and their folders after."""
    disk = DiskRecorder(monkeypatch)
    keep(tmp_path, "1", "cow")
    assert (len(disk.renamed), disk.unsafe, disk.unnamed) == (2, [], [])


def test_a_power_cut_costs_training_one_vote(tmp_path: Path) -> None:
    """Whichever file it has emptied: the other votes and images train; nothing is refused."""
    for n, label in enumerate(("cow", "dog", "eel")):
        keep(tmp_path, str(n), label)
    for path in emptied(tmp_path):
        assert len(labeled_images(tmp_path)) == 2, path
    assert len(labeled_images(tmp_path)) == 3
    next((tmp_path / "images" / "cow").iterdir()).unlink()
    assert [image.label for image in labeled_images(tmp_path)] in (["dog", "eel"], ["eel", "dog"])


def test_a_damaged_image_is_written_again(tmp_path: Path) -> None:
    """The same image with another vote replaces what a power cut has emptied."""
    keep(tmp_path, "1", "cow")
    next((tmp_path / "images" / "cow").iterdir()).write_bytes(b"")
    keep(tmp_path, "1", "cow")
    assert [image.label for image in labeled_images(tmp_path)] == ["cow"]


def test_votes_of_a_newer_version_read(tmp_path: Path) -> None:
    """Fields that this version does not know are ignored."""
    keep(tmp_path, "1", "cow")
    (path,) = (tmp_path / "votes").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "weight": 2}))
    assert [vote.label for vote in read_votes(tmp_path)] == ["cow"]


def test_odd_class_names_stay_inside_the_folder(tmp_path: Path) -> None:
    """Dots, slashes and non-ASCII letters are encoded; different classes have different folders."""
    kept = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))
    for label in ("..", "a/b", ".hidden", "jack-o'-lantern", "café", "%2E"):
        said = Vote(time=0, request_id=label, index=0, correct=None, label=label, version=None, caller=None, image=None)
        kept.keep(said, (label.encode(), "png"))
        assert next(image for image in labeled_images(tmp_path) if image.label == label).path.parents[2] == tmp_path
    assert len({class_folder(label) for label in ("%2E", ".", "é", "%C3%A9")}) == 4
    assert class_folder(LABELS[0]) == LABELS[0]


def test_a_folder_without_feedback_is_refused(tmp_path: Path) -> None:
    """The error names the folder, or the file that is not a vote."""
    with pytest.raises(DatasetError, match="is not a feedback folder"):
        labeled_images(tmp_path)
    (tmp_path / "votes").mkdir()
    (tmp_path / "votes" / "1.json").write_text("{")
    with pytest.raises(DatasetError, match=r"1\.json is not a vote"):
        labeled_images(tmp_path)


def test_it_is_described(http: TestClient) -> None:
    """Every status that these tests met, and both kinds of body."""
    described = http.get("/openapi.json").json()["paths"]["/v1/feedback"]["post"]
    assert {"204", "400", "404", "413", "415", "422", "503"} <= set(described["responses"])
    assert set(described["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
