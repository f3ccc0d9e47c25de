"""Stage 3/3 · the deployment that feeds a model with batches."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.metrics import Counter, Histogram

from serve_app.batcher import Batched, BatchRecord, MicroBatcher, ThreadRunner
from serve_app.config import BatchConfig, ClassifierConfig, EngineConfig, WeightsConfig, parse
from serve_app.deadline import Deadline
from serve_app.deployments.handles import MILLISECONDS, cores, log_with_serve, name_request, stay_on_loopback
from serve_app.deployments.ray_internals import sticky_routing
from serve_app.errors import NotReadyError, ServiceError
from serve_app.files import whole
from serve_app.inference.health import ModelHealth
from serve_app.messages import Classification, ClassifyItem, Explain, ModelState, Named
from serve_app.observability import tracing
from serve_app.scheduling import enter_idle_scheduling, node_lock, restore_scheduling

log = logging.getLogger("serve_app")
SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]
TAGS = ("version",)


# Without a user_config in the file Serve would not call reconfigure when a replica starts.
@serve.deployment(
    max_ongoing_requests=64,
    max_queued_requests=1024,
    user_config={},
    request_router_config=sticky_routing(),
)
class Classifier:
    """Stage 3: a model on one device, fed in batches."""

    def __init__(self, weights: WeightsConfig, engine: EngineConfig) -> None:
        """Load, verify and warm the model; it uses the cores that Ray gave this replica.

        Raises:
            WeightsError, EngineError: Fails this deployment, and the application with it.
        """
        enter_idle_scheduling()
        stay_on_loopback()
        log_with_serve()
        # Imported here: only the model's replica pays for torch (seconds and 400 MB).
        from serve_app.inference.hot_swap import HotSwapModel

        remembered = _on_this_node(f"{engine.runtime}-{engine.precision}.json")
        if remembered.exists():  # measured again it costs 4 s of CPU, and under load it might look otherwise
            engine = EngineConfig.model_validate_json(remembered.read_text())
        self._model = HotSwapModel(weights, engine, cores())
        self._turn = _on_this_node("loading.lock")
        with whole(remembered) as path:
            path.write_text(self._model.engine.model_dump_json())
        self._size = Histogram("classifier_batch_size", "Images in a batch as formed.", SIZES, TAGS)
        self._queue_ms = Histogram("classifier_queue_ms", "Wait of an image for its batch.", MILLISECONDS, TAGS)
        self._model_ms = Histogram("classifier_model_ms", "Time of a batch in the model.", MILLISECONDS, TAGS)
        self._failed = Counter("classifier_failed_images", "Images whose batch raised.", TAGS)
        self._batcher: MicroBatcher[ClassifyItem, Named] = MicroBatcher(
            ThreadRunner(self._model.classify, self._model.workers),
            BatchConfig(),
            self._model.workers,
            self._model.workers_are_cores,
            self._record,
        )
        self._health = ModelHealth(self._classify_nothing)
        self._made: ClassifierConfig | None = None  # the change that was made, or tried, last
        self._wanted: ClassifierConfig | None = None
        self._changing: asyncio.Task[None] | None = None
        self._refused: str | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new ClassifierConfig values as soon as they are ready: other weights loaded, larger batches tried.

        Serve sends a replica no requests until this returns. So one that starts waits for it, and fails
        where the values are wrong; one that serves gets ready in the background, and keeps what it has if
        that fails.
        """
        if self._made is None:
            tuning = parse(ClassifierConfig, user_config)
            await asyncio.to_thread(self._model.change, tuning)
            self._apply(tuning)
            restore_scheduling()
            return
        try:
            self._wanted = parse(ClassifierConfig, user_config)
        except ValueError as error:
            self._refuse(error)
            return
        if self._changing is None or self._changing.done():
            self._changing = asyncio.create_task(self._change())

    async def __call__(
        self, pixels: np.ndarray, asked: list[tuple[int, Explain, Deadline]], company: int
    ) -> list[Batched[Named] | ServiceError]:
        """Classify crops in the next batches.

        Args:
            pixels: uint8, (N, crop_px, crop_px, 3).
            asked: For each, top_k, the class to explain and when its client stops waiting.
            company: See MicroBatcher.
        """
        crop_px = self._model.card.transform.crop_px
        if pixels.shape[1] != crop_px:  # from a preprocess stage of another version, while an update lasts
            error = NotReadyError(f"crops of {pixels.shape[1]} px came for weights that take {crop_px} px; try again")
            return [error] * len(asked)
        return await asyncio.gather(
            *(
                self._one(ClassifyItem(crop, top_k, explain), deadline, company)
                for crop, (top_k, explain, deadline) in zip(pixels, asked, strict=True)
            )
        )

    async def ping(self) -> ModelState:
        """Say what is served."""
        loading = self._wanted.weights if self._wanted and self._wanted is not self._made else None
        return ModelState(
            card=self._model.card,
            weights=self._model.weights,
            engine=self._model.engine,
            loading=loading and loading.source,
            refused=self._refused,
        )

    async def check_health(self) -> None:
        """Serve calls this again and again, and replaces a replica that raises three times on end.

        Raises:
            NotReadyError: The model does not answer, or not with numbers.
        """
        await self._health.check()

    async def _classify_nothing(self) -> Classification:
        crop_px = self._model.card.transform.crop_px
        black = ClassifyItem(np.zeros((crop_px, crop_px, 3), np.uint8), 1)
        return (await self._batcher.submit(black)).value.classification

    async def _change(self) -> None:
        """Make the change that is wanted, and those that come meanwhile."""
        while (tuning := self._wanted) and tuning is not self._made:
            try:
                await asyncio.to_thread(self._change_in_turn, tuning)
            except Exception as error:
                self._made = tuning
                self._refuse(error)
            else:
                self._apply(tuning)

    def _change_in_turn(self, tuning: ClassifierConfig) -> None:
        """At the same time two replicas would take each other's cores and the requests', and a queue would form."""
        with node_lock(self._turn):
            self._model.change(tuning)

    def _apply(self, tuning: ClassifierConfig) -> None:
        self._batcher.reconfigure(tuning, self._model.workers)
        self._made, self._refused = tuning, None

    def _refuse(self, error: Exception) -> None:
        log.error("user_config refused: %s", error)
        self._refused = str(error)

    async def _one(self, item: ClassifyItem, deadline: Deadline, company: int) -> Batched[Named] | ServiceError:
        try:
            async with asyncio.timeout(deadline.left_s()):  # one that gives up waiting is in no batch
                batched = await self._batcher.submit(item, company)
            origin, version = deadline.origin, batched.value.model.version
            tracing.record(origin, "queue", batched.queue_s, batched.model_s, stage="classify")
            tracing.record(origin, "model", batched.model_s, batch_size=batched.batch_size, version=version)
            return batched
        except TimeoutError:
            return deadline.exceeded()
        except ServiceError as error:
            return error
        except Exception:
            name_request(deadline.origin)
            log.exception("the model failed on image %s", deadline.origin and deadline.origin[1])
            return ServiceError("the model failed on this image; the server's log says why")

    def _record(self, batch: BatchRecord) -> None:
        version = {"version": self._model.card.version}  # of the batch, or of what took over while it ran
        self._size.observe(batch.size, version)
        self._model_ms.observe(batch.model_s * 1000, version)
        for queued in batch.queue_s:
            self._queue_ms.observe(queued * 1000, version)
        if batch.failed < batch.size:
            self._health.answered()
        if batch.failed:
            self._failed.inc(batch.failed, version)


def _on_this_node(name: str) -> Path:
    """Where the replicas of a node, as long as its Ray runs, keep what they share; apart by the device they have."""
    context = ray.get_runtime_context()
    gpus = context.get_assigned_resources().get("GPU", 0)  # type: ignore[no-untyped-call] # Ray leaves it so
    return Path(context.get_temp_dir(), context.get_session_name(), f"serve-app-{gpus}-{name}")
