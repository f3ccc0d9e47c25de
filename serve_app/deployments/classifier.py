"""Stage 3: the deployment that feeds the model with batches."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.metrics import Counter, Histogram

from serve_app.batcher import BatchRecord, MicroBatcher, ThreadRunner
from serve_app.config import BatchConfig, ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.deployments.handles import cores
from serve_app.deployments.metrics import MILLISECONDS
from serve_app.deployments.ray_internals import prepare_replica, set_request_id, sticky_routing
from serve_app.errors import ModelFailedError, NotReadyError, OverloadedError, ServiceError
from serve_app.inference.health import ModelHealth
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, Outcome
from serve_app.observability import tracing
from serve_app.scheduling import node_lock, restore_scheduling
from serve_app.validation import parse

log = logging.getLogger("serve_app")
BATCH_SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]  # histogram bounds
TAGS = ("version",)


# Ray Serve calls reconfigure on a starting replica only if the deployment has a user_config.
@serve.deployment(
    max_ongoing_requests=64, max_queued_requests=1024, user_config={}, request_router_config=sticky_routing()
)
class Classifier:
    """Runs one model on one device, on the cores that Ray gave this replica.

    Raises:
        WeightsError: The weights cannot be loaded. Fails the deployment and the application.
        EngineError: The runtime cannot run here. Fails the deployment and the application.
    """

    def __init__(self, weights: WeightsConfig, engine: EngineConfig) -> None:
        self._check_ray = prepare_replica()
        # Imported here: only the model's replica pays for its runtime's libraries.
        from serve_app.inference.hot_swap import HotSwapModel

        self._model = HotSwapModel(weights, engine, cores())
        self._loading_lock = _node_file("loading.lock")
        self._size = Histogram("classifier_batch_size", "Images per batch.", BATCH_SIZES, TAGS)
        self._queue_ms = Histogram("classifier_queue_ms", "Wait of an image for its batch.", MILLISECONDS, TAGS)
        self._model_ms = Histogram("classifier_model_ms", "Time of a batch in the model.", MILLISECONDS, TAGS)
        self._failed = Counter("classifier_failed_images", "Images that failed in the model.", TAGS)
        workers = self._model.engine.workers
        self._batcher: MicroBatcher[ClassifyRequest[np.ndarray], ClassifyResult] = MicroBatcher(
            ThreadRunner(self._model.classify, workers),
            BatchConfig(),
            workers,
            self._model.engine.workers_are_cores,
            self._record,
        )
        self._health = ModelHealth(self._classify_probe)
        self._applied: ClassifierConfig | None = None  # the settings that were applied or refused last
        self._target: ClassifierConfig | None = None
        self._changing: asyncio.Task[None] | None = None
        self._refused: str | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply other settings when they are ready: new weights loaded, larger batches tried.

        Ray Serve sends a replica no requests until this returns. A starting replica waits for its settings, and fails
        if they are invalid. A serving replica prepares them in the background, and keeps its settings if that fails.
        """
        if self._applied is None:
            config = parse(ClassifierConfig, user_config)
            await asyncio.to_thread(self._model.change, config)
            self._apply(config)
            restore_scheduling()
            return
        try:
            self._target = parse(ClassifierConfig, user_config)
        except ValueError as error:
            self._refuse(error)
            return
        if self._changing is None or self._changing.done():
            self._changing = asyncio.create_task(self._change())

    async def __call__(self, requests: list[ClassifyRequest[np.ndarray]], in_flight_hint: int) -> list[Outcome]:
        """Classify crops, uint8, (crop_px, crop_px, 3), in the next batches; return one result or error per crop."""
        crop_px = self._model.engine.card.transform.crop_px
        if (other_px := requests[0].image.shape[0]) != crop_px:  # from a Preprocessor of another version, in an update
            error = NotReadyError(f"the model takes crops of {crop_px} px, but got {other_px} px; retry later")
            return [error] * len(requests)
        return await asyncio.gather(*(self._classify(request, in_flight_hint) for request in requests))

    async def ping(self) -> ModelState:
        """Return what is served."""
        loading = self._target.weights if self._target and self._target is not self._applied else None
        return ModelState(
            card=self._model.engine.card,
            weights=self._model.weights,
            engine=self._model.config,
            loading=loading and loading.source,
            refused=self._refused,
        )

    async def check_health(self) -> None:
        """Check the model and Ray; Ray Serve replaces a replica whose check fails three times in a row."""
        self._check_ray()
        await self._health.check()

    async def _classify_probe(self) -> ClassifyResult:
        engine = self._model.engine
        result = (await self._batcher.submit(engine.probe)).value
        if engine is self._model.engine:  # else the weights were replaced meanwhile, and the new ones are checked next
            engine.check_probe(result)
        return result

    async def _change(self) -> None:
        """Apply the target settings, and those that arrive meanwhile."""
        while (config := self._target) and config is not self._applied:
            try:
                await asyncio.to_thread(self._change_in_turn, config)
            except Exception as error:
                self._applied = config
                self._refuse(error)
            else:
                self._apply(config)

    def _change_in_turn(self, config: ClassifierConfig) -> None:
        """Load on one replica per node at a time: two loading replicas starve the one that serves."""
        with node_lock(self._loading_lock):
            self._model.change(config)

    def _apply(self, config: ClassifierConfig) -> None:
        self._batcher.reconfigure(config, self._model.engine.workers)
        self._applied, self._refused = config, None

    def _refuse(self, error: Exception) -> None:
        log.error("user_config refused: %s", error)
        self._refused = str(error)

    async def _classify(self, request: ClassifyRequest[np.ndarray], in_flight_hint: int) -> Outcome:
        context = request.context
        try:
            # A request whose deadline passes in the queue leaves it and is in no batch.
            async with asyncio.timeout(context.deadline.left_s() if context else None):
                done = await self._batcher.submit(request, in_flight_hint)
        except TimeoutError:
            return context.deadline.exceeded() if context else ServiceError("the model timed out")
        except ServiceError as error:
            return error
        except MemoryError:
            return OverloadedError("the model's replica has no memory for this image; retry later")
        except Exception:
            if context:
                set_request_id(context.request_id)
            log.exception("the model failed on image %s", context and context.index)
            return ServiceError("the model failed on this image; the server's log has the reason")
        result = done.value
        result.batch_size = done.batch_size
        result.timings_ms = {"queue": done.queue_s * 1000, "model": done.run_s * 1000}
        tracing.record(context, "queue", done.queue_s, done.run_s, stage="classify")
        tracing.record(context, "model", done.run_s, batch_size=done.batch_size, version=result.model.version)
        return result

    def _record(self, batch: BatchRecord) -> None:
        version = {"version": self._model.engine.card.version}  # after a swap, a batch may count for the new version
        self._size.observe(batch.size, version)
        self._model_ms.observe(batch.run_s * 1000, version)
        for queue_s in batch.queue_s:
            self._queue_ms.observe(queue_s * 1000, version)
        if failures := [error for error in batch.errors if isinstance(error, ModelFailedError)]:
            log.error("the model failed on a batch of %d images: %s", batch.size, failures[0])
            self._health.model_failed(str(failures[0]))
        if batch.failed < batch.size:
            self._health.batch_succeeded()
        if batch.failed:
            self._failed.inc(batch.failed, version)


def _node_file(name: str) -> Path:
    """Return a file that the replicas of this node with the same device share while Ray runs."""
    context = ray.get_runtime_context()
    gpus = context.get_assigned_resources().get("GPU", 0)  # type: ignore[no-untyped-call] # Ray leaves it so
    return Path(context.get_temp_dir(), context.get_session_name(), f"serve-app-{gpus}-{name}")
