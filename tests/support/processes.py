"""All processes of a started program: their CPU time and memory, and that none is left behind."""

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
# Part of a command line -> name of the process; the first match counts.
NAMES = {
    "ServeReplica": "",  # label() takes the deployment's name
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
    """A started process and its descendants, also those whose parents have ended.

    Attributes:
        left_behind: Names of the processes that were alive after the leader had ended.
    """

    def __init__(self, leader: psutil.Process, mark: str) -> None:
        """Start with the leader.

        Args:
            leader: The process that was started.
            mark: Value of the environment variable MARK in its environment.
        """
        self._leader, self._mark = leader, mark
        self._known: set[psutil.Process] = {leader}
        self.left_behind: list[str] = []

    def processes(self) -> list[psutil.Process]:
        """Return the processes that are alive, and remember them.

        A process belongs to the tree if its parent does. If the parent has ended unseen, the mark in the environment
        decides; a process that has overwritten its environment with a title is not found then.
        """
        parents = {process: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        self._known = {process for process in self._known if alive(process)}
        while True:
            pids = {process.pid for process in self._known}
            new = {p for p, ppid in parents.items() if p not in self._known and (ppid in pids or self._marked(p, ppid))}
            if not new:
                return sorted(self._known, key=lambda process: process.pid)
            self._known |= new

    def _marked(self, process: psutil.Process, parent: int) -> bool:
        with contextlib.suppress(psutil.Error):
            return parent == 1 and process.environ().get(MARK) == self._mark and alive(process)
        return False

    def stop(self) -> None:
        """Terminate the leader as a user would, and kill the processes that are left.

        Raises:
            RuntimeError: A process survives SIGKILL.
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
        """Return the proportional set size (PSS) by name, in MiB: shared pages count in equal parts."""
        total: dict[str, float] = defaultdict(float)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total[label(process, self._leader)] += process.memory_full_info().pss / 2**20
        return {name: round(value, 1) for name, value in total.items()}

    def cpu_s(self) -> dict[psutil.Process, tuple[str, float]]:
        """Return the name and the CPU seconds so far of each living process."""
        seconds = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process] = label(process, self._leader), times.user + times.system
        return seconds


class CpuWatch:
    """Measures the CPU time of a tree and of the machine while a ``with`` block runs.

    A process that ends within the block counts up to its last sample.

    Attributes:
        by_name: CPU seconds by name, after the block.
        machine_s: CPU seconds of all processes on the machine.
        wall_s: Wall time of the block.
    """

    def __init__(self, tree: Tree) -> None:
        """Measure this tree."""
        self._tree = tree
        self._stop = threading.Event()
        self.by_name: dict[str, float] = {}

    def __enter__(self) -> CpuWatch:
        """Take the first sample."""
        self._first = self._tree.cpu_s()
        self._last = dict(self._first)
        self._machine, self._wall = busy_s(), time.perf_counter()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the last sample and sum up."""
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
    """Return the CPU seconds that all cores have worked since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def alive(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def label(process: psutil.Process, leader: psutil.Process) -> str:
    """Return a readable name for a process of the tree of ``leader``."""
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
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that ``finally`` blocks stop the started programs."""
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def started(
    command: list[str], root: Path, extra: dict[str, str], log: Path
) -> Iterator[tuple[Tree, subprocess.Popen[bytes]]]:
    """Run a program until the block ends, in a process group of its own so that Ctrl-C doesn't reach it.

    The program stays in our session: with autogroup, Linux first shares the cores among sessions. Processes of the idle
    scheduling class in another session then made a load client here wait for seconds.

    Args:
        command: Program and arguments.
        root: Its working directory.
        extra: Environment variables in addition to ours.
        log: File for its output.
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
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # a second Ctrl-C takes effect after the clean-up
        tree.stop()
        process.wait()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
