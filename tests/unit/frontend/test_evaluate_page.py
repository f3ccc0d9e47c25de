"""The Evaluate page: a labeled folder or zip in, the same numbers out as the command gives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from frontend import labeled
from frontend.api_client import ApiClient, Photo
from frontend.labeled import LabelError, by_folder, per_class, reliability, summary, table, unzip
from serve_app.config import WeightsConfig
from serve_app.http.app import create_app
from serve_app.training.evaluate import evaluate
from tests.conftest import LABELS, make_photo
from tests.support.local_service import LocalService

SCRIPT = """
from frontend.views.evaluate import show_evaluate
from frontend import api_client
show_evaluate(api_client.ApiClient())
"""
PHOTOS = 18


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    """Named as a browser names the files of a folder."""
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


def test_the_page_gives_the_numbers_of_the_command(
    client: ApiClient, weights: WeightsConfig, photos: list[Photo], tmp_path: Path
) -> None:
    """Accuracy, calibration error, abstaining, precision, recall and reliability: the same from both."""
    for photo in photos:
        path = tmp_path / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.data)
    expected, *_ = evaluate(weights, tmp_path / "mine")
    named = by_folder(photos, LABELS)
    results = sorted(client.classify_many(photos, 64, 10**8), key=lambda result: result["index"])
    rows = table(named, results)
    found = summary(rows)
    assert found["images"] == expected["images"] == PHOTOS
    for mine, theirs in (("top1", expected["top1"]), ("top5", expected["top5"]), ("ece", expected["ece"])):
        assert found[mine] == pytest.approx(theirs, abs=1e-4)
    assert found["not_sure"] == pytest.approx(expected["abstain"]["share"], abs=1e-4)
    for label, row in per_class(rows).iterrows():
        for name in ("precision", "recall"):
            truth = expected["classes"][label][name]
            assert row[name] == pytest.approx(truth, abs=1e-4) if truth is not None else row[name] != row[name]
    assert reliability(rows)["photos"].tolist() == [each["images"] for each in expected["reliability"]]


def test_page_evaluates_a_zip(page: AppTest, photos: list[Photo]) -> None:
    """A zip with a broken photo in it: the numbers of the others, and how many were not counted."""
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


def test_page_names_folders_that_are_no_classes(page: AppTest) -> None:
    page.run()
    page.file_uploader[1].upload("x.zip", zipped([Photo("tractor/1.jpg", make_photo())]), "application/zip").run()
    assert not page.exception
    assert "no classes of the model: tractor" in page.error[0].value


def test_what_is_no_zip_or_too_large_is_refused(photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabelError, match="cannot be read"):
        unzip(b"text")
    assert len(unzip(zipped(photos))) == PHOTOS
    monkeypatch.setattr(labeled, "ENTRIES", PHOTOS - 1)
    with pytest.raises(LabelError, match="more than 17 photos"):
        unzip(zipped(photos))
