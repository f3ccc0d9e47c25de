"""TorchServe's calls: predictions, health, and the management calls that read; what is not here says so."""

from __future__ import annotations

import gzip
from base64 import b64encode

import httpx2
import pytest
from starlette.testclient import TestClient

from serve_app.errors import DeadlineExceededError, NotReadyError, OverloadedError
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
PREDICT = "/predictions/resnet18"
MODEL = "/models/resnet18"
JPEG = {"content-type": "image/jpeg"}


def error(response: httpx2.Response, status: int, kind: str) -> str:
    """The message of an error in TorchServe's form, and in no other."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["code", "type", "message"]
    assert (body["code"], body["type"]) == (status, kind)
    message: str = body["message"]
    return message


@pytest.mark.parametrize("path", [PREDICT, f"{PREDICT}/random", f"{PREDICT}/"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_predictions_map_labels_to_probabilities(http: TestClient, method: str, path: str) -> None:
    """The five best classes in their order, as /v1/classify has them, for each way in which curl sends a file."""
    (result,) = http.post("/v1/classify?top_k=5", content=PHOTO).json()["results"]
    best = [(p["label"], pytest.approx(p["score"], abs=1e-5)) for p in result["predictions"]]
    for options in (
        {"content": PHOTO},  # curl -T
        {"content": PHOTO, "headers": {"content-type": "application/x-www-form-urlencoded"}},  # curl --data-binary
        {"content": iter([PHOTO[:1000], PHOTO[1000:]]), "headers": JPEG},
        {"content": gzip.compress(PHOTO), "headers": {**JPEG, "content-encoding": "gzip"}},
        {"files": {"data": ("photo.jpg", PHOTO)}},  # curl -F data=@photo.jpg
        {"files": {"body": PHOTO}},
        {"files": {"image": PHOTO}},
    ):
        response = http.request(method, path, **options)  # type: ignore[arg-type] # httpx2's own names
        assert response.status_code == 200, response.text
        assert list(response.json().items()) == best
        assert response.headers["server-timing"].startswith("decode;dur=")
    assert len(http.request(method, f"{path}?top_k=2", content=PHOTO).json()) == 2


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_what_a_client_sends_wrong(http: TestClient, method: str) -> None:
    """Each mistake has its own status and type, and a sentence."""
    for path, options, status, kind, says in (
        (PREDICT, {"content": b"no image"}, 415, "UnsupportedImageException", "not a JPEG"),
        (PREDICT, {"content": PHOTO[:3000]}, 422, "InvalidImageException", ""),
        (PREDICT, {"content": b""}, 400, "BadRequestException", "the body is empty"),
        (PREDICT, {}, 400, "BadRequestException", "the body is empty"),
        (PREDICT, {"content": bytes(200_001)}, 413, "TooLargeException", "the image has"),
        (PREDICT, {"content": bytes(500_001)}, 413, "TooLargeException", "the body has"),
        (PREDICT, {"files": [("data", PHOTO)] * 2}, 400, "BadRequestException", "2 images: send one image here"),
        (PREDICT, {"files": {"data": ("", b64encode(PHOTO))}}, 415, "UnsupportedImageException", "not a JPEG"),
        (PREDICT, {"files": {"photo": PHOTO}}, 400, "BadRequestException", "send files in the field 'data'"),
        (f"{PREDICT}?top_k=0", {"content": PHOTO}, 422, "InvalidParameterException", "top_k: "),
        ("/predictions/vgg", {"content": PHOTO}, 404, "ModelNotFoundException", "the model is 'resnet18'"),
        (f"{PREDICT}/2.0", {"content": PHOTO}, 404, "ModelNotFoundException", "known versions: 'random'"),
        ("/predictions", {"content": PHOTO}, 404, "ResourceNotFoundException", "to /predictions/{name}"),
        (f"{PREDICT}/random/x", {"content": PHOTO}, 404, "ResourceNotFoundException", "Not Found"),
    ):
        response = http.request(method, path, **options)  # type: ignore[arg-type] # httpx2's own names
        assert says in error(response, status, kind), (path, options.keys())
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (OverloadedError("busy"), 503, "ServiceUnavailableException"),
        (NotReadyError("starting"), 503, "ServiceUnavailableException"),
        (DeadlineExceededError("late"), 504, "RequestTimeoutException"),
        (RuntimeError("a bug, with its secrets"), 500, "InternalServerException"),
    ],
)
def test_what_the_server_does_wrong(
    http: TestClient, service: LocalService, failure: Exception, status: int, kind: str
) -> None:
    """What is worth trying again says when; nothing internal is told."""
    service.client.failing = failure
    response = http.put(PREDICT, content=PHOTO)
    assert "secrets" not in error(response, status, kind)
    assert ("retry-after" in response.headers) == (status != 500)


def test_what_is_unknown_is_named_in_a_header(http: TestClient) -> None:
    assert "query parameter 'topk' is unknown" in http.put(f"{PREDICT}?topk=1", content=PHOTO).headers["x-warnings"]


def test_ping(http: TestClient, service: LocalService) -> None:
    """As load balancers ask it: 200 while a model answers, else 503."""
    assert http.get("/ping").json() == {"status": "Healthy"}
    service.client.failing = NotReadyError("")
    response = http.get("/ping")
    assert (response.status_code, response.json()) == (503, {"status": "Unhealthy"})


def test_the_model_is_listed_and_described(http: TestClient) -> None:
    """With TorchServe's names; a version of its own, or all."""
    sha256 = http.get("/v1/models").json()["models"][0]["sha256"]
    named = {"modelName": "resnet18", "modelUrl": f"sha256:{sha256}"}
    assert http.get("/models").json() == {"models": [named]}
    described = named | {"modelVersion": "random", "workers": [{"id": "0", "status": "READY"}]}
    for path in (MODEL, f"{MODEL}/random", f"{MODEL}/all", f"{MODEL}?customized=true"):
        assert http.get(path).json() == [described], path
    assert "the model is 'resnet18'" in error(http.get("/models/vgg"), 404, "ModelNotFoundException")
    assert "known versions: 'random'" in error(http.get(f"{MODEL}/1.0"), 404, "ModelNotFoundException")


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/models?url=x.mar", 405, "models change only by a deployment"),
        ("DELETE", MODEL, 405, "models change only by a deployment"),
        ("DELETE", f"{MODEL}/random", 405, "models change only by a deployment"),
        ("PUT", f"{MODEL}?min_worker=3", 405, "models change only by a deployment"),
        ("PUT", f"{MODEL}/random", 405, "models change only by a deployment"),
        ("PUT", f"{MODEL}/random/set-default", 404, "models change only by a deployment"),
        ("POST", "/explanations/resnet18", 404, "POST /v1/classify?explain=cam explains a result"),
        ("POST", "/invocations", 404, "POST the image to /predictions/{name}"),
        ("GET", "/workflows", 404, "there are no workflows"),
        ("POST", "/wfpredict/dogs", 404, "there are no workflows"),
        ("GET", "/api-description", 404, "GET /openapi.json describes the API"),
        ("GET", PREDICT, 405, "POST or PUT an image to /predictions/{name}"),
        ("DELETE", "/ping", 405, "/docs lists all routes"),
    ],
)
def test_calls_that_are_not_here_say_what_to_do(
    http: TestClient, method: str, path: str, status: int, says: str
) -> None:
    """None of them changes anything."""
    before = http.get("/v1/models").json()
    kind = "MethodNotAllowedException" if status == 405 else "ResourceNotFoundException"
    response = http.request(method, path)
    assert says in error(response, status, kind)
    if status == 405:
        allowed = {PREDICT: "POST, PUT", MODEL: "GET, HEAD, POST"}  # Hugging Face's clients post to a model
        assert response.headers["allow"] == allowed.get(path.partition("?")[0], "GET, HEAD")
    assert http.get("/v1/models").json() == before


def test_calls_outside_torchserves_paths(http: TestClient) -> None:
    """Problems, as for every unknown path or method."""
    assert http.options("/").status_code == 405
    for path in ("/v1/models/resnet18:predict", "/v1/models/resnet18:explain"):
        assert http.post(path, json={}).status_code == 404


def test_a_model_has_the_names_that_the_settings_add(http: TestClient, service: LocalService) -> None:
    """In paths of each protocol; answers have the name of its card."""
    service.configure(model_aliases=("resnet-18",))
    best = http.put(PREDICT, content=PHOTO).json()
    for path in ("/predictions/resnet-18", "/predictions/resnet-18/random", PREDICT):
        assert http.put(path, content=PHOTO).json() == best
    assert http.get("/models/resnet-18").json()[0]["modelName"] == "resnet18"
    assert http.get("/v2/models/resnet-18/ready").json() == {"name": "resnet18", "ready": True}
    assert http.get("/v1/models/resnet-18/labels").json()["name"] == "resnet18"
    for path in ("/models/vgg", "/v2/models/vgg", "/v1/models/vgg/labels"):
        assert http.get(path).status_code == 404


def test_they_are_described(http: TestClient) -> None:
    """OpenAPI has an id, parameters, bodies, results, and the form of the errors for each route."""
    paths = http.get("/openapi.json").json()["paths"]
    for path in ("/predictions/{name}", "/predictions/{name}/{version}"):
        for method in ("post", "put"):
            route = paths[path][method]
            names = {p["name"] for p in route["parameters"]}
            assert names == {"top_k", "name"} | ({"version"} if "version" in path else set())
            assert set(route["requestBody"]["content"]) == {
                "image/*",
                "application/octet-stream",
                "multipart/form-data",
            }
            answer = route["responses"]["200"]["content"]["application/json"]
            assert answer["schema"]["additionalProperties"] == {"type": "number"}
            assert answer["example"]
            refused = route["responses"]["415"]["content"]["application/json"]["schema"]["$ref"]
            assert refused.endswith("/TorchServeError")
    ids = [route["operationId"] for methods in paths.values() for route in methods.values()]
    assert len(set(ids)) == len(ids)
    assert {name for name in ids if name.startswith("torchserve_")} == {
        "torchserve_ping",
        "torchserve_list_models",
        "torchserve_describe_model",
        "torchserve_describe_version",
        "torchserve_predict_post",
        "torchserve_predict_put",
        "torchserve_predict_version_post",
        "torchserve_predict_version_put",
    }
