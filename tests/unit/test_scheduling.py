"""Replicas that start leave the cores to those that serve; those that serve are as urgent as they were."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.scheduling import can_restore_scheduling, idle_start_options, node_lock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
SETUP = """
import os, threading
from serve_app import scheduling as priority
if {user}: os.setuid({user})
priority.LONGEST_S = {longest}
stay = threading.Event()
print(priority.can_restore_scheduling(), bool(priority.idle_start_options()))
priority.enter_idle_scheduling()
threading.Thread(target=stay.wait, daemon=True).start()
print(os.sched_getscheduler(0))
stay.wait({wait})
if not {wait}: priority.restore_scheduling()
print(*(os.sched_getscheduler(int(each)) for each in os.listdir("/proc/self/task")))
"""


def run(user: int = 0, longest: float = 60, wait: float = 0, command: tuple[str, ...] = ()) -> list[str]:
    """Whether a process may return and is started low, its class while it starts, and its threads' afterwards."""
    program = SETUP.format(user=user, longest=longest, wait=wait)
    printed = subprocess.check_output([*command, sys.executable, "-c", program], text=True)
    first, low, threads = printed.splitlines()
    return [first, low, " ".join(sorted(set(threads.split())))]


IDLE, USUAL = (str(each) for each in (getattr(os, "SCHED_IDLE", 5), getattr(os, "SCHED_OTHER", 0)))
returns = pytest.mark.skipif(not can_restore_scheduling(), reason="this user may not leave the idle class")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@returns
def test_a_start_is_idle_and_all_its_threads_return() -> None:
    assert run() == ["True True", IDLE, USUAL]


@returns
def test_ray_starts_a_replica_so_from_its_first_instruction() -> None:
    program = idle_start_options()["runtime_env"]["py_executable"]
    printed = subprocess.check_output(["bash", "-c", f"exec {program} -c 'import os; print(os.sched_getscheduler(0))'"])
    assert printed.decode().strip() == IDLE


@returns
def test_what_was_started_so_returns() -> None:
    assert run(command=("chrt", "--idle", "0")) == ["True True", IDLE, USUAL]


@returns
def test_a_start_that_takes_long_returns_by_itself() -> None:
    assert run(longest=0.2, wait=2) == ["True True", IDLE, USUAL]


@root
def test_where_none_may_return_none_gives_way() -> None:
    assert run(user=65534) == ["False False", USUAL, USUAL]


def test_one_after_the_other(tmp_path: Path) -> None:
    """What takes turns is never there twice, not even after one that failed; what waits too long goes on."""
    lock, seen = tmp_path / "lock", []

    def take(name: str, longest_s: float) -> None:
        with node_lock(lock, longest_s):
            seen.append(f"{name} begins")
            time.sleep(0.3)
            seen.append(f"{name} ends")
            raise RuntimeError(name)

    with ThreadPoolExecutor(3) as threads:
        taken = [threads.submit(take, name, 60) for name in ("one", "two")]
        assert {type(each.exception()) for each in taken} == {RuntimeError}
        assert [each.split()[1] for each in seen] == ["begins", "ends"] * 2
        seen.clear()
        taken = [threads.submit(take, name, 0.1) for name in ("one", "two")]
        assert {type(each.exception()) for each in taken} == {RuntimeError}
        assert [each.split()[1] for each in seen] == ["begins", "begins", "ends", "ends"]
