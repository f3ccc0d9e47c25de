"""Unknown parameters are ignored and named, by one rule for the query, for forms and for JSON, on each path."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import FeedbackConfig, JobsConfig
from serve_app.observability.feedback_store import Feedback
from tests.support.api import is_problem
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo(0, 64, 48)
B64 = base64.b64encode(PHOTO).decode()
TYPO = "query parameter 'topk' is unknown and was ignored; did you mean 'top_k'?"


@pytest.fixture
def service(service: LocalService, tmp_path: Path) -> LocalService:
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path / "feedback")))
    service.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs"), sources=(str(tmp_path),)))
    return service


def test_classify_names_them_in_the_body_and_in_a_header(http: TestClient) -> None:
    """Query, form and JSON; a response without them has neither member nor header."""
    body = {"inputs": [{"b64": B64, "name": "a"}], "parameters": {"topK": 2}, "params": {}}
    for answer, warnings in (
        (
            http.post("/v1/classify?topk=3&utm_source=x", content=PHOTO),
            [TYPO, "query parameter 'utm_source' is unknown"],
        ),
        (
            http.post("/v1/classify", files={"images": PHOTO}, data={"TOP_K": "3", "Submit": "Send"}),
            ["form field 'TOP_K' is unknown and was ignored; did you mean 'top_k'?", "form field 'Submit' is unknown"],
        ),
        (
            http.post("/v1/classify?x=", json=body),
            [
                "query parameter 'x' is unknown",
                "JSON member 'params' is unknown and was ignored; did you mean 'parameters'?",
                "JSON member 'name' is unknown",
                "JSON parameter 'topK' is unknown and was ignored; did you mean 'top_k'?",
            ],
        ),
    ):
        assert answer.status_code == 200, answer.text
        given = answer.json()["warnings"]
        assert len(given) == len(warnings)
        assert all(one.startswith(start) for one, start in zip(given, warnings, strict=True)), given
        assert answer.headers["x-warnings"] == "; ".join(given)
        assert len(answer.json()["results"][0]["predictions"]) == 6
    plain = http.post("/v1/classify?top_k=3", content=PHOTO)
    assert "warnings" not in plain.json()
    assert "x-warnings" not in plain.headers


def test_a_stream_names_them_in_its_summary(http: TestClient) -> None:
    answer = http.post("/v1/classify?topk=3", content=PHOTO, headers={"accept": "application/jsonl"})
    result, summary = map(json.loads, answer.text.splitlines())
    assert summary["warnings"] == [TYPO]
    assert "warnings" not in result
    assert answer.headers["x-warnings"] == TYPO


def test_other_responses_name_them_in_the_header(http: TestClient, tmp_path: Path) -> None:
    """/predict, /v2, feedback and jobs keep their shape."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [B64]}
    infer = {"inputs": [tensor], "parameters": {"top-k": 3, "priority": 1}}
    vote = {"request_id": "req_1", "correct": True}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", PHOTO)
    top_k = "did you mean 'top_k'?"
    for answer, says in (
        (http.post("/predict?topk=3", content=PHOTO), TYPO),
        (http.post("/v2/models/resnet18/infer?topk=3", json=infer), "query parameter 'topk' is unknown"),
        (
            http.post("/v2/models/resnet18/infer", json=infer),
            f"JSON member 'top-k' is unknown and was ignored; {top_k}",
        ),
        (http.post("/v1/feedback?x=1", json=vote), "query parameter 'x' is unknown and was ignored"),
        (http.post("/v1/feedback", json=vote | {"lable": "cow"}), "did you mean 'label'?"),
        (
            http.post("/v1/feedback", data=vote | {"go": "Send"}, files={"image": ("", b"")}),
            "form field 'go' is unknown",
        ),
        (
            http.post("/v1/jobs?topk=3", content=archive.getvalue(), headers={"content-type": "application/zip"}),
            TYPO,
        ),
        (http.post("/v1/jobs", json={"source": str(tmp_path), "sources": []}), "JSON member 'sources' is unknown"),
    ):
        assert answer.status_code in (200, 202, 204), answer.text
        assert says in answer.headers["x-warnings"]


def test_an_error_names_them_too(http: TestClient) -> None:
    """A wrong value of a known parameter stays an error, wherever it is."""
    inputs = [{"b64": B64}]
    for refused in (
        http.post("/v1/classify?top_k=ten&x=1", content=PHOTO),
        http.post("/v1/classify?x=1", files={"images": PHOTO}, data={"top_k": "ten"}),
        http.post("/v1/classify?x=1", json={"inputs": inputs, "parameters": {"top_k": "3"}}),
    ):
        assert is_problem(refused, 422, "invalid_parameter")
        assert refused.json()["detail"].startswith("top_k: ")
    assert http.post("/v1/feedback", json={"request_id": "req_1", "correct": "perhaps"}).status_code == 400
    assert http.post("/v1/jobs?top_k=ten", content=b"").status_code == 422
    missing = http.post("/v1/classify?x=1", content=b"no image")
    assert missing.headers["x-warnings"] == "query parameter 'x' is unknown and was ignored"


def test_many_and_strange_names_are_cut(http: TestClient) -> None:
    answer = http.post("/v1/classify?" + "&".join(f"p{n}=1" for n in range(500)), content=PHOTO)
    assert len(answer.json()["warnings"]) == 9
    assert answer.json()["warnings"][-1] == "492 further names were unknown and were ignored (query parameter)"
    strange = http.post("/v1/classify?%0d%0aSet-Cookie:x=1&é%00=1&" + "x" * 5000 + "=1", content=PHOTO)
    assert strange.status_code == 200
    assert strange.headers["x-warnings"].isascii()
    assert "\n" not in strange.headers["x-warnings"]
    assert "set-cookie" not in strange.headers
    assert max(map(len, strange.json()["warnings"])) < 200


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/v2/models/resnet18/infer", "/v1/jobs", "/v1/feedback"])
def test_a_long_query_is_refused_before_it_is_parsed(http: TestClient, path: str) -> None:
    refused = http.post(f"{path}?" + "&".join(f"p{n}=1" for n in range(2000)), content=PHOTO)
    assert refused.status_code == 414
    assert "the query string has 14,889 bytes; the limit is 8,192" in refused.text
