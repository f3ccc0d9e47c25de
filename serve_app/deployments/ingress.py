"""Stage 1/3 · the deployment that answers HTTP and sends images to a variant of the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus

from serve_app.config import EngineConfig, IngressConfig, PredictionLogConfig, ResponseConfig, WeightsConfig, parse
from serve_app.deadline import Deadline
from serve_app.deployments.handles import Handle, log_with_serve, stay_on_loopback
from serve_app.deployments.job_actor import start_jobs
from serve_app.deployments.links import ApplicationClient, HandleClient, ServeMetrics
from serve_app.errors import NotReadyError
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys
from serve_app.http.service import Answer, Choice, Log, Wanted
from serve_app.messages import Explain
from serve_app.model_card import ModelCard
from serve_app.observability.feedback_store import Feedback
from serve_app.observability.prediction_log import PredictionLog
from serve_app.routing.router import VariantRouter
from serve_app.routing.traffic_split import OWN, Traffic
from serve_app.routing.variant import ASK_AGAIN_S, VariantClient
from serve_app.scheduling import enter_idle_scheduling, restore_scheduling

CLOSE_S = 10  # what a log that is switched off gets for its last rows
log = logging.getLogger("serve_app")


# The door (admission.py) refuses what is too much: Serve's own queue, which it cannot see, must not fill first.
# Without a user_config in the file Serve would not call reconfigure, which waits for a model to answer.
@serve.deployment(max_ongoing_requests=10_000, user_config={})
@serve.ingress()
class Ingress:
    """Stage 1: HTTP, and the choice of the variant that answers."""

    def __init__(self, preprocessor: Handle | None = None) -> None:
        """Keep the handle; the app is built by Serve through the hook below.

        Args:
            preprocessor: First stage of the variant ``main``, if there is one in this application.
        """
        enter_idle_scheduling()
        stay_on_loopback()
        log_with_serve()
        self.log: Log | None = None
        self._kept: PredictionLog | None = None
        self._logged: PredictionLogConfig | None = None
        self._closing: asyncio.Future[None] | None = None
        self.feedback: Feedback | None = None
        self._metrics = ServeMetrics()
        self._adopt(IngressConfig())
        self._preprocessor = preprocessor
        self._variants = VariantRouter(self._connect, self._metrics)
        self._applications = [serve.get_replica_context().app_name]
        self._configured = False
        self._refused: str | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Serve the HTTP app, once per replica."""
        return create_app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new IngressConfig values, at once; a replica that starts takes requests once a model answers.

        Values that are wrong fail a replica that starts. One that serves keeps what it has: Serve would
        stop it for an error.
        """
        try:
            tuning = parse(IngressConfig, user_config)
            traffic = Traffic.of(tuning)
            if self._preprocessor is None and OWN in traffic.names:
                raise ValueError(f"traffic: there is no {OWN!r} in this application; name others, as {{blue: 100}}")
            self._adopt(tuning)
        except ValueError as error:
            if not self._configured:
                raise
            log.error("user_config refused: %s", error)
            self._refused = str(error)
            return
        self._refused = None
        self._applications[1:] = [name for name in traffic.names if name != OWN]
        self._variants.reconfigure(tuning)
        if not self._configured:
            await self._until_ready()
            restore_scheduling()
        self._configured = True
        await self._resume_jobs()
        if self._closing and not tuning.prediction_log:  # who switches the log off may count on its rows
            await asyncio.wait({self._closing}, timeout=CLOSE_S)

    def choose(self, asked: str | None = None, client: str | None = None) -> Choice:
        """See Service.choose."""
        return self._variants.choose(asked, client)

    def cards(self) -> Mapping[str, ModelCard]:
        """See Service.cards."""
        return self._variants.cards()

    async def classify(
        self, choice: Choice, encoded: bytes, top_k: int, explain: Explain, deadline: Deadline
    ) -> Answer:
        """See Service.classify."""
        look = self.log is not None
        wanted = Wanted(encoded, top_k, explain, self.limits.max_pixels, deadline, look)
        return await self._variants.classify(choice, wanted)

    async def recipe(self, variant: str) -> tuple[WeightsConfig, EngineConfig, ModelCard]:
        """See Service.recipe."""
        state = await self._variants.ask(variant)
        return state.weights, state.engine, state.card

    async def start_jobs(self) -> None:
        """See Service.start_jobs."""
        if self.jobs:
            await start_jobs(self.jobs)

    async def check_ready(self) -> None:
        """See Service.check_ready."""
        await self._variants.check_ready()

    async def describe(self) -> dict[str, Any]:
        """See Service.describe."""
        status, described = await asyncio.gather(asyncio.to_thread(serve.status), self._variants.describe())
        own, *others = self._applications
        apps = {name: status.applications[name] for name in (own, *others) if name in status.applications}
        deployments = {
            name if app == own else f"{app}.{name}": {
                "status": one.status.value,
                "replicas": one.replica_states,
                "message": one.message,
            }
            for app, found in apps.items()
            for name, one in found.deployments.items()
        }
        return {"deployments": deployments, "refused": self._refused, **described}

    def __del__(self) -> None:
        """Serve calls this when it stops a replica: rows that wait are written."""
        if self._kept:
            self._kept.close()

    async def _until_ready(self) -> None:
        """Return once a model answers, or this application has failed: somebody has to say so then."""
        while True:
            try:
                return await self._variants.check_ready()
            except NotReadyError as error:
                log.info("waiting: %s", error)
            own = (await asyncio.to_thread(serve.status)).applications.get(self._applications[0])
            if own is not None and own.status == ApplicationStatus.DEPLOY_FAILED:
                return
            await asyncio.sleep(ASK_AGAIN_S)

    async def _resume_jobs(self) -> None:
        """Go on with jobs that a stop of the service has interrupted; a folder that is away stops no replica."""
        try:
            await self.start_jobs()
        except OSError as error:
            log.error("jobs: %s", error)

    def _adopt(self, tuning: IngressConfig) -> None:
        """Take what is taken at once.

        Raises:
            ValueError: The keys cannot be read, or log or feedback not written; nothing has changed.
        """
        keys = ApiKeys(tuning.keys)
        feedback = Feedback(tuning.feedback, self._metrics.voted) if tuning.feedback else None
        if tuning.prediction_log != self._logged:
            opened = PredictionLog(tuning.prediction_log, self._metrics.logged) if tuning.prediction_log else None
            before, self._kept = self._kept, opened
            self.log, self._logged = self._kept, tuning.prediction_log
            if before:
                self._closing = asyncio.get_running_loop().run_in_executor(None, before.close)
        self.keys, self.feedback = keys, feedback
        self.tuning: ResponseConfig = tuning
        self.limits, self.admission, self.cors_origins = tuning.limits, tuning.admission, tuning.cors_origins
        self.jobs = tuning.jobs
        self.room = tuning.max_inflight_groups * tuning.max_group_size

    def _connect(self, variant: str) -> VariantClient:
        if variant == OWN and self._preprocessor is not None:
            return HandleClient(self._preprocessor)
        return ApplicationClient(variant)
