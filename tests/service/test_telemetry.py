"""What a running service reports: metrics of dashboard and alerts, one trace from HTTP to batch, JSON logs."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pyarrow.parquet as pq

from serve_app.observability.feedback_store import read_votes
from tests.support.monitoring import named_metrics
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.services import FullService
from tests.support.trace_collector import Span
from tests.support.weights import TINY_LABELS, TINY_VERSION

CLIENT_TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SPAN_NAMES = {"ingress", "preprocess", "queue ingress", "queue classify", "model"}
SPANS = 2 * len(SPAN_NAMES) - 1  # each stage but the ingress a second time, for the shadow


def classify(service: FullService, request_id: str, flags: str = "01", content: bytes | None = None) -> httpx2.Response:
    headers = {"X-Request-ID": request_id, "traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-{flags}"}
    return httpx2.post(
        f"{service.running.api}/v1/classify", content=content or make_photo(), headers=headers, timeout=30
    )


def wait_for_trace(service: FullService, request_id: str) -> list[Span]:
    """Return all spans of a request, the shadow's included."""

    def complete() -> list[Span]:
        spans = [span for span in list(service.spans) if span.get("request_id") == request_id]
        return spans if len(spans) == SPANS else []

    return wait_for(complete, what=f"the trace of {request_id}")


def log_lines(service: FullService, stage: str) -> list[dict[str, Any]]:
    """Return the log lines of all replicas of a stage, parsed; a line that is not JSON fails the test."""
    files = (service.folder / "logs").rglob(f"replica_*_{stage}_*.log")
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def rows(service: FullService, request_id: str) -> list[dict[str, Any]]:
    """Return the rows of a request in the prediction log."""
    files = (service.folder / "predictions" / "raw").glob("[!.]*.parquet")
    return [row for path in files for row in pq.read_table(path).to_pylist() if row["request_id"] == request_id]


def test_one_trace_and_one_id_from_http_to_batch(full_service: FullService) -> None:
    """Every stage continues the client's trace; spans, logs, the log's row and the response hold its request id."""
    response = classify(full_service, "mine-1")
    assert (response.headers["x-request-id"], response.json()["id"]) == ("mine-1", "mine-1")

    spans: dict[str, Span] = {}
    # The shadow gets the image after the variant that answers.
    for span in sorted(wait_for_trace(full_service, "mine-1"), key=lambda span: span["start"]):
        spans.setdefault(f"{span['name']} {span.get('stage', '')}".strip(), span)
    assert spans.keys() == SPAN_NAMES
    ingress = spans["ingress"]
    assert {span["trace"] for span in spans.values()} == {CLIENT_TRACE}
    assert ingress["parent"] == CLIENT_SPAN
    assert {spans[name]["parent"] for name in SPAN_NAMES - {"ingress"}} == {ingress["span"]}
    assert ingress["http.response.status_code"] == 200
    assert (spans["model"]["version"], spans["model"]["image"]) == (TINY_VERSION, 0)
    assert min(spans.values(), key=lambda span: span["start"]) is ingress
    assert spans["preprocess"]["start"] < spans["queue classify"]["start"] <= spans["model"]["start"]
    (row,) = wait_for(lambda: rows(full_service, "mine-1"), what="the row")
    assert row["status"] == "ok"
    for stage in ("Ingress", "Preprocessor", "Classifier"):
        wait_for(
            lambda stage=stage: [x for x in log_lines(full_service, stage) if x.get("request_id") == "mine-1"],
            what=f"a log line of the {stage}",
        )


def test_a_client_that_does_not_sample_is_not_traced(full_service: FullService) -> None:
    """The service honors the W3C sampled flag, and answers the request all the same."""
    assert classify(full_service, "unsampled", "00").status_code == 200
    assert classify(full_service, "sampled").status_code == 200
    wait_for_trace(full_service, "sampled")  # each stage has exported what came before it
    assert not [span for span in list(full_service.spans) if span.get("request_id") == "unsampled"]


def test_our_own_log_lines_are_json_with_the_request(full_service: FullService) -> None:
    """An image without an answer in time leaves a log line that names its request."""
    large = make_photo(1, 2400, 1800)
    for number in range(8):
        headers = {"X-Request-ID": f"late-{number}", "X-Request-Timeout-Ms": str(12 + 4 * number)}
        url = f"{full_service.running.api}/v1/classify"
        if httpx2.post(url, content=large, headers=headers, timeout=30).status_code == 200:
            break
    lines = wait_for(
        lambda: [x for x in log_lines(full_service, "Ingress") if "no result within" in x["message"]], what="our line"
    )
    for line in lines:
        assert re.fullmatch(r"late-\d+", line["request_id"])
        assert (line["levelname"], line["deployment"]) == ("WARNING", "classify_Ingress")
        assert line["request_id"] in line["message"]


def test_every_metric_of_dashboard_and_alerts_is_exported(full_service: FullService) -> None:
    """Prometheus' own discovery leads to every metric, after requests, a bad image and votes."""
    api, dashboard = full_service.running.api, full_service.running.dashboard
    for number in range(5):
        assert classify(full_service, f"counted-{number}").status_code == 200
    assert classify(full_service, "bad", content=b"no image").status_code == 415
    for vote in ({"correct": True}, {"correct": False, "label": TINY_LABELS[0]}):
        assert httpx2.post(f"{api}/v1/feedback", json={"request_id": "counted-1", **vote}).status_code == 204
    assert [vote.label for vote in read_votes(full_service.folder / "feedback")] == [None, TINY_LABELS[0]]

    def exported() -> str:
        groups = httpx2.get(f"{dashboard}/api/prometheus/sd").json()
        targets = [target for group in groups for target in group["targets"]]
        return "".join(httpx2.get(f"http://{target}/metrics", timeout=30).text for target in targets)

    expected, seen = named_metrics(), set()

    def complete() -> str:
        text = exported()
        seen.update(re.findall(r"^(\w+)\{", text, re.MULTILINE))
        return text if seen >= expected else ""

    try:
        text = wait_for(complete)
    except AssertionError:
        raise AssertionError(f"not exported: {sorted(expected - seen)}") from None
    phases = set(re.findall(rf'^ray_image_ms_count\{{.*phase="(\w+)".*version="{TINY_VERSION}"', text, re.MULTILINE))
    assert phases == {"decode", "queue", "model", "total"}
    assert re.search(rf'^ray_classifier_model_ms_count\{{.*version="{TINY_VERSION}"', text, re.MULTILINE)
    assert re.search(r'^ray_variant_failed_images_total\{.*code="unsupported_image"', text, re.MULTILINE)
