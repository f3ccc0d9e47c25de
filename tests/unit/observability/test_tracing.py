"""Tracing: when it is on, and that it is nothing when it is off."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from serve_app.deadline import Deadline
from serve_app.observability.tracing import exporter_wanted
from tests.support.paths import ROOT

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
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
def test_the_environment_turns_it_on(environment: dict[str, str], wanted: str | None) -> None:
    assert exporter_wanted(environment) == wanted


def test_off_it_imports_nothing() -> None:
    program = (
        "import sys; from serve_app import tracing\n"
        "parent = '00-' + '1' * 32 + '-' + '2' * 16 + '-01'\n"
        "assert tracing.begin('/v1/classify', 'a', {'traceparent': parent}) is None\n"
        "tracing.record(('a', 0, parent), 'model', 0.1)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_a_deadline_takes_its_image_along() -> None:
    """Between processes too; the one that it was made from, which others share, stays as it is."""
    shared = Deadline(10)
    mine = shared.of(("req_1", 3, None))
    assert pickle.loads(pickle.dumps(mine)).origin == ("req_1", 3, None)
    assert 9 < pickle.loads(pickle.dumps(mine)).left_s() <= 10
    assert shared.origin is None
