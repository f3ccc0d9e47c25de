"""A simulated power cut: every process dies at once, and what no fsync had put on disk is gone.

The service runs with ``recording`` in its environment, which records each ``os.fsync``, ``os.rename`` and ``os.mkdir``.
After ``kill``, ``cut`` treats a folder as a disk does that kept only what it had to keep:

- A file that was written after its last fsync is empty.
- A file or folder whose name is younger than the last fsync of the folder around it is missing.

A deleted file does not come back, and a file that replaced another one stays: a disk may, but need not, lose these.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.paths import ROOT

Times = dict[str, int]  # device and inode of a file -> time in ns
RECORDER = ROOT / "tests" / "support" / "fsync_recorder"


def recording(log: Path) -> dict[str, str]:
    """Return the environment in which Python processes record their fsyncs and new names in a file."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(RECORDER), inherited))), "FSYNC_LOG": str(log)}


def kill(processes: Iterable[psutil.Process]) -> None:
    """End all processes and their descendants with SIGKILL in one instant: none sees the end of another one."""
    family = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            family |= {process, *process.children(recursive=True)}
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"processes survive SIGKILL: {alive}"


def cut(folder: Path, log: Path, since_ns: int = 0) -> list[str]:
    """Take back what was not on disk; return what was emptied or removed, as paths below ``folder``.

    Args:
        folder: What the processes wrote to.
        log: As for ``recording``.
        since_ns: When recording began; what was written before is on disk.
    """
    times: dict[str, Times] = {"fsync": defaultdict(int), "name": defaultdict(int)}
    for line in log.read_text().splitlines():
        kind, file, time_ns = line.split()
        times[kind][file] = max(times[kind][file], int(time_ns))
    synced = defaultdict(lambda: since_ns, times["fsync"])
    return [str(path.relative_to(folder)) for path in _cut(folder, synced, times["name"])]


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}"


def _cut(folder: Path, synced: Times, named: Times) -> Iterator[Path]:
    folder_synced_ns = synced[_identity(folder.stat())]
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        if named[_identity(status)] > folder_synced_ns:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield path
        elif path.is_dir():
            yield from _cut(path, synced, named)
        elif status.st_size and status.st_mtime_ns > synced[_identity(status)]:
            os.truncate(path, 0)
            yield path
