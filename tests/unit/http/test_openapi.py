"""The OpenAPI document: valid, with short names, examples and our own errors, so that client generators can use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from serve_app.config import FeedbackConfig, LimitsConfig, WeightsConfig
from serve_app.heads_config import HeadsConfig
from serve_app.http.app import create_app
from serve_app.http.openapi_examples import JSON, REQUESTS, RESPONSES
from serve_app.observability.feedback_store import Feedback
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.taught_photos import as_form, photos_of

# The errors of other servers' protocols, by the group of their routes.
PROTOCOL_ERRORS = {
    "Open Inference Protocol v2": "ErrorMessage",
    "Hugging Face": "ErrorMessage",
    "TorchServe": "TorchServeError",
}
# Members of an example that the service omits or that this one has not.
MODEL_DETAILS = {"transform", "training", "metrics", "notes", "calibration", "int8", "licenses", "left_out"}


@pytest.fixture(scope="module")
def http(weights: WeightsConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    service = LocalService(weights, LimitsConfig(deadline_s=600))  # the first fit imports scikit-learn
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path_factory.mktemp("feedback"))))
    service.keep_heads(HeadsConfig(folder=str(tmp_path_factory.mktemp("heads"))))
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def document(http: TestClient) -> dict[str, Any]:
    described: dict[str, Any] = http.get("/openapi.json").json()
    return described


def operations(document: Mapping[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return method, path and description of each operation, by its name."""
    return {
        operation["operationId"]: (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def success(operation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the media types of an operation's success."""
    status = next(status for status in operation["responses"] if status.startswith("2"))
    content: dict[str, Any] = operation["responses"][status].get("content", {})
    return content


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """It fits the OpenAPI specification, and each operation has a name of its own."""
    validate(document)
    assert len(operations(document)) == sum(map(len, document["paths"].values()))


def test_names_are_those_of_functions(document: dict[str, Any]) -> None:
    """No name holds a path; every route belongs to a group."""
    names = operations(document)
    assert {"classify", "submit_job", "get_job_results", "list_models", "v2_infer", "v2_infer_version"} <= names.keys()
    for name, (_, path, operation) in names.items():
        assert "__" not in name
        assert operation["tags"], path


def test_errors_are_problems(document: dict[str, Any]) -> None:
    """All routes list our own error bodies: problem+json, or a protocol's own; never FastAPI's."""
    assert "HTTPValidationError" not in str(document)
    for _, path, operation in operations(document).values():
        (tag,) = operation["tags"]
        for status, response in operation["responses"].items():
            if status.startswith(("2", "3")):
                continue
            ((media_type, body),) = response["content"].items()
            expected = (
                (JSON, PROTOCOL_ERRORS[tag]) if tag in PROTOCOL_ERRORS else ("application/problem+json", "Problem")
            )
            schema = body["schema"]["$ref"].rpartition("/")[2]
            assert (media_type, schema) == expected or (path, status) == ("/ping", "503"), (path, status)


def test_keys_are_described(document: dict[str, Any]) -> None:
    """A generated client may send a key in either header, or none."""
    schemes = document["components"]["securitySchemes"]
    assert [schemes[name]["type"] for each in document["security"] for name in each] == ["http", "apiKey"]
    assert {} in document["security"]


def test_every_operation_has_examples_that_fit(document: dict[str, Any]) -> None:
    """Each JSON body that a route takes or returns has an example, which its schema accepts; so has each path."""
    used = set()
    for name, (_, path, operation) in operations(document).items():
        taken = operation.get("requestBody", {}).get("content", {})
        for kind, bodies in (("request", taken), ("response", success(operation))):
            if JSON in bodies:
                assert "example" in bodies[JSON], (name, kind)
                schema = {**bodies[JSON].get("schema", {}), "components": document["components"]}
                jsonschema.validate(bodies[JSON]["example"], schema)
                used.add((kind, name))
        for parameter in operation.get("parameters", ()):
            assert "example" in parameter or parameter["in"] != "path", (path, parameter["name"])
    listed = {*(("request", name) for name, _ in REQUESTS), *(("response", name) for name, _ in RESPONSES)}
    assert used == listed


@pytest.mark.parametrize("name", ["classify", "predict", "v2_infer", "feedback"])
def test_example_requests_work(http: TestClient, document: dict[str, Any], name: str) -> None:
    """A reader who presses Execute in /docs gets a result."""
    method, path, operation = operations(document)[name]
    body = operation["requestBody"]["content"][JSON]["example"]
    response = http.request(method, path.format(name="resnet18"), json=body)
    assert response.status_code in (200, 204), response.text


def test_example_responses_have_the_members_of_real_ones(http: TestClient, document: dict[str, Any]) -> None:
    """An example is not older than the route that it shows."""
    names = operations(document)
    for name, (method, path, operation) in names.items():
        if method != "get" or path.startswith(("/v1/jobs", "/v1/heads/")) or name.endswith("_version"):
            continue
        real = http.get(path.format(name="resnet18", version="all")).json()
        example = success(operation)[JSON]["example"]
        if isinstance(example, list):
            (example,), (real,) = example, real
        assert example.keys() <= real.keys(), name
    photo = http.post("/v1/classify", content=make_photo()).json()["results"][0]
    assert success(names["classify"][2])[JSON]["example"]["results"][0].keys() - {"id"} == photo.keys()
    model, example = http.get("/v1/models").json()["models"][0], RESPONSES["list_models", JSON]["models"][0]
    assert example.keys() == model.keys() - MODEL_DETAILS
    head = http.put("/v1/heads/cups", files=as_form(photos_of("red", "green", count=2))).json()
    assert success(names["teach_head"][2])[JSON]["example"].keys() == head.keys()
    (listed,) = http.get("/v1/heads").json()["heads"]
    assert success(names["list_heads"][2])[JSON]["example"]["heads"][0].keys() == listed.keys()
    sent = http.post("/v1/heads/cups/suggestions", files=as_form(photos_of("red", count=1, first=9))).json()
    assert success(names["suggest_photos"][2])[JSON]["example"].keys() == sent.keys()
    (suggested,) = http.get("/v1/heads/cups/suggestions").json()["suggestions"]
    (example,) = success(names["list_suggestions"][2])[JSON]["example"]["suggestions"]
    assert (example.keys(), example["answer"].keys()) == (suggested.keys(), suggested["answer"].keys())
