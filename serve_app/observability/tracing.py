"""OpenTelemetry spans of a request, from HTTP to the model's batch, in one trace with the request id.

OpenTelemetry's own environment variables switch tracing on: ``OTEL_EXPORTER_OTLP_ENDPOINT`` or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` names a collector that takes OTLP over HTTP, ``OTEL_TRACES_EXPORTER=console``
prints spans. The SDK reads all other ``OTEL_*`` variables (sampler, service name, headers). While tracing is off,
OpenTelemetry is not imported and a request costs one check of a cached variable.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from serve_app.messages import RequestContext

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TRACEPARENT = "traceparent"
log = logging.getLogger("serve_app")


def choose_exporter(environment: Mapping[str, str]) -> str | None:
    """Return ``otlp`` or ``console``, or None for no tracing."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(environment.get, ENDPOINTS)) else "none")
    return exporter if exporter in ("otlp", "console") else None


class RequestSpan:
    """The span of one HTTP request, a child of the client's span if the headers carry one."""

    def __init__(self, tracer: Tracer, path: str, request_id: str, headers: Mapping[str, str]) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        attributes = {"request_id": request_id, "url.path": path, "http.request.method": "POST"}
        self._span: Span = tracer.start_span("ingress", propagator.extract(headers), SpanKind.SERVER, attributes)
        carrier: dict[str, str] = {}
        if self._span.is_recording():
            from opentelemetry.trace import set_span_in_context

            propagator.inject(carrier, set_span_in_context(self._span))
        self.traceparent = carrier.get(TRACEPARENT)  # for the stages' spans; None if the sampler left this request out

    def end(self, status: int | None) -> None:
        """End the span with the response's status; None if no response was sent."""
        from opentelemetry.trace import StatusCode

        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def start_span(path: str, request_id: str, headers: Mapping[str, str]) -> RequestSpan | None:
    """Start a request's span; return None while tracing is off."""
    tracer = _tracer()
    return RequestSpan(tracer, path, request_id, headers) if tracer else None


def record(
    context: RequestContext | None, name: str, seconds: float, ended_s_ago: float = 0.0, **attributes: Any
) -> None:
    """Record the span of a stage's work on one image; do nothing if the request is not traced.

    Args:
        context: The image's request.
        name: ``fetch``, ``preprocess``, ``queue`` or ``model``.
        seconds: Duration of the work.
        ended_s_ago: Seconds since its end.
        attributes: Attributes of the span; None values are left out.
    """
    if context is None or context.traceparent is None or (tracer := _tracer()) is None:
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({TRACEPARENT: context.traceparent})
    known = {key: value for key, value in attributes.items() if value is not None}
    end = time.time_ns() - int(ended_s_ago * 1e9)
    span = tracer.start_span(
        name,
        parent,
        attributes={"request_id": context.request_id, "image": context.index, **known},
        start_time=end - int(seconds * 1e9),
    )
    span.end(end)


@cache
def _tracer() -> Tracer | None:
    """Set tracing up once per process."""
    chosen = choose_exporter(os.environ)
    if chosen is None:
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

        exporter: SpanExporter = ConsoleSpanExporter()
        if chosen == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
    except ImportError as error:
        log.error("tracing is off: %s. Install it with: pip install 'serve-app[tracing]'", error)
        return None
    os.environ.setdefault("OTEL_SERVICE_NAME", "image-classification")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("serve_app")
