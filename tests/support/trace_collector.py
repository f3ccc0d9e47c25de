"""An OpenTelemetry collector: receives OTLP over HTTP, in protobuf, and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Span = dict[str, Any]


@dataclass(frozen=True)
class Collector:
    """A collector that listens.

    Attributes:
        url: For OTEL_EXPORTER_OTLP_ENDPOINT.
        spans: Received so far: ``name``, ``trace``, ``span`` and ``parent`` (hex ids), ``start`` and ``end`` (ns), and
            the span's attributes.
    """

    url: str
    spans: list[Span]


class _Handler(BaseHTTPRequestHandler):
    spans: list[Span]

    def do_POST(self) -> None:  # the name that BaseHTTPRequestHandler looks up
        export = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        scopes = (scope for resource in export.resource_spans for scope in resource.scope_spans)
        for span in (span for scope in scopes for span in scope.spans):
            attributes = {
                pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes
            }
            ids = {"trace": span.trace_id.hex(), "span": span.span_id.hex(), "parent": span.parent_span_id.hex()}
            times = {"start": span.start_time_unix_nano, "end": span.end_time_unix_nano}
            self.spans.append({"name": span.name, **ids, **times, **attributes})
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print no access log."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listen on a free loopback port until the block ends."""
    spans: list[Span] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"spans": spans}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Collector(f"http://127.0.0.1:{server.server_port}", spans)
    finally:
        server.shutdown()
        server.server_close()
