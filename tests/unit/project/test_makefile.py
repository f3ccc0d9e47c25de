"""The Makefile: variables of one target stay out of another, and `make help` lists the targets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def make_test(folder: Path, pytest_stub: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make test` with a shell script in place of `.venv/bin/python -m pytest`."""
    (folder / "python").write_text(f"#!/bin/sh\n{pytest_stub}\n")
    (folder / "python").chmod(0o755)
    # As from a shell: make itself may have started this test.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")}
    command = ["make", "test", *arguments, f"BIN={folder}", "PYTHON=true"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_args_do_not_reach_a_make_that_a_test_starts(tmp_path: Path) -> None:
    """`make test ARGS=…` reaches both parts, and leaves ARGS of an inner make, such as `make run`, empty."""
    (tmp_path / "inner.mk").write_text("inner:\n\t@echo 'inner ARGS: [$(ARGS)]'\n")
    stub = f"echo \"pytest arguments: $*\"\nmake --file '{tmp_path}/inner.mk' inner"
    printed = make_test(tmp_path, stub, "ARGS=-k 'two words'").stdout
    unit, service = re.findall("pytest arguments: -m pytest (.*)", printed)
    assert re.fullmatch(r"--numprocesses=logical .* tests/unit -k two words", unit)
    assert service == "tests/cluster tests/containers tests/browser tests/service -k two words"
    assert printed.count("inner ARGS: []") == 2


@pytest.mark.parametrize(
    ("unit", "service", "passes"),
    [(0, 0, True), (0, 5, True), (5, 0, True), (5, 5, False), (1, 0, False), (0, 1, False), (1, 5, False)],
)
def test_both_parts_of_the_tests_must_pass(tmp_path: Path, unit: int, service: int, passes: bool) -> None:
    """Both parts run, and `make test` passes if each does; one part, not both, may have no test that ARGS selects."""
    done = make_test(tmp_path, f"case $* in *numprocesses*) exit {unit} ;; *) echo service; exit {service} ;; esac")
    assert (done.returncode == 0) == passes
    assert "service\n" in done.stdout


def test_an_interrupt_ends_all_tests(tmp_path: Path) -> None:
    """After Ctrl-C in the unit tests, no service starts."""
    done = make_test(tmp_path, "case $* in *numprocesses*) exit 2 ;; *) echo service ;; esac")
    assert done.returncode == 2
    assert "service\n" not in done.stdout


def test_help_lists_every_target() -> None:
    """`make help` prints each phony target."""
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+)\s", printed, re.M))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert listed == set(phony.split())
    assert set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M)) == set(phony.split())
