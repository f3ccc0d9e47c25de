"""Several CPU runtimes side by side: one batch per core, or one batch on all cores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Condition

import numpy as np
from torch import Tensor

from serve_app.inference.runtimes.base import CPU, Runtime

LATELY_S = 2


class ParallelRuntime:
    """Several batches at a time, one core each; a batch that comes when little is asked gets all cores.

    So a queue is worked off without threads that wait for each other, and a lone image
    does not leave cores idle. Two threads on an image end it in 0.65 to 0.75 of the time for 1.3
    to 1.5 times the CPU, as they spin where they wait, and for several times the CPU where others want
    the cores: so what met another batch of late has a core of its own, and what comes while
    one batch has all cores waits for it.
    """

    device = CPU

    def __init__(self, make: Callable[[int], Runtime], cores: int) -> None:
        """Make one backbone per core, and one for all.

        Args:
            make: Makes a backbone for so many threads.
            cores: What the batches share.
        """
        self._wide = make(cores)
        self.name, self.workers = self._wide.name, cores
        self._narrow: SimpleQueue[Runtime] = SimpleQueue()
        for _ in range(cores):
            self._narrow.put(make(1))
        self._changed = Condition()
        self._running, self._all_taken = 0, False
        self._met = -math.inf  # when two batches were last there at a time

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime; for at most ``workers`` threads at a time."""
        with self._changed:
            if self._running:
                self._met = time.monotonic()
            alone = not self._running and time.monotonic() - self._met > LATELY_S
            self._running += 1  # one that waits counts: who comes when the lone batch ends must not take all cores too
            self._changed.wait_for(lambda: not self._all_taken)
            self._all_taken = alone
        backbone = self._wide if alone else self._narrow.get()
        try:
            return backbone(pixels)
        finally:
            with self._changed:
                self._running -= 1
                if alone:
                    self._all_taken = False
                    self._changed.notify_all()
                else:
                    self._narrow.put(backbone)
