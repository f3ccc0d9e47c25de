"""Replicas that start leave the cores to those that serve; those that serve have their usual priority back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serve_app.priority import LOW, may_raise

SETUP = """
import os, threading
from serve_app.priority import may_raise, take_priority
stay = threading.Event()
os.setpriority(os.PRIO_PROCESS, 0, {low})
threading.Thread(target=stay.wait, daemon=True).start()
if {user}: os.setuid({user})
print(may_raise())
take_priority()
print(*(os.getpriority(os.PRIO_PROCESS, int(each)) for each in os.listdir("/proc/self/task")))
"""


def run(user: int = 0) -> tuple[str, set[int]]:
    """What a process says that lowered itself; then the niceness of its two threads."""
    code = SETUP.format(low=LOW, user=user)
    allowed, threads = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    return allowed, set(map(int, threads.split()))


@pytest.mark.skipif(not may_raise(), reason="this user may not raise a priority again")
def test_all_threads_take_the_priority_of_the_node() -> None:
    assert run() == ("True", {os.getpriority(os.PRIO_PROCESS, 0)})


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become somebody else")
def test_where_it_is_not_allowed_nothing_is_lowered_nor_raised() -> None:
    """As an ordinary user: the launcher does not lower anything then, and a replica that is low stays so."""
    assert run(user=65534) == ("False", {LOW})
