"""NVIDIA's own client for the Open Inference Protocol, tritonclient, against the running service."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.photos import make_photo
from tests.support.running import Running

PHOTOS = [make_photo(seed, 500, 375) for seed in range(5)]


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(running.api.removeprefix("http://"), network_timeout=60) as client:
        yield client


def images(photos: list[bytes], binary: bool) -> list[triton.InferInput]:
    elements = photos if binary else [base64.b64encode(photo) for photo in photos]
    tensor = triton.InferInput("image", [len(photos), 1], "BYTES")
    return [tensor.set_data_from_numpy(np.array(elements, dtype=object).reshape(-1, 1), binary_data=binary)]


def test_it_finds_the_model(client: triton.InferenceServerClient) -> None:
    """Health, repository index, metadata and config are those that the client expects."""
    assert client.is_server_live()
    assert client.is_server_ready()
    (listed,) = client.get_model_repository_index()
    name, version = listed["name"], listed["version"]
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, version)
    assert not client.is_model_ready("vgg")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert [tensor["name"] for tensor in client.get_model_metadata(name, version)["inputs"]] == ["image"]
    assert client.get_model_config(name)["max_batch_size"] == 64


@pytest.mark.parametrize("photos", [PHOTOS[:1], PHOTOS], ids=["one", "batch"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary", "json"])
def test_results_equal_those_of_classify(
    client: triton.InferenceServerClient, running: Running, photos: list[bytes], binary_in: bool, binary_out: bool
) -> None:
    """Labels, ids and scores equal those of /v1/classify, in JSON and in binary tensors."""
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "score", "class_id")]
    result = client.infer("resnet18", images(photos, binary_in), outputs=outputs, request_id="7")
    assert result.get_response()["id"] == "7"
    form = [("images", ("a.jpg", photo)) for photo in photos]
    expected = httpx2.post(f"{running.api}/v1/classify", files=form, timeout=60).json()["results"]
    for row, expected_row in enumerate(expected):
        predictions = expected_row["predictions"]
        labels = [label.decode() if binary_out else label for label in result.as_numpy("label")[row]]
        assert labels == [p["label"] for p in predictions]
        assert result.as_numpy("class_id")[row].tolist() == [p["class_id"] for p in predictions]
        assert result.as_numpy("score")[row] == pytest.approx(
            [p["score"] for p in predictions], abs=1e-3
        )  # see test_a_batch_equals_singles


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_options_of_the_client(client: triton.InferenceServerClient, algorithm: str) -> None:
    """The service takes compressed requests, top_k, and the client's own count of classes."""
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    score = triton.InferRequestedOutput("score", class_count=3)
    label = triton.InferRequestedOutput("label")
    result = client.infer("resnet18", images(PHOTOS, True), outputs=[score, label], parameters={"top_k": 2}, **options)
    assert (result.as_numpy("score").shape, result.as_numpy("label").shape) == ((5, 3), (5, 2))
    assert result.as_numpy("score")[4, 0].split(b":", 2)[2] == result.as_numpy("label")[4, 0]


def test_errors_arrive_as_the_clients_own(client: triton.InferenceServerClient) -> None:
    """A bad image and an unknown model raise the client's exception, with our sentence and status."""
    with pytest.raises(InferenceServerException, match="image 1: not a JPEG") as refused:
        client.infer("resnet18", images([PHOTOS[0], b"no image"], True))
    assert refused.value.status() == "415"
    with pytest.raises(InferenceServerException, match="there is no model 'vgg'"):
        client.infer("vgg", images(PHOTOS[:1], True))
