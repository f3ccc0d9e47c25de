"""Hugging Face's own client, huggingface_hub, against the running service, with and without API keys."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from serve_app.http.auth import create_key
from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import tuned
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S

PHOTO = make_photo(0, 500, 375)
BROKEN = ((b"no image", 415, "not a JPEG"), (PHOTO[:3000], 422, ""), (b"", 400, "the body is empty"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.jpg"
    path.write_bytes(PHOTO)
    return str(path)


def check_results(client: InferenceClient, photo: str, expected: httpx2.Response) -> None:
    """Check that file, path and bytes get what /v1/classify returned."""
    predictions = expected.json()["results"][0]["predictions"]
    labels, scores = [p["label"] for p in predictions], [p["score"] for p in predictions]
    for image in (photo, Path(photo), PHOTO):
        for options in ({}, {"top_k": 3}, {"top_k": 3, "function_to_apply": "softmax"}):
            found = client.image_classification(image, **options)  # type: ignore[arg-type] # the client's own names
            top_k = options.get("top_k", 5)
            assert [each.label for each in found] == labels[:top_k]
            # A batch may differ from a single image, see tests/service/test_served.py::test_a_batch_equals_singles.
            assert [each.score for each in found] == pytest.approx(scores[:top_k], abs=1e-3)


def check_broken_photos(client: InferenceClient) -> None:
    """Check that each mistake is the client's exception, with our status, sentence and request id."""
    for broken, status, says in BROKEN:
        with pytest.raises(HfHubHTTPError) as refused:
            client.image_classification(broken)
        response = refused.value.response
        assert response.status_code == status
        assert says in str(refused.value.server_message)
        assert response.headers["x-request-id"] in str(refused.value)
    with pytest.raises(HfHubHTTPError, match="'sigmoid' is not available"):
        client.image_classification(PHOTO, function_to_apply="sigmoid")


def test_without_keys(running: Running, photo: str) -> None:
    """Anyone classifies; a token that the client has for another server does no harm."""
    expected = httpx2.post(f"{running.api}/v1/classify", content=PHOTO)
    for client in (InferenceClient(model=running.api), InferenceClient(model=f"{running.api}/", token="hf_other")):
        check_results(client, photo, expected)
        check_broken_photos(client)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own use of httpx2
async def test_the_asynchronous_client(running: Running, photo: str) -> None:
    async with AsyncInferenceClient(model=running.api) as client:
        assert len(await client.image_classification(photo, top_k=3)) == 3
        with pytest.raises(HfHubHTTPError, match="not a JPEG"):
            await client.image_classification(b"no image")


def test_with_keys(running: Running, cluster: ServeApi, photo: str) -> None:
    """The token is the key; without the right one neither a photo nor a broken one gets past it."""
    before = previous_config(cluster.state())
    key, line = create_key("alice")
    name, hashed = line.split()
    try:
        cluster.apply(tuned(before, "Ingress", keys={"hashes": {name: hashed}}), APPLY_TIMEOUT_S)
        for client in (InferenceClient(model=running.api, token="wrong"), InferenceClient(model=running.api)):
            for content in (PHOTO, b"no image", b""):
                with pytest.raises(HfHubHTTPError, match="API key") as refused:
                    client.image_classification(content)
                assert refused.value.response.status_code == 401
        expected = httpx2.post(f"{running.api}/v1/classify", content=PHOTO, headers={"X-API-Key": key})
        client = InferenceClient(model=running.api, token=key)
        check_results(client, photo, expected)
        check_broken_photos(client)
        used = httpx2.get(f"{running.api}/v1/usage", headers={"X-API-Key": key}).json()["images"]
        assert used["total"] == 1 + 9 + 4  # each request costs one image, also a refused one
    finally:
        cluster.apply(tuned(before, "Ingress", open=True), APPLY_TIMEOUT_S)
