"""Replicas lower their priority while they start, so that a start under load takes what is free."""

from __future__ import annotations

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id

LOW = 15  # niceness


def give_way() -> None:
    """Lower this thread, and those that it will start, if it is not low and may be raised again."""
    if may_raise() and os.getpriority(os.PRIO_PROCESS, 0) < LOW:
        os.setpriority(os.PRIO_PROCESS, 0, LOW)


def may_raise() -> bool:
    """Whether this user may raise a priority that was lowered: root may, and whoever has a RLIMIT_NICE of 20.

    Linux keeps a niceness for each thread, so it is tried on one.
    """

    def lowered_and_raised() -> bool:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, usual + 1)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, usual)
        except PermissionError:
            return False
        return True

    if sys.platform != "linux":
        return False
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lowered_and_raised).result()


def take_priority() -> None:
    """Give all threads of this process the priority of its parent, Ray's node; as far as that is allowed."""
    if sys.platform != "linux":
        return
    usual = os.getpriority(os.PRIO_PROCESS, os.getppid())
    for thread in (get_native_id(), *map(int, os.listdir("/proc/self/task"))):
        with contextlib.suppress(OSError):  # it ended meanwhile, or nothing may be raised here
            os.setpriority(os.PRIO_PROCESS, thread, usual)
