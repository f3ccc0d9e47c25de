"""A HAProxy that cannot start with our limits ends `serve-app run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.launcher.environment import free_port
from serve_app.launcher.haproxy import MAX_INGRESS_REQUESTS
from serve_app.paths import DATA_VARIABLE
from tests.support.paths import ROOT


def test_a_haproxy_that_does_not_start_ends_the_start_with_its_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Instead of a proxy without limits, or a wait for an API that never answers."""
    monkeypatch.setenv(MAX_INGRESS_REQUESTS, "many")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    command = [sys.executable, "-m", "serve_app", "run", "--no-page", "--weights", "demo", "--port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    assert f"\nerror: the environment variable {MAX_INGRESS_REQUESTS} is 'many', not a positive" in f"\n{done.stderr}"
    assert "Traceback" not in done.stderr
