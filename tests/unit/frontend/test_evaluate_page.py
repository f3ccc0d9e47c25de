"""The Evaluate page shows the metrics of `serve-app evaluate` for a labeled folder or zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient, Photo
from frontend.components.markdown import escape_markdown
from frontend.labeled_photos import by_folder, class_table, compute_metrics, table
from frontend.zipped_photos import unzip
from serve_app.config import WeightsConfig
from serve_app.http.app import create_app
from serve_app.training.evaluate import evaluate
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.raw_zips import RawEntry, raw_zip
from tests.support.weights import LABELS

SCRIPT = """
from frontend.views.evaluate import show_evaluate
from frontend import api_client
show_evaluate(api_client.ApiClient())
"""
PHOTOS = 18
FORMATS = ("jpeg", "png")


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    """Photos named by their path, as a browser names the files of a folder."""
    return [Photo(f"mine/{LABELS[i % len(LABELS)]}/{i}.jpg", make_photo(i, 110, 100)) for i in range(PHOTOS)]


@pytest.fixture(scope="module")
def client(weights: WeightsConfig) -> Iterator[ApiClient]:
    with TestClient(create_app(LocalService(weights))) as http:
        yield ApiClient("http://testserver", transport=http._transport)


@pytest.fixture
def page(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("frontend.api_client.ApiClient", lambda: client)
    return AppTest.from_string(SCRIPT, default_timeout=60)


def zipped(photos: list[Photo]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("__MACOSX/mine/ant/0.jpg", b"not a photo")
        archive.writestr("mine/readme.txt", "not one either")
        for photo in photos:
            archive.writestr(photo.name, photo.data)
    return data.getvalue()


def test_the_page_has_the_metrics_of_the_command(
    client: ApiClient, weights: WeightsConfig, photos: list[Photo], tmp_path: Path
) -> None:
    """The API's answers on photos and `serve-app evaluate` on the same files give equal metrics."""
    for photo in photos:
        path = tmp_path / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.data)
    expected, *_ = evaluate(weights, tmp_path / "mine")
    named = by_folder(photos, LABELS, FORMATS)
    results = sorted(client.classify_many(photos, 64, 10**8), key=lambda result: result["index"])
    metrics = compute_metrics(table(named, results))
    assert metrics["images"] == expected["images"] == PHOTOS
    assert (metrics["top1"], metrics["top5"]) == (expected["top1"], expected["top5"])
    assert metrics["ece"] == pytest.approx(expected["ece"], abs=1e-4)
    assert metrics["abstain"].items() <= expected["abstain"].items()
    assert metrics["classes"] == {label: expected["classes"][label] for label in metrics["classes"]}
    for mine, theirs in zip(metrics["reliability"], expected["reliability"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_the_class_table_shows_missing_shares_as_nan() -> None:
    """A class that was never predicted has no precision."""
    shown = class_table({"classes": {"ant": {"images": 2, "precision": None, "recall": 0.0}}})
    assert shown.loc["ant", "photos"] == 2
    assert shown["precision"].isna().all()
    assert shown.loc["ant", "recall"] == 0.0


def test_page_evaluates_a_zip(page: AppTest, photos: list[Photo]) -> None:
    """For a zip with a broken photo, the page shows metrics of the others and says that one is not counted."""
    broken = [*photos, Photo("mine/ant/broken.jpg", b"text")]
    page.run()
    assert not page.exception
    assert "A folder of folders" in page.info[0].value
    page.file_uploader[1].upload("mine.zip", zipped(broken), "application/zip").run()
    assert not page.exception
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["Photos"] == str(PHOTOS)
    assert set(shown) >= {"Accuracy", "Top-5 accuracy", "Calibration error", "Not sure", "Accuracy when sure"}
    assert "1 of 19 photos failed" in page.warning[0].value


def test_page_names_folders_that_are_not_classes(page: AppTest) -> None:
    page.run()
    page.file_uploader[1].upload("x.zip", zipped([Photo("tractor/1.jpg", make_photo())]), "application/zip").run()
    assert not page.exception
    assert escape_markdown("not classes of the model: tractor") in page.error[0].value


def test_zip_names_are_those_of_batch_jobs(photos: list[Photo]) -> None:
    """A zip from Windows, with `./`, or without a flag for UTF-8 has the classes of its folders."""
    data = photos[0].data
    entries = [
        RawEntry(b"mine\\ant\\", b""),
        RawEntry(b"mine\\ant\\a.jpg", data),
        RawEntry(b"__MACOSX\\ant\\._a.jpg"),
        RawEntry(b"./bee/b.jpg", data, method=8),
        RawEntry("C:\\käfer\\é.jpg".encode(), data),
        RawEntry(b"Thumbs.db"),
    ]
    named = by_folder(unzip(raw_zip(entries), FORMATS), ["ant", "bee", "käfer"], FORMATS)
    assert [(photo.name, label) for photo, label in named] == [
        ("mine/ant/a.jpg", "ant"),
        ("bee/b.jpg", "bee"),
        ("käfer/é.jpg", "käfer"),
    ]
    assert {photo.data for photo, _ in named} == {data}
