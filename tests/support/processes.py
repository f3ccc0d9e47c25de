"""All processes of one system: which they are, what CPU time and memory they take, and that none stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import psutil

MARK = "BENCHMARK_RUN"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S = 60
GRACE_S = 3
KILL_TIMEOUT_S = 10
SAMPLE_S = 1.0
# What a command line holds -> the name it gets, in the order in which they are tried.
NAMES = {
    "ServeReplica": "",  # its deployment's, below
    "ProxyActor": "proxy",
    "ServeController": "controller",
    "raylet/raylet": "raylet",
    "gcs_server": "gcs_server",
    "haproxy": "haproxy",
    "dashboard": "dashboard",
    "runtime_env": "dashboard",
    "log_monitor": "log monitor",
    "autoscaler": "autoscaler",
    "monitor.py": "autoscaler",
    "ray::": "other Ray",
    "bin/mosec": "web server",
    "resource_tracker": "other",
    "spawn_main": "workers",
    "forkserver": "workers",
    "worker": "workers",
}


class Tree:
    """A started process with everything that came of it, whether it still has its parent or not.

    Args:
        leader: The process started.
        mark: Value of the environment variable MARK that it was started with.

    Attributes:
        left_behind: Names of the processes that were still there when the leader had ended.
    """

    def __init__(self, leader: psutil.Process, mark: str) -> None:
        """Know the leader."""
        self._leader, self._mark = leader, mark
        self._known: set[psutil.Process] = {leader}
        self.left_behind: list[str] = []

    def processes(self) -> list[psutil.Process]:
        """Those alive now; each one found is followed from then on.

        A process belongs when its parent does. One whose parent ended before it was seen is known by
        the mark in its environment, unless it has overwritten that with a title.
        """
        parents = {process: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        self._known = {process for process in self._known if alive(process)}
        while True:
            pids = {process.pid for process in self._known}
            found = {
                p for p, ppid in parents.items() if p not in self._known and (ppid in pids or self._marked(p, ppid))
            }
            if not found:
                return sorted(self._known, key=lambda process: process.pid)
            self._known |= found

    def _marked(self, process: psutil.Process, parent: int) -> bool:
        with contextlib.suppress(psutil.Error):
            return parent == 1 and process.environ().get(MARK) == self._mark and alive(process)
        return False

    def stop(self) -> None:
        """End the leader as a user would, and kill what that leaves.

        Raises:
            RuntimeError: Some process survives even that.
        """
        self.processes()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._leader.send_signal(signal.SIGTERM)
        psutil.wait_procs([self._leader], STOP_TIMEOUT_S)
        psutil.wait_procs(self.processes(), GRACE_S)
        left = self.processes()
        self.left_behind = [label(process, self._leader) for process in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, KILL_TIMEOUT_S)
        if survivors := self.processes():
            raise RuntimeError(f"processes {[process.pid for process in survivors]} cannot be ended")

    def memory_mb(self) -> dict[str, float]:
        """Memory by name, shared pages divided among those that share them (PSS)."""
        total: dict[str, float] = defaultdict(float)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total[label(process, self._leader)] += process.memory_full_info().pss / 2**20
        return {name: round(value, 1) for name, value in total.items()}

    def cpu_s(self) -> dict[psutil.Process, tuple[str, float]]:
        """Name of each living process, and the CPU seconds that it has taken so far."""
        seconds = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process] = label(process, self._leader), times.user + times.system
        return seconds


class CpuWatch:
    """CPU time of a tree and of the whole machine while a ``with`` block runs.

    A process that ends within the block counts up to when it was last seen.

    Attributes:
        by_name: CPU seconds by name, once the block is done.
        machine_s: CPU seconds of everything on the machine.
        wall_s: How long the block took.
    """

    def __init__(self, tree: Tree) -> None:
        """Watch a tree."""
        self._tree = tree
        self._stop = threading.Event()
        self.by_name: dict[str, float] = {}

    def __enter__(self) -> CpuWatch:
        """Start the clocks."""
        self._first = self._tree.cpu_s()
        self._last = dict(self._first)
        self._machine, self._wall = busy_s(), time.perf_counter()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop the clocks."""
        self._stop.set()
        self._thread.join()
        self.wall_s, self.machine_s = time.perf_counter() - self._wall, busy_s() - self._machine
        self._last.update(self._tree.cpu_s())
        total: dict[str, float] = defaultdict(float)
        for process, (name, seconds) in self._last.items():
            _, before = self._first.get(process, (name, 0.0))
            total[name] += seconds - before
        self.by_name = dict(total)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._last.update(self._tree.cpu_s())


def busy_s() -> float:
    """CPU seconds that the machine has worked so far, on all cores."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that ended but was not collected does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def label(process: psutil.Process, leader: psutil.Process) -> str:
    """A readable name for what a process does; ``leader`` is the one that was started."""
    try:
        command = " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return "other"
    for part, name in NAMES.items():
        if part in command:
            return name or command.rpartition(":")[2].strip()
    if process == leader:
        return "main"
    with contextlib.suppress(psutil.Error):
        return "forked" if process.cmdline() == leader.cmdline() else "other"
    return "other"


def end_on_signals() -> None:
    """Let every signal that ends us end what we started as well, as Ctrl-C does."""
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def started(
    command: list[str], root: Path, extra: dict[str, str], log: Path
) -> Iterator[tuple[Tree, subprocess.Popen[bytes]]]:
    """Run a program out of Ctrl-C's reach and kill whatever it has left, should the block fail.

    In our session: Linux shares cores among sessions first (autogroup), and lets those of an idle class in one make
    those of another wait, a load client for seconds.
    """
    mark = os.urandom(8).hex()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, **extra, MARK: mark, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
    tree = Tree(psutil.Process(process.pid), mark)
    try:
        yield tree, process
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # an impatient second Ctrl-C waits until nothing is left
        tree.stop()
        process.wait()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
