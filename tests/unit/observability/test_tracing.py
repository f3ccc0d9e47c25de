"""Tracing: the environment switches it on; switched off, it imports nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from serve_app.observability.tracing import choose_exporter
from tests.support.paths import ROOT

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({}, None),
        (ENDPOINT, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_environment_switches_tracing_on(environment: dict[str, str], exporter: str | None) -> None:
    """OpenTelemetry's own variables choose the exporter, or none."""
    assert choose_exporter(environment) == exporter


def test_without_tracing_nothing_is_imported() -> None:
    """Spans of a traced client are ignored, and OpenTelemetry is not imported."""
    program = (
        "import sys\n"
        "from serve_app.deadline import Deadline\n"
        "from serve_app.messages import RequestContext\n"
        "from serve_app.observability import tracing\n"
        "parent = '00-' + '1' * 32 + '-' + '2' * 16 + '-01'\n"
        "assert tracing.start_span('/v1/classify', 'a', {'traceparent': parent}) is None\n"
        "tracing.record(RequestContext('a', 0, Deadline(60), parent), 'model', 0.1)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
