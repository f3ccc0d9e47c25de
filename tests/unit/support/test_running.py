"""How tests start the service."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.running import RAY_IN_TESTS, service_environment


def test_arguments_of_an_outer_make_stay_out_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test ARGS=…` does not change the ARGS of the `make run` that a test starts."""
    monkeypatch.setenv("MAKEFLAGS", "-- ARGS=--outer")  # as GNU make passes it on
    (tmp_path / "Makefile").write_text('run:\n\t@echo "[$(ARGS)]"\n')
    command = ["make", "--no-print-directory", "-C", str(tmp_path), "run", "ARGS=--inner"]
    output = subprocess.run(command, env=service_environment({}), capture_output=True, text=True, check=True).stdout
    assert output == "[--inner]\n"
    assert "MAKEFLAGS" not in service_environment({})


def test_the_caller_decides_over_the_defaults_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of this process overrides RAY_IN_TESTS; an argument overrides both."""
    first, second, third = list(RAY_IN_TESTS)[:3]
    monkeypatch.setenv(second, "ours")
    monkeypatch.setenv(third, "ours")
    environment = service_environment({third: "argument"})
    assert (environment[first], environment[second], environment[third]) == (RAY_IN_TESTS[first], "ours", "argument")
