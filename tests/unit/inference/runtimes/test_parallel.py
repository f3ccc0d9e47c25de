"""parallel.py: which batches get one core, and which get all."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from serve_app.inference.runtimes.parallel import QUIET_PERIOD_S, ParallelRuntime

WAIT_S = 30


class Recorder:
    """Builds runtimes that record with how many threads each batch ran, and holds batches until a test goes on."""

    def __init__(self) -> None:
        self.built: list[int] = []
        self.used: list[int] = []
        self.started, self.may_end = threading.Event(), threading.Event()
        self.both_started: threading.Barrier | None = None

    def build(self, threads: int) -> FakeRuntime:
        self.built.append(threads)
        return FakeRuntime(self, threads)


class FakeRuntime:
    name, device, workers = "fake", torch.device("cpu"), 1

    def __init__(self, recorder: Recorder, threads: int) -> None:
        self._recorder, self._threads = recorder, threads

    def __call__(self, pixels: np.ndarray) -> Tensor:
        self._recorder.used.append(self._threads)
        self._recorder.started.set()
        if self._threads > 1:
            assert self._recorder.may_end.wait(WAIT_S)
        elif self._recorder.both_started:
            self._recorder.both_started.wait(WAIT_S)
        return torch.full((len(pixels), 512, 1, 1), float(pixels[0, 0, 0, 0]))


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0
        self.read = threading.Event()

    def __call__(self) -> float:
        self.read.set()
        return self.now


def batch(value: int) -> np.ndarray:
    return np.full((1, 2, 2, 3), value, np.uint8)


def test_batches_share_the_cores() -> None:
    """A batch that runs alone gets all cores; batches at the same time get one each; results go to their callers."""
    recorder, clock = Recorder(), FakeClock()
    runtime = ParallelRuntime(recorder.build, 2, clock)
    assert recorder.built == [2, 1, 1]
    assert runtime.workers == 2
    with ThreadPoolExecutor(2) as threads:

        def submit(value: int) -> Future[Tensor]:
            return threads.submit(runtime, batch(value))

        first = submit(1)
        assert recorder.started.wait(WAIT_S)
        assert recorder.used == [2]
        recorder.started.clear()
        clock.read.clear()
        second = submit(2)
        assert clock.read.wait(WAIT_S)  # the second batch has arrived
        assert not recorder.started.wait(0.1)  # and waits for the first, which has all cores
        recorder.both_started = threading.Barrier(2)
        recorder.may_end.set()
        third = submit(3)
        assert [float(future.result(WAIT_S)[0, 0, 0, 0]) for future in (first, second, third)] == [1, 2, 3]
    assert recorder.used == [2, 1, 1]


def test_all_cores_need_a_quiet_period() -> None:
    """After two batches overlapped, a batch gets all cores again only when the quiet period has passed."""
    recorder, clock = Recorder(), FakeClock()
    runtime = ParallelRuntime(recorder.build, 2, clock)
    recorder.may_end.set()
    runtime(batch(0))
    assert recorder.used == [2]
    recorder.may_end.clear()
    recorder.started.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(runtime, batch(1))
        assert recorder.started.wait(WAIT_S)
        clock.read.clear()
        second = threads.submit(runtime, batch(2))
        assert clock.read.wait(WAIT_S)
        recorder.may_end.set()
        first.result(WAIT_S)
        second.result(WAIT_S)
    clock.now += QUIET_PERIOD_S
    runtime(batch(3))
    clock.now += 0.01
    runtime(batch(4))
    assert recorder.used == [2, 2, 1, 1, 2]
