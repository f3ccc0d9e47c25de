"""Linux scheduling for work that must not slow down requests: replicas that start, and batch jobs.

Such work runs in the scheduling class SCHED_IDLE (``man 7 sched``), which gets a core only while nothing else wants it.
A high nice value is weaker: a thread that serves a request and wakes up can still wait behind a busy thread of nice 19,
because Linux may leave it on its last core. A core that runs only SCHED_IDLE threads counts as free.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer, get_native_id
from typing import Any

from filelock import FileLock, Timeout

MAX_IDLE_START_S = 30  # a replica that is not ready by then goes on with normal scheduling
MAX_LOCK_WAIT_S = 120


def idle_python() -> list[str]:
    """Return a command that starts this Python in SCHED_IDLE, or with nice 19 where ``chrt`` is missing."""
    chrt = shutil.which("chrt")  # part of util-linux
    return [*([chrt, "--idle", "0"] if chrt else ["nice", "-n", "19"]), sys.executable]


def idle_workers() -> dict[str, Any]:
    """Return Ray options that start a worker with ``idle_python``; every node needs the same Python path."""
    return {"runtime_env": {"py_executable": shlex.join(idle_python())}}


def idle_start_options() -> dict[str, Any]:
    """Return Ray options that start a replica with ``run_idle``, or none where a replica could not leave SCHED_IDLE.

    The replica begins so and not in its constructor, because half of its start is imports. Every node needs the same
    path of Python and of this file.
    """
    if not can_restore_scheduling():
        return {}
    return {"runtime_env": {"py_executable": shlex.join((sys.executable, "-P", __file__))}}


def run_idle(script: str) -> None:
    """Run a Python script in SCHED_IDLE until it calls ``restore_scheduling``, or for MAX_IDLE_START_S.

    Without that limit, a replica would never get ready on a node whose cores are always busy. The thread that keeps
    it has normal scheduling, so that it gets a core.
    """
    timer = Timer(MAX_IDLE_START_S, restore_scheduling)
    timer.daemon = True
    timer.start()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    runpy.run_path(script, run_name="__main__")


@contextlib.contextmanager
def idle_thread(max_s: float) -> Iterator[None]:
    """Run the block in SCHED_IDLE, in this thread only, for at most ``max_s``; then it goes on as the process does.

    Work for a client who waits must end: on a node that is always busy, a SCHED_IDLE thread would never run.
    """
    if not can_restore_scheduling():
        yield
        return
    thread, before = get_native_id(), os.sched_getscheduler(0)

    def restore() -> None:
        with contextlib.suppress(OSError):  # the thread has ended
            os.sched_setscheduler(thread, before, os.sched_param(0))

    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    timer = Timer(max_s, restore)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        restore()


def restore_scheduling() -> None:
    """Move all threads of this process to the scheduling class of its parent, the Ray node's raylet."""
    if sys.platform != "linux":
        return
    parent_class = os.sched_getscheduler(os.getppid())
    for thread in (get_native_id(), *map(int, os.listdir("/proc/self/task"))):
        with contextlib.suppress(OSError):  # the thread has ended, or this user may not leave SCHED_IDLE
            os.sched_setscheduler(thread, parent_class, os.sched_param(0))


@contextlib.contextmanager
def node_lock(lock_file: Path, timeout_s: float = MAX_LOCK_WAIT_S) -> Iterator[None]:
    """Let one replica per node do expensive work at a time; a replica that has waited ``timeout_s`` goes on without.

    All replicas of a node get new weights at the same moment, and two loading replicas starve the one that serves.
    """
    lock = FileLock(lock_file)
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=timeout_s)
    try:
        yield
    finally:
        lock.release()


def can_restore_scheduling() -> bool:
    """Return whether this user may leave SCHED_IDLE: root may, and users with an RLIMIT_NICE of 20 may.

    Linux keeps a scheduling class per thread, so a thread made for the purpose tries it.
    """

    def try_both_classes() -> bool:
        try:
            for scheduling_class in (os.SCHED_IDLE, os.SCHED_OTHER):
                os.sched_setscheduler(0, scheduling_class, os.sched_param(0))
        except OSError:  # some sandboxes forbid even the first call
            return False
        return True

    if sys.platform != "linux":
        return False
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(try_both_classes).result()


if __name__ == "__main__":  # python scheduling.py SCRIPT ARGUMENT…
    sys.argv.pop(0)
    run_idle(sys.argv[0])
