"""Spans from HTTP to batch for OpenTelemetry, under one trace and one request id.

On where the environment says so in OpenTelemetry's own names: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``) has the address of a collector that takes OTLP over HTTP,
``OTEL_TRACES_EXPORTER=console`` prints. All other ``OTEL_*`` (sampler, service name, headers) are read by its SDK.
While it is off nothing of it is imported, and a request costs one look at a variable.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from serve_app.deadline import Origin

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PARENT = "traceparent"
log = logging.getLogger("serve_app")


def exporter_wanted(environment: Mapping[str, str]) -> str | None:
    """``otlp``, ``console``, or None for no tracing."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = environment.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(environment.get, ENDPOINTS)) else "none")
    return named if named in ("otlp", "console") else None


class Ingress:
    """The span of one request, from the first byte of its headers to the last of its answer."""

    def __init__(self, tracer: Tracer, path: str, request_id: str, headers: Mapping[str, str]) -> None:
        """Begin, below the client's span if it sent one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        attributes = {"request_id": request_id, "url.path": path, "http.request.method": "POST"}
        self._span: Span = tracer.start_span("ingress", propagator.extract(headers), SpanKind.SERVER, attributes)
        carrier: dict[str, str] = {}
        if self._span.is_recording():  # else the stages need not know
            from opentelemetry.trace import set_span_in_context

            propagator.inject(carrier, set_span_in_context(self._span))
        self.parent = carrier.get(PARENT)

    def end(self, status: int | None) -> None:
        """End it, with the response's status; None if there was none."""
        from opentelemetry.trace import StatusCode

        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def begin(path: str, request_id: str, headers: Mapping[str, str]) -> Ingress | None:
    """Begin a request's span; None while tracing is off."""
    tracer = _tracer()
    return Ingress(tracer, path, request_id, headers) if tracer else None


def record(origin: Origin | None, name: str, seconds: float, ended_s_ago: float = 0.0, **attributes: Any) -> None:
    """Add the span of what a stage has just done for an image; nothing if its request is not traced.

    Args:
        origin: Whose image it is.
        name: ``preprocess``, ``queue`` or ``model``.
        seconds: How long it took.
        ended_s_ago: When it ended.
        attributes: Of the span; those that are None are left out.
    """
    if origin is None or origin[2] is None or (tracer := _tracer()) is None:
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    request_id, image, parent = origin
    context = TraceContextTextMapPropagator().extract({PARENT: parent})
    known = {key: value for key, value in attributes.items() if value is not None}
    end = time.time_ns() - int(ended_s_ago * 1e9)
    span = tracer.start_span(
        name,
        context,
        attributes={"request_id": request_id, "image": image, **known},
        start_time=end - int(seconds * 1e9),
    )
    span.end(end)


@cache
def _tracer() -> Tracer | None:
    """What makes spans in this process, once."""
    wanted = exporter_wanted(os.environ)
    if wanted is None:
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

        exporter: SpanExporter = ConsoleSpanExporter()
        if wanted == "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
    except ImportError as error:
        log.error("no traces are sent: %s. Install them with: pip install 'serve-app[tracing]'", error)
        return None
    os.environ.setdefault("OTEL_SERVICE_NAME", "image-classification")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("serve_app")
