"""What the health check of the model's replica catches, with the real batcher and threads that really hang."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import pytest

from serve_app.batcher import MicroBatcher, ThreadRunner
from serve_app.config import BatchConfig
from serve_app.errors import NotReadyError
from serve_app.inference.health import ModelHealth
from serve_app.messages import Classification


def answer(score: float) -> Classification:
    return Classification(class_ids=(0,), scores=(score,), margin=0, entropy=0)


class Device:
    """A model that does as it is told."""

    def __init__(self) -> None:
        self.goes_on, self.error, self.score, self.batches = threading.Event(), False, 1.0, 0
        self.goes_on.set()
        self.batcher: MicroBatcher[str, Classification] = MicroBatcher(
            ThreadRunner(self.run), BatchConfig(max_batch_wait_ms=0)
        )
        self.health = ModelHealth(self.ask, stuck_s=0.3, proof_s=0.1)

    def run(self, items: Sequence[str]) -> list[Classification]:
        self.batches += 1
        self.goes_on.wait(5)
        if self.error:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [answer(self.score)] * len(items)

    async def ask(self) -> Classification:
        return (await self.batcher.submit("canary")).value


@pytest.fixture
def device() -> Device:
    return Device()


async def test_a_model_that_answers_is_healthy(device: Device) -> None:
    await device.health.check()
    assert device.batches == 1


async def test_traffic_is_proof_enough(device: Device) -> None:
    device.health.answered()
    await device.health.check()
    assert device.batches == 0


async def test_a_stuck_model_is_caught(device: Device) -> None:
    device.goes_on.clear()
    with pytest.raises(NotReadyError, match="has not answered for 0 s"):
        await device.health.check()
    device.goes_on.set()
    await device.health.check()


async def test_a_long_queue_is_no_stuck_model(device: Device) -> None:
    """The check's own image waits behind others whose batches end."""
    device.goes_on.clear()
    timer = threading.Timer(0.2, device.health.answered)
    timer.start()
    await device.health.check()
    timer.join()
    device.goes_on.set()


async def test_a_dead_device_is_caught(device: Device) -> None:
    device.error = True
    with pytest.raises(NotReadyError, match="CUDA error"):
        await device.health.check()


async def test_scores_that_are_no_numbers_are_caught(device: Device) -> None:
    device.score = math.nan
    with pytest.raises(NotReadyError, match="no numbers"):
        await device.health.check()
