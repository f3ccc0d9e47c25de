"""The model's health check, in virtual time."""

from __future__ import annotations

import asyncio
import math

import pytest

from serve_app.batcher import MicroBatcher
from serve_app.config import BatchConfig
from serve_app.errors import NotReadyError
from serve_app.inference.health import RECENT_S, STUCK_S, ModelHealth
from serve_app.messages import ClassifyResult
from serve_app.model_card import ModelRef
from tests.support.clock import in_virtual_time

MODEL = ModelRef(name="resnet18", version="1", sha256="0" * 64)


class Device:
    """A model whose behavior the test sets.

    Attributes:
        batch_s: Duration of a batch in seconds.
        error: Raised instead of a result.
        score: Score of every result.
        batches: Batches that have run.
    """

    def __init__(self) -> None:
        self.batch_s, self.score, self.batches = 0.01, 1.0, 0
        self.error: Exception | None = None
        self.batcher: MicroBatcher[str, ClassifyResult] = MicroBatcher(self.run, BatchConfig(max_batch_size=1))
        self.health = ModelHealth(self.probe)

    async def run(self, items: list[str]) -> list[ClassifyResult]:
        await asyncio.sleep(self.batch_s)
        self.batches += 1
        if self.error:
            raise self.error
        self.health.batch_succeeded()
        return [ClassifyResult((0,), ("cat",), (self.score,), 0, 0, MODEL) for _ in items]

    async def probe(self) -> ClassifyResult:
        return (await self.batcher.submit("probe")).value


@in_virtual_time
async def test_a_model_that_gives_results_is_healthy() -> None:
    """Without traffic, the check runs one probe."""
    device = Device()
    await device.health.check()
    assert device.batches == 1


@in_virtual_time
async def test_recent_traffic_replaces_the_probe() -> None:
    """A batch that succeeded within RECENT_S proves health; after that, the check probes."""
    device = Device()
    device.health.batch_succeeded()
    await asyncio.sleep(RECENT_S - 0.1)
    await device.health.check()
    assert device.batches == 0
    await asyncio.sleep(0.2)
    await device.health.check()
    assert device.batches == 1


@in_virtual_time
async def test_a_stuck_model_is_detected() -> None:
    """A probe that takes longer than STUCK_S fails the check; a later one succeeds again."""
    device = Device()
    device.batch_s = STUCK_S + 1
    with pytest.raises(NotReadyError, match="has given no result for 20 s"):
        await device.health.check()
    device.batch_s = 0.01
    await asyncio.sleep(RECENT_S + STUCK_S)
    await device.health.check()


@in_virtual_time
async def test_a_long_queue_is_not_a_stuck_model() -> None:
    """The check passes when its probe waits behind requests whose batches succeed."""
    device = Device()
    device.batch_s = STUCK_S * 0.6
    await asyncio.sleep(1)
    requests = [asyncio.create_task(device.batcher.submit("image")) for _ in range(3)]
    await asyncio.sleep(0)
    await device.health.check()
    assert device.batches == 1
    for task in requests:
        task.cancel()


@in_virtual_time
async def test_a_lost_device_is_detected() -> None:
    """An exception of the probe fails the check and is named."""
    device = Device()
    device.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(NotReadyError, match="CUDA error"):
        await device.health.check()


@in_virtual_time
async def test_scores_that_are_not_finite_are_detected() -> None:
    """NaN scores of the probe fail the check."""
    device = Device()
    device.score = math.nan
    with pytest.raises(NotReadyError, match="not finite"):
        await device.health.check()


@in_virtual_time
async def test_a_good_batch_does_not_hide_a_failed_one() -> None:
    """The check after a failed batch fails, although batches succeeded before and after it."""
    device = Device()
    device.health.batch_succeeded()
    device.health.model_failed("scores are not finite numbers")
    device.health.batch_succeeded()
    with pytest.raises(NotReadyError, match="the model fails: scores are not finite numbers"):
        await device.health.check()


@in_virtual_time
async def test_only_the_probe_proves_health_after_a_failed_batch() -> None:
    """Recent traffic counts again only once a probe has succeeded; a single failure does not cost the replica."""
    device = Device()
    device.health.model_failed("not finite")
    with pytest.raises(NotReadyError):
        await device.health.check()
    device.health.batch_succeeded()
    device.score = math.inf
    with pytest.raises(NotReadyError):
        await device.health.check()
    device.score = 1.0
    await device.health.check()
    probes = device.batches
    await device.health.check()
    assert device.batches == probes


@in_virtual_time
async def test_a_device_that_fails_now_and_then_is_replaced() -> None:
    """Three checks in a row fail, after which Ray Serve replaces the replica, although each probe would succeed."""
    device = Device()
    for _ in range(3):
        device.health.model_failed("not finite")
        device.health.batch_succeeded()
        with pytest.raises(NotReadyError):
            await device.health.check()
        await asyncio.sleep(RECENT_S)


@in_virtual_time
async def test_a_probe_with_wrong_scores_is_no_recent_success() -> None:
    """The batch of a probe that fails succeeds as such; the next check must probe again."""
    device = Device()

    async def probe() -> ClassifyResult:
        await device.probe()
        raise RuntimeError("wrong scores")

    health = device.health = ModelHealth(probe)
    for _ in range(3):
        with pytest.raises(NotReadyError, match="wrong scores"):
            await health.check()
    assert device.batches == 3
