"""A starting replica runs in SCHED_IDLE and a serving one does not; the node lock admits one holder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from serve_app.scheduling import can_restore_scheduling, idle_start_options, idle_thread, node_lock
from tests.support.polling import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
PROGRAM = """
import os, threading
from serve_app import scheduling
if {user}: os.setuid({user})
scheduling.MAX_IDLE_START_S = {max_idle_start_s}
print(scheduling.can_restore_scheduling(), bool(scheduling.idle_start_options()))
scheduling.enter_idle_scheduling()
timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(os.sched_getscheduler(0))
if {let_timer_end}: timers[0].join()
else: scheduling.restore_scheduling()
print(*(os.sched_getscheduler(thread.native_id) for thread in threading.enumerate()))
"""


def run(
    user: int = 0, max_idle_start_s: float = 60, let_timer_end: bool = False, command: tuple[str, ...] = ()
) -> list[str]:
    """Start a process; return what it may do, its class while it starts, and the classes of its threads afterwards."""
    program = PROGRAM.format(user=user, max_idle_start_s=max_idle_start_s, let_timer_end=let_timer_end)
    printed = subprocess.check_output([*command, sys.executable, "-c", program], text=True)
    allowed, starting, threads = printed.splitlines()
    return [allowed, starting, " ".join(sorted(set(threads.split())))]


IDLE, NORMAL = (str(number) for number in (getattr(os, "SCHED_IDLE", 5), getattr(os, "SCHED_OTHER", 0)))
can_restore = pytest.mark.skipif(not can_restore_scheduling(), reason="this user may not leave SCHED_IDLE")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@can_restore
def test_start_is_idle_and_all_threads_are_restored() -> None:
    """A process is in SCHED_IDLE while it starts; afterwards none of its threads is."""
    assert run() == ["True True", IDLE, NORMAL]


@can_restore
def test_ray_option_starts_python_in_idle_class() -> None:
    """The ``py_executable`` given to Ray runs in SCHED_IDLE from its first instruction on."""
    program = idle_start_options()["runtime_env"]["py_executable"]
    printed = subprocess.check_output(["bash", "-c", f"exec {program} -c 'import os; print(os.sched_getscheduler(0))'"])
    assert printed.decode().strip() == IDLE


@can_restore
def test_process_started_by_chrt_is_restored() -> None:
    """A process that was started in SCHED_IDLE leaves that class when it is ready."""
    assert run(command=("chrt", "--idle", "0")) == ["True True", IDLE, NORMAL]


@can_restore
def test_slow_start_is_restored_by_the_timer() -> None:
    """A replica that is not ready in time gets normal scheduling without a call."""
    assert run(max_idle_start_s=0.2, let_timer_end=True) == ["True True", IDLE, NORMAL]


@root
def test_user_that_cannot_leave_the_idle_class_never_enters_it() -> None:
    """Without the right to restore, the process keeps normal scheduling throughout."""
    assert run(user=65534) == ["False False", NORMAL, NORMAL]


def test_an_idle_thread_leaves_the_others_alone_and_goes_on_in_time() -> None:
    """Only this thread is in SCHED_IDLE; after its time, and after the block, it is as before."""
    before, main = os.sched_getscheduler(0), threading.main_thread().native_id
    assert main

    def work(max_s: float, wait: Callable[[], None]) -> tuple[int, int, int]:
        with idle_thread(max_s):
            inside, others = os.sched_getscheduler(0), os.sched_getscheduler(main)
            wait()
            return inside, others, os.sched_getscheduler(0)

    def until_restored() -> None:
        wait_for(lambda: os.sched_getscheduler(0) == before, 60, "the timer")

    with ThreadPoolExecutor(1) as pool:
        idle = os.SCHED_IDLE if can_restore_scheduling() else before
        assert pool.submit(work, 600, lambda: None).result() == (idle, before, idle)
        assert pool.submit(os.sched_getscheduler, 0).result() == before
        assert pool.submit(work, 0.01, until_restored).result()[2] == before


def test_node_lock_admits_one_holder_at_a_time(tmp_path: Path) -> None:
    """The second caller enters after the first has left, even if the first failed."""
    lock, order, started = tmp_path / "lock", list[str](), threading.Event()

    def second() -> None:
        started.set()
        with node_lock(lock):
            order.append("second")

    def first(threads: ThreadPoolExecutor) -> None:
        with node_lock(lock):
            threads.submit(second)
            assert started.wait(60)
            order.append("first")
            raise RuntimeError

    with ThreadPoolExecutor(1) as threads, pytest.raises(RuntimeError):
        first(threads)
    assert order == ["first", "second"]


def test_node_lock_goes_on_after_its_timeout(tmp_path: Path) -> None:
    """A caller that waited too long enters beside the holder, and leaves the holder its lock."""
    lock = tmp_path / "lock"
    with node_lock(lock):
        with node_lock(lock, timeout_s=0):
            pass
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
