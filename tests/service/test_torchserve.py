"""What TorchServe's documentation does with curl, against the running service, with and without API keys."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.http.auth import create_key
from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import tuned
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S

PHOTO = make_photo(0, 500, 375)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a photo and broken ones, for curl."""
    for name, content in (("photo.jpg", PHOTO), ("text.jpg", b"no image"), ("half.jpg", PHOTO[:3000])):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def curl(folder: Path, *arguments: str) -> tuple[int, Any]:
    """Run curl in a folder; return status and JSON."""
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def check_predictions(folder: Path, api: str, version: str, *key: str) -> None:
    """Check a photo and broken ones in each way in which TorchServe's documentation sends a file."""
    for path in ("/predictions/resnet18", f"/predictions/resnet18/{version}"):
        url = f"{api}{path}"
        ways: tuple[tuple[str, ...], ...] = (("-T", "{}"), ("-F", "data=@{}"), ("-X", "POST", "-T", "{}"))
        ways += (("--data-binary", "@{}"), ("-X", "PUT", "-F", "data=@{}"))
        for way in ways:
            for name, expected, kind in (
                ("photo.jpg", 200, None),
                ("text.jpg", 415, "UnsupportedImageException"),
                ("half.jpg", 422, "InvalidImageException"),
            ):
                status, body = curl(folder, url, *key, *(argument.format(name) for argument in way))
                assert status == expected, (way, body)
                if kind is None:
                    scores = list(body.values())
                    assert len(scores) == 5
                    assert scores == sorted(scores, reverse=True)
                else:
                    assert (body["code"], body["type"]) == (status, kind)
                    assert body["message"]


def test_without_keys(running: Running, folder: Path) -> None:
    """Predictions equal those of /v1/classify; health, list and description are TorchServe's."""
    api = running.api
    model = httpx2.get(f"{api}/v1/models").json()["models"][0]
    check_predictions(folder, api, model["version"])
    (result,) = httpx2.post(f"{api}/v1/classify?top_k=5", content=PHOTO).json()["results"]
    _, scores = curl(folder, f"{api}/predictions/resnet18", "-T", "photo.jpg")
    assert list(scores) == [p["label"] for p in result["predictions"]]
    assert list(scores.values()) == pytest.approx([p["score"] for p in result["predictions"]], abs=1e-3)
    assert curl(folder, f"{api}/ping") == (200, {"status": "Healthy"})
    named = {"modelName": "resnet18", "modelUrl": f"sha256:{model['sha256']}"}
    assert curl(folder, f"{api}/models") == (200, {"models": [named]})
    status, (described,) = curl(folder, f"{api}/models/resnet18")
    assert (status, described["modelVersion"]) == (200, model["version"])
    assert [worker["status"] for worker in described["workers"]] == ["READY"] * len(described["workers"])
    assert described["workers"]


def test_what_is_not_here_changes_nothing(running: Running, folder: Path) -> None:
    """Registering, scaling and deleting a model are refused, with a sentence."""
    api = running.api
    for arguments in (
        ("-X", "POST", f"{api}/models?url=https://models.example/x.mar"),
        ("-X", "PUT", f"{api}/models/resnet18?min_worker=3"),
        ("-X", "DELETE", f"{api}/models/resnet18"),
    ):
        status, body = curl(folder, *arguments)
        assert (status, body["type"]) == (405, "MethodNotAllowedException")
        assert "models change only by a deployment" in body["message"]
    assert curl(folder, f"{api}/predictions/vgg", "-T", "photo.jpg")[0] == 404
    assert curl(folder, f"{api}/ping") == (200, {"status": "Healthy"})


def test_with_keys(running: Running, cluster: ServeApi, folder: Path) -> None:
    """Everything but /ping needs the key, whatever the method and the photo."""
    api, before = running.api, previous_config(cluster.state())
    version = httpx2.get(f"{api}/v1/models").json()["models"][0]["version"]
    key, line = create_key("alice")
    name, hashed = line.split()
    try:
        cluster.apply(tuned(before, "Ingress", keys={"hashes": {name: hashed}}), APPLY_TIMEOUT_S)
        for wrong in ((), ("-H", "Authorization: Bearer wrong")):
            for arguments in (
                ("/predictions/resnet18", "-T", "photo.jpg"),
                ("/predictions/resnet18", "-F", "data=@photo.jpg"),
                (f"/predictions/resnet18/{version}", "-T", "text.jpg"),
                ("/predictions/vgg", "-T", "half.jpg"),
                ("/models",),
                ("/models/resnet18",),
                ("/models/resnet18", "-X", "DELETE"),
            ):
                path, *options = arguments
                status, body = curl(folder, f"{api}{path}", *wrong, *options)
                assert (status, body["type"]) == (401, "InvalidKeyException"), arguments
        assert curl(folder, f"{api}/ping") == (200, {"status": "Healthy"})
        check_predictions(folder, api, version, "-H", f"Authorization: Bearer {key}")
    finally:
        cluster.apply(tuned(before, "Ingress", open=True), APPLY_TIMEOUT_S)
