"""Replicas that start leave the cores to those that serve; those that serve have their usual priority back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serve_app.priority import LOW, may_raise

SETUP = """
import os, threading
from serve_app.priority import give_way, may_raise, take_priority
stay = threading.Event()
if {user}: os.setuid({user})
print(may_raise())
give_way()
threading.Thread(target=stay.wait, daemon=True).start()
print(os.getpriority(os.PRIO_PROCESS, 0))
take_priority()
print(*(os.getpriority(os.PRIO_PROCESS, int(each)) for each in os.listdir("/proc/self/task")))
"""


def run(user: int = 0, niceness: int = 0) -> tuple[str, int, set[int]]:
    """Whether a process may raise itself, how low it is while it starts, and its two threads' niceness afterwards."""
    command = ["nice", "-n", str(niceness), sys.executable, "-c", SETUP.format(user=user)]
    printed = subprocess.check_output(command, text=True)
    allowed, low, threads = printed.splitlines()
    return allowed, int(low), set(map(int, threads.split()))


@pytest.mark.skipif(not may_raise(), reason="this user may not raise a priority again")
def test_a_start_is_low_and_all_its_threads_are_raised() -> None:
    assert run() == ("True", LOW, {os.getpriority(os.PRIO_PROCESS, 0)})


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become somebody else")
def test_where_nothing_may_be_raised_nothing_is_lowered() -> None:
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert run(user=65534) == ("False", usual, {usual})


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_service_that_is_low_itself_stays_so_while_it_starts() -> None:
    """As in a container whose engine runs at the lowest priority: nothing may be raised there, nor be tried."""
    assert run(user=65534, niceness=19)[1] == 19
