"""POST /: the unmodified InferenceClient, and what other clients of Hugging Face's servers send."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import InferenceClient, close_session, set_client_factory
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from starlette.testclient import TestClient

from serve_app.config import KeysConfig, WeightsConfig
from serve_app.errors import DeadlineExceededError, NotReadyError, OverloadedError
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
JPEG = {"content-type": "image/jpeg"}


@pytest.fixture
def client(http: TestClient) -> Iterator[InferenceClient]:
    """The client, whose requests go to the app without a socket."""
    set_client_factory(lambda: http)
    yield InferenceClient(model="http://testserver", token="secret")
    set_client_factory(httpx2.Client)


def expected(http: TestClient, photo: bytes, top_k: int) -> list[tuple[str, float]]:
    """Return what /v1/classify returns."""
    (result,) = http.post(f"/v1/classify?top_k={top_k}", content=photo).json()["results"]
    return [(p["label"], pytest.approx(p["score"], abs=1e-5)) for p in result["predictions"]]


def error(response: httpx2.Response, status: int) -> str:
    """The message of an error in the form that the client reads, and in no other."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    message: str = response.json()["error"]
    return message


def b64(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def test_whatever_the_client_takes_as_an_image(client: InferenceClient, http: TestClient, tmp_path: Path) -> None:
    """A path, a path as text, bytes; five classes as from Hugging Face's pipeline, fewer if asked."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(PHOTO)
    best = expected(http, PHOTO, 5)
    for image in (path, str(path), PHOTO):
        assert [(each.label, each.score) for each in client.image_classification(image)] == best
        found = client.image_classification(image, top_k=3, function_to_apply="softmax")
        assert [(each.label, each.score) for each in found] == best[:3]
    assert len(client.image_classification(PHOTO, top_k=1000)) == 6


def test_a_function_that_the_scores_are_not_made_for_is_refused(client: InferenceClient, http: TestClient) -> None:
    """The model is trained for softmax, and the service has no logits of all classes."""
    for function in ("sigmoid", "none"):
        with pytest.raises(HfHubHTTPError, match="scores are softmax probabilities; leave it out") as refused:
            client.image_classification(PHOTO, function_to_apply=function)
        assert refused.value.response.status_code == 422
        assert f"function_to_apply: '{function}' is not available" in str(refused.value.server_message)
    for wrong in ("argmax", 3, True):
        parameters = {"function_to_apply": wrong}
        message = error(http.post("/", json={"inputs": b64(PHOTO), "parameters": parameters}), 422)
        assert message.startswith("function_to_apply: ")


def test_the_client_reads_our_errors(client: InferenceClient) -> None:
    """Its exception has our sentence, the status and the request id."""
    for broken, status, says in (
        (b"no image", 415, "not a JPEG"),
        (PHOTO[:3000], 422, "image"),
        (b"", 400, "the body is empty"),
        (bytes(200_001), 413, "the limit is 200,000"),
        (bytes(500_001), 413, "the limit is 500,000"),
    ):
        kind = BadRequestError if status == 400 else HfHubHTTPError
        with pytest.raises(kind) as refused:
            client.image_classification(broken)
        response = refused.value.response
        assert response.status_code == status
        assert says in str(refused.value.server_message)
        assert response.headers["x-request-id"] in str(refused.value)
    with pytest.raises(HfHubHTTPError, match="top_k: Input should be greater than or equal to 1"):
        client.image_classification(PHOTO, top_k=0)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (OverloadedError("busy"), 503),
        (NotReadyError("starting"), 503),
        (DeadlineExceededError("late"), 504),
        (RuntimeError("a bug, with its secrets"), 500),
    ],
)
def test_what_the_server_does_wrong(http: TestClient, service: LocalService, failure: Exception, status: int) -> None:
    """What is worth trying again says when; nothing internal is told."""
    service.client.failing = failure
    response = http.post("/", content=PHOTO)
    assert "secrets" not in error(response, status)
    assert ("retry-after" in response.headers) == (status != 500)


def test_the_token_is_an_api_key(weights: WeightsConfig, client: InferenceClient) -> None:
    service = LocalService(weights)
    service.keys = ApiKeys(KeysConfig(hashes={"alice": hash_key("secret")}))
    with TestClient(create_app(service)) as http:
        close_session()
        set_client_factory(lambda: http)
        assert client.image_classification(PHOTO, top_k=1)
        for token in ("wrong", None):
            with pytest.raises(HfHubHTTPError) as refused:
                InferenceClient(model="http://testserver", token=token).image_classification(PHOTO)
            assert refused.value.response.status_code == 401
            assert "API key" in str(refused.value.server_message)


def test_other_clients_of_that_server(http: TestClient) -> None:
    """Raw bytes of any type, JSON without its content type, a data URI, gzip, query parameters, null."""
    best = [label for label, _ in expected(http, PHOTO, 5)]
    body = {"inputs": b64(PHOTO)}
    for options in (
        {"content": PHOTO},
        {"content": PHOTO, "headers": JPEG},
        {"content": PHOTO, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"content": gzip.compress(PHOTO), "headers": {**JPEG, "content-encoding": "gzip"}},
        {"json": body},
        {"json": {**body, "parameters": None}},
        {"json": {**body, "parameters": {"top_k": None}}},
        {"json": {"inputs": f"data:image/jpeg;base64,{b64(PHOTO)}"}},
        {"content": b'{"inputs": "%b"}' % b64(PHOTO).encode()},
    ):
        response = http.post("/", **options)  # type: ignore[arg-type] # httpx2's own names
        assert response.status_code == 200, (response.text, options)
        assert [each["label"] for each in response.json()] == best
        assert set(response.json()[0]) == {"label", "score"}
        assert response.headers["server-timing"].startswith("decode;dur=")
        assert response.headers["x-model-version"] == "random"
    assert len(http.post("/?top_k=2", content=PHOTO).json()) == 2


def test_what_is_unknown_is_named_in_a_header(http: TestClient) -> None:
    body = {"inputs": b64(PHOTO), "options": {"wait_for_model": True}, "parameters": {"topk": 2}}
    warnings = http.post("/?x=1", json=body).headers["x-warnings"]
    for place in ("query parameter 'x'", "JSON member 'options'", "JSON parameter 'topk'"):
        assert f"{place} is unknown" in warnings


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "send one image's file in base64, or its URL, as a string"),
        (["AAAA"], "send one image's file in base64, or its URL, as a string"),
        ([{"b64": "AAAA"}], "send one image's file in base64, or its URL, as a string"),
        (7, "send one image's file in base64, or its URL, as a string"),
        ("not base64!", "b64"),
        ("file:///etc/passwd", "url 'file:///etc/passwd'"),
    ],
)
def test_inputs_are_one_image(http: TestClient, inputs: object, says: str) -> None:
    assert says in error(http.post("/", json={"inputs": inputs}), 400)


def test_several_images_are_refused(http: TestClient) -> None:
    files = [("images", PHOTO), ("images", PHOTO)]
    assert error(http.post("/", files=files), 400) == "2 images: send one image here, or several to /v1/classify"


def test_other_methods_keep_their_answers(http: TestClient) -> None:
    """GET leads to the documentation; the errors of other methods are problems, and name all methods."""
    assert http.get("/", follow_redirects=False).headers["location"] == "/docs"
    refused = http.delete("/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    assert refused.headers["content-type"] == "application/problem+json"


def test_calls_of_the_client_that_are_not_here(client: InferenceClient) -> None:
    """Its health check says no; others fail with 404, 400 or 415."""
    named = InferenceClient(model=client.model, provider="hf-inference")
    assert not named.health_check()
    for call in (named.get_endpoint_info, lambda: client.chat_completion([{"role": "user", "content": "hello"}])):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert refused.value.response.status_code == 404
    for text in ("hello", "ABCD"):
        with pytest.raises(HfHubHTTPError) as refused:
            client.text_classification(text)
        assert refused.value.response.status_code in (400, 415)


def test_it_is_described(http: TestClient) -> None:
    """OpenAPI has bodies, parameters, the result, an example, and the form of the errors."""
    described = http.get("/openapi.json").json()
    route = described["paths"]["/"]["post"]
    assert route["operationId"] == "hugging_face_classify"
    assert {p["name"] for p in route["parameters"]} == {"top_k", "function_to_apply"}
    body = route["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["inputs"]["type"] == "string"
    answer = route["responses"]["200"]["content"]["application/json"]
    assert answer["schema"]["items"]["$ref"].endswith("/LabelScore")
    assert [set(each) for each in answer["example"]] == [{"label", "score"}] * 2
    for status in ("400", "401", "413", "415", "422", "429", "503"):
        assert route["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorMessage")
