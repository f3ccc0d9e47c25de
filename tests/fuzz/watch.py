"""The cost of one decode: its time, and the growth of its process's peak memory."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ServiceError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess

IMAGENET = ImageTransform(resize_px=256, crop_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Cost:
    """The outcome and cost of one input.

    Attributes:
        outcome: The format and ``ok``, or our error's status and code, or ``raised`` and another exception.
        seconds: CPU time of all threads in user mode. Other programs on the machine hardly change it; those that need
            memory change the time in the kernel, by seconds.
        mib: Peak resident memory minus the resident memory before.
    """

    outcome: str
    seconds: float
    mib: float

    @property
    def clean(self) -> bool:
        """Return whether the decode gave pixels or one of our 4xx errors."""
        return not self.outcome.startswith("raised")


def _memory_kib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0])


def _user_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def decode(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Cost:
    """Decode one image in this process."""
    before = _memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest so far
    start = _user_s()
    try:
        outcome = f"{preprocess(encoded, IMAGENET, max_pixels).info.format} ok"
    except ServiceError as error:
        outcome = f"{error.status} {error.code}"
    except BaseException as error:
        outcome = f"raised {error!r:.200}"
    seconds = _user_s() - start
    return Cost(outcome, seconds, max(0, _memory_kib("VmHWM") - before) / 1024)


def in_a_child(make: Callable[[], bytes], limit_s: int, max_pixels: int = MAX_PIXELS) -> Cost:
    """Decode one image in a child process, which is killed after ``limit_s``."""
    encoded = make()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a decoder
        signal.alarm(limit_s)
        cost = decode(encoded, max_pixels)
        os.write(writer, json.dumps([cost.outcome, cost.seconds, cost.mib]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return Cost(f"raised signal {os.waitstatus_to_exitcode(status)}", limit_s, 0)
    return Cost(*json.loads(text))
