"""What one decode costs: its time, and the most memory that its process needed beyond what it had."""

from __future__ import annotations

import json
import os
import signal
import time
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
    """One input's fate.

    Attributes:
        outcome: Its format and ``ok``, or the status and code of our error, or what else was raised.
        seconds: Wall time.
        mib: Highest resident memory minus that before, of a process that decodes one image.
    """

    outcome: str
    seconds: float
    mib: float

    @property
    def clean(self) -> bool:
        """Whether it gave pixels or a 4xx of ours."""
        return not self.outcome.startswith("raised")


def _memory_kib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0])


def decode(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Cost:
    """Decode one image in this process."""
    before = _memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest so far
    start = time.perf_counter()
    try:
        outcome = f"{preprocess(encoded, IMAGENET, max_pixels).info.format} ok"
    except ServiceError as error:
        outcome = f"{error.status} {error.code}"
    except BaseException as error:
        outcome = f"raised {error!r:.200}"
    seconds = time.perf_counter() - start
    return Cost(outcome, seconds, max(0, _memory_kib("VmHWM") - before) / 1024)


def in_a_child(make: Callable[[], bytes], limit_s: int, max_pixels: int = MAX_PIXELS) -> Cost:
    """Decode one image in a process of its own, which ends with it or after ``limit_s``."""
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
