"""Runs a module of this package as a short-lived process: what it imports is gone from memory when it ends."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from threading import Timer

from serve_app.paths import python_path
from serve_app.scheduling import MAX_IDLE_START_S, restore_scheduling

log = logging.getLogger("serve_app")
PR_SET_PDEATHSIG = 1  # of prctl(2), Linux


class ChildError(Exception):
    """The process failed; the message is the last line that it wrote to stderr."""


def run_child(module: str, *arguments: str, stdin: bytes = b"") -> str:
    """Run ``python -m module arguments`` and return the last line of its output; this process logs what it logs.

    Raises:
        ChildError: It ended with another exit code than 0.
        OSError: It could not be started.
    """
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode:
        raise ChildError(lines[-1] if lines else f"exit code {done.returncode}")
    for line in lines:
        log.info("%s: %s", module.rpartition(".")[2], line)
    return done.stdout.decode().strip().rpartition("\n")[2]


def begin_child() -> None:
    """Set up such a process: it ends with its parent, and starves no longer than a starting replica does.

    A replica that starts in SCHED_IDLE passes that class on.
    """
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    timer = Timer(MAX_IDLE_START_S, restore_scheduling)
    timer.daemon = True
    timer.start()
