"""Who takes turns, or only what CPU is free: replicas that get ready, and batch jobs; so that no request waits."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer, get_native_id
from typing import Any

from filelock import FileLock, Timeout

LONGEST_S = 120  # what takes longer needs CPU, whoever else wants it


def idle_python() -> list[str]:
    """Command for a Python that only takes what CPU is free, from its first instruction on."""
    chrt = shutil.which("chrt")  # Linux
    return [*([chrt, "--idle", "0"] if chrt else ["nice", "-n", "19"]), sys.executable]


def idle_workers() -> dict[str, Any]:
    """Options for Ray to start a worker so, on nodes that have Python where this one has it."""
    return {"runtime_env": {"py_executable": shlex.join(idle_python())}}


def idle_start_options() -> dict[str, Any]:
    """Options for Ray to start a replica as ``enter_idle_scheduling`` would make it, as half of a start is imports."""
    return idle_workers() if can_restore_scheduling() and shutil.which("chrt") else {}


def enter_idle_scheduling() -> None:
    """Run this thread, and those that it will start, only where a core would be idle; if that can be undone here.

    A low priority does less: Linux lets what wakes up wait for its last core while another is busy with a task
    of low priority, but takes a core that has only tasks of the idle class for a free one.
    """
    if can_restore_scheduling():
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        timer = Timer(LONGEST_S, restore_scheduling)
        timer.daemon = True
        timer.start()


def restore_scheduling() -> None:
    """Put all threads of this process in the class of its parent, Ray's node; as far as that is allowed."""
    if sys.platform != "linux":
        return
    usual = os.sched_getscheduler(os.getppid())
    for thread in (get_native_id(), *map(int, os.listdir("/proc/self/task"))):
        with contextlib.suppress(OSError):  # it ended meanwhile, or may not leave its class here
            os.sched_setscheduler(thread, usual, os.sched_param(0))


@contextlib.contextmanager
def node_lock(lock: Path, longest_s: float = LONGEST_S) -> Iterator[None]:
    """One after the other: what all replicas of a node are told to do at the same moment, while they serve.

    Args:
        lock: File that they share.
        longest_s: What waits longer than that goes on.
    """
    turn = FileLock(lock)
    with contextlib.suppress(Timeout):
        turn.acquire(timeout=longest_s)
    try:
        yield
    finally:
        turn.release()


def can_restore_scheduling() -> bool:
    """Whether this user may leave the idle class again: root may, and whoever has a RLIMIT_NICE of 20.

    Linux keeps a class for each thread, so it is tried on one.
    """

    def left_and_returned() -> bool:
        try:
            for each in (os.SCHED_IDLE, os.SCHED_OTHER):
                os.sched_setscheduler(0, each, os.sched_param(0))
        except OSError:  # a sandbox may forbid even the first
            return False
        return True

    if sys.platform != "linux":
        return False
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(left_and_returned).result()
