"""What a really served app tells: metrics that dashboard and alerts read, one trace from HTTP to batch, JSON logs."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serve_app.observability.feedback_store import read_votes
from serve_app.release.serve_config import read
from tests.conftest import make_photo
from tests.support.configs import write
from tests.support.paths import ROOT
from tests.support.running import Running, start
from tests.unit.cluster.test_monitoring import named_metrics

CLIENT_TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Span = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """A service, and the folders that it writes to.

    Attributes:
        running: The service.
        folder: Holds its ``logs``, ``predictions`` and ``feedback``.
        spans: What has come to the collector so far.
    """

    running: Running
    folder: Path
    spans: list[Span]


class Collector(BaseHTTPRequestHandler):
    """Takes traces as an OpenTelemetry collector does: OTLP over HTTP, in protobuf."""

    spans: list[Span]

    def do_POST(self) -> None:  # its base class calls it so
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for each in (span for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans):
            values = {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in each.attributes}
            ids = {"trace": each.trace_id.hex(), "span": each.span_id.hex(), "parent": each.parent_span_id.hex()}
            times = {"start": each.start_time_unix_nano, "end": each.end_time_unix_nano}
            self.spans.append({"name": each.name, **ids, **times, **values})
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Blue and its shadow green with everything on, as their files and environment turn it on."""
    folder, spans = tmp_path_factory.mktemp("telemetry"), []
    config = read(ROOT / "configs" / "blue-green.yaml")
    config["logging_config"] = {"encoding": "JSON", "enable_access_log": True, "logs_dir": str(folder / "logs")}
    ingress, _, green = config["applications"]
    ingress["deployments"][0]["user_config"] |= {
        **{"shadow": "green", "shadow_fraction": 1},
        "prediction_log": {"folder": str(folder / "predictions"), "flush_s": 1},
        "feedback": {"folder": str(folder / "feedback"), "keep_images": True},
    }
    green["args"] = {"weights": "demo"}
    collector = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Collector,), {"spans": spans}))
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        arguments = f"ARGS=--no-page --weights config --config {write(config, folder)}"
        with start(arguments) as running:
            yield Observed(running, folder, spans)
    collector.shutdown()
    collector.server_close()


def wait_for(found: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds} s")


def classify(observed: Observed, request_id: str, flags: str = "01", content: bytes | None = None) -> httpx2.Response:
    headers = {"X-Request-ID": request_id, "traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-{flags}"}
    return httpx2.post(
        f"{observed.running.api}/v1/classify", content=content or make_photo(), headers=headers, timeout=30
    )


def log_lines(observed: Observed, stage: str) -> list[dict[str, Any]]:
    """Lines of all replicas of a stage, each parsed; one that is no JSON fails."""
    files = (observed.folder / "logs").rglob(f"replica_*_{stage}_*.log")
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def test_one_trace_and_one_id_from_http_to_batch(observed: Observed) -> None:
    """The client's trace goes on in every stage; its request id is in spans, logs, the log's row and the response."""
    answer = classify(observed, "mine-1")
    assert (answer.headers["x-request-id"], answer.json()["id"]) == ("mine-1", "mine-1")

    names = {"ingress", "preprocess", "queue ingress", "queue classify", "model"}

    def mine() -> list[Span]:
        """Once all are there, those of the shadow too."""
        found = [span for span in list(observed.spans) if span.get("request_id") == "mine-1"]
        return found if len(found) == 2 * len(names) - 1 else []

    spans: dict[str, Span] = {}
    for span in sorted(
        wait_for(mine, "the trace"), key=lambda span: span["start"]
    ):  # the shadow comes after the answer
        spans.setdefault(f"{span['name']} {span.get('stage', '')}".strip(), span)
    assert spans.keys() == names
    ingress = spans["ingress"]
    assert {span["trace"] for span in spans.values()} == {CLIENT_TRACE}
    assert ingress["parent"] == CLIENT_SPAN
    assert {spans[name]["parent"] for name in names - {"ingress"}} == {ingress["span"]}
    assert ingress["http.response.status_code"] == 200
    assert (spans["model"]["version"], spans["model"]["image"]) == ("demo-1", 0)
    assert min(spans.values(), key=lambda span: span["start"]) is ingress
    assert spans["preprocess"]["start"] < spans["queue classify"]["start"] <= spans["model"]["start"]
    (row,) = wait_for(lambda: rows(observed, "mine-1"), "the row")
    assert row["status"] == "ok"
    for stage in ("Ingress", "Preprocessor", "Classifier"):
        found = wait_for(lambda stage=stage: [x for x in log_lines(observed, stage) if x["message"]], "lines")
        assert [x for x in found if x.get("request_id") == "mine-1"], stage


def rows(observed: Observed, request_id: str) -> list[dict[str, Any]]:
    files = (observed.folder / "predictions" / "raw").glob("[!.]*.parquet")
    return [row for path in files for row in pq.read_table(path).to_pylist() if row["request_id"] == request_id]


def test_a_client_that_does_not_sample_is_not_traced(observed: Observed) -> None:
    """The W3C flag is honored; the request is answered all the same."""
    assert classify(observed, "unsampled", "00").status_code == 200
    assert classify(observed, "sampled").status_code == 200
    wait_for(lambda: [s for s in list(observed.spans) if s.get("request_id") == "sampled"], "the other trace")
    time.sleep(1)
    assert not [s for s in list(observed.spans) if s.get("request_id") == "unsampled"]


def test_our_own_log_lines_are_json_with_the_request(observed: Observed) -> None:
    """An image that nobody answered in time is a line, and it names its request."""
    large = make_photo(1, 2400, 1800)
    for number in range(8):
        headers = {"X-Request-ID": f"late-{number}", "X-Request-Timeout-Ms": str(12 + 4 * number)}
        answer = httpx2.post(f"{observed.running.api}/v1/classify", content=large, headers=headers, timeout=30)
        if answer.status_code == 200:
            break
    ours = wait_for(
        lambda: [x for x in log_lines(observed, "Ingress") if "no answer within" in x["message"]], "our line"
    )
    for line in ours:
        assert re.fullmatch(r"late-\d+", line["request_id"])
        assert (line["levelname"], line["deployment"]) == ("WARNING", "classify_Ingress")
        assert line["request_id"] in line["message"]


def test_every_metric_of_dashboard_and_alerts_is_exported(observed: Observed) -> None:
    """A Prometheus scrape, found as Prometheus finds it, after requests, a bad image and votes."""
    api = observed.running.api
    for number in range(5):
        assert classify(observed, f"counted-{number}").status_code == 200
    assert classify(observed, "bad", content=b"no image").status_code == 415
    for said in ({"correct": "true"}, {"correct": "false", "label": "cat"}):
        form = {"request_id": "counted-1", **said}
        assert httpx2.post(f"{api}/v1/feedback", json=form | {"correct": said["correct"] == "true"}).status_code == 204
    assert [vote.label for vote in read_votes(observed.folder / "feedback")] == [None, "cat"]

    def exported() -> str:
        found = httpx2.get(f"{observed.running.dashboard}/api/prometheus/sd").json()
        targets = [target for group in found for target in group["targets"]]
        return "".join(httpx2.get(f"http://{target}/metrics", timeout=30).text for target in targets)

    wanted = named_metrics()
    names: set[str] = set()

    def complete() -> str:
        text = exported()
        names.update(re.findall(r"^(\w+)\{", text, re.MULTILINE))
        return text if names >= wanted else ""

    try:
        text = wait_for(complete, "all metrics", 90)
    except AssertionError:
        raise AssertionError(f"not exported: {sorted(wanted - names)}") from None
    phases = {found for found in re.findall(r'^ray_image_ms_count\{.*phase="(\w+)".*version="demo-1"', text, re.M)}
    assert phases == {"decode", "queue", "model", "total"}
    assert re.search(r'^ray_classifier_model_ms_count\{.*version="demo-1"', text, re.M)
    assert re.search(r'^ray_variant_failed_images_total\{.*code="unsupported_image"', text, re.M)
