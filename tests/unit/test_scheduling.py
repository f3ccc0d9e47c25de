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

from serve_app import scheduling
from serve_app.scheduling import can_restore_scheduling, idle_start_options, idle_thread, node_lock
from tests.support.polling import wait_for

NOBODY = 65534
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
PROGRAM = """
import os, sys, threading
print(os.sched_getscheduler(0), *sys.argv[1:])
threading.Thread(target=threading.Event().wait, daemon=True).start()
for timer in threading.enumerate():
    if isinstance(timer, threading.Timer):
        timer.function() if "ready" in sys.argv else timer.join()
print(*(os.sched_getscheduler(thread.native_id) for thread in threading.enumerate()))
"""


def start(tmp_path: Path, argument: str, max_idle_start_s: float = 60) -> list[str]:
    """Start a script as Ray starts a replica; return its class and arguments, and then the classes of its threads."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    copy = tmp_path / "scheduling.py"  # with another limit
    source = Path(scheduling.__file__).read_text()
    copy.write_text(source.replace("MAX_IDLE_START_S = 30 ", f"MAX_IDLE_START_S = {max_idle_start_s} "))
    command = idle_start_options()["runtime_env"]["py_executable"].replace(scheduling.__file__, str(copy))
    printed = subprocess.check_output(["bash", "-c", f"exec {command} {script} {argument}"], text=True)
    starting, threads = printed.splitlines()
    return [starting, " ".join(sorted(set(threads.split())))]


IDLE, NORMAL = (str(number) for number in (getattr(os, "SCHED_IDLE", 5), getattr(os, "SCHED_OTHER", 0)))
can_restore = pytest.mark.skipif(not can_restore_scheduling(), reason="this user may not leave SCHED_IDLE")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@can_restore
def test_start_is_idle_and_all_threads_are_restored(tmp_path: Path) -> None:
    """A replica is in SCHED_IDLE from its first instruction until it is ready; then none of its threads is."""
    assert start(tmp_path, "ready") == [f"{IDLE} ready", NORMAL]


@can_restore
def test_slow_start_is_restored_by_the_timer(tmp_path: Path) -> None:
    """A replica that is not ready in time gets normal scheduling, though it calls nothing."""
    assert start(tmp_path, "slow", max_idle_start_s=0.2) == [f"{IDLE} slow", NORMAL]


@can_restore
def test_timer_gets_a_core_on_a_busy_node(tmp_path: Path) -> None:
    """The thread that restores a slow start has normal scheduling itself."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, threading\n"
        "print([os.sched_getscheduler(t.native_id) for t in threading.enumerate() if isinstance(t, threading.Timer)])"
    )
    command = idle_start_options()["runtime_env"]["py_executable"]
    printed = subprocess.check_output(["bash", "-c", f"exec {command} {script}"], text=True)
    assert printed.strip() == f"[{NORMAL}]"


@root
def test_user_that_cannot_leave_the_idle_class_never_enters_it() -> None:
    """Without the right to restore, a replica starts as any other worker."""
    program = (
        f"import os; from serve_app import scheduling; os.setuid({NOBODY}); print(scheduling.idle_start_options())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "{}"


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
