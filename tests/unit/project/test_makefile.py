"""The Makefile: variables of one target stay out of another, and `make help` lists the targets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def test_args_do_not_reach_a_make_that_a_test_starts(tmp_path: Path) -> None:
    """`make test ARGS=…` leaves ARGS of an inner make, such as `make run`, empty."""
    (tmp_path / "inner.mk").write_text("inner:\n\t@echo 'inner ARGS: [$(ARGS)]'\n")
    pytest_stub = tmp_path / "python"  # in place of .venv/bin/python -m pytest
    pytest_stub.write_text(f"#!/bin/sh\necho \"pytest arguments: $*\"\nmake --file '{tmp_path}/inner.mk' inner\n")
    pytest_stub.chmod(0o755)
    command = ["make", "test", "ARGS=-k words", f"BIN={tmp_path}", "PYTHON=true"]
    # As from a shell: make itself may have started this test.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "pytest arguments: -m pytest -k words" in done.stdout
    assert "inner ARGS: []" in done.stdout


def test_help_lists_every_target() -> None:
    """`make help` prints each phony target."""
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+)\s", printed, re.M))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert listed == set(phony.split())
    assert set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M)) == set(phony.split())
