"""The process tree of a program that tests and benchmarks start."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import processes
from tests.support.polling import wait_for
from tests.support.processes import CpuWatch, started


def runs(process: psutil.Process, program: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # ended since it was listed
        return program in process.cmdline()
    return False


def test_nothing_is_left_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grandchildren in sessions of their own are listed, measured and ended, even when their parents are gone."""
    monkeypatch.setattr(processes, "GRACE_S", 0.1)  # the grandchild doesn't end by itself
    grandchild = "import time; sum(range(10**6)); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    parent = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with started([sys.executable, "-c", parent], tmp_path, {}, tmp_path / "log") as (tree, _):

        def leader_and_grandchild() -> list[psutil.Process]:
            alive = tree.processes()
            return alive if len(alive) == 2 and any(runs(process, grandchild) for process in alive) else []

        with CpuWatch(tree) as watch:
            found = wait_for(leader_and_grandchild, what="the grandchild without its parent")
        assert watch.by_name["main"] >= 0
        assert tree.memory_mb()["main"] > 0
    assert not any(psutil.pid_exists(process.pid) and process.is_running() for process in found)
    assert len(tree.left_behind) == 1
