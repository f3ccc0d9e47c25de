"""Stage 1: the deployment that answers HTTP and routes images to the model variants."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus

from serve_app.analytics.upkeep import Upkeep
from serve_app.config import IngressConfig
from serve_app.deployments.handles import Handle, HandleClient, LocalHandle, call
from serve_app.deployments.job_actor import JobStarter
from serve_app.deployments.metrics import IngressMetrics
from serve_app.deployments.ray_internals import api_host, prepare_replica
from serve_app.errors import NotReadyError, ServiceError
from serve_app.exposure import check_access
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted
from serve_app.heads.registry import HeadRegistry
from serve_app.heads.store import HeadStore
from serve_app.heads_config import HeadsConfig
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys
from serve_app.http.service import Heads
from serve_app.model_card import ModelRef
from serve_app.observability.feedback_store import Feedback
from serve_app.observability.prediction_log import PredictionLog
from serve_app.paths import data_path
from serve_app.routing.router import VariantRouter
from serve_app.routing.traffic_split import MAIN, TrafficSplit
from serve_app.routing.variant import RETRY_S, VariantClient
from serve_app.scheduling import restore_scheduling
from serve_app.validation import parse

if TYPE_CHECKING:
    from serve_app.deployments.one_process import LocalModel

LOG_CLOSE_S = 10  # longest wait for the last rows of a prediction log that is switched off
log = logging.getLogger("serve_app")


# Admission control refuses overload. Ray Serve's own queue, which admission control cannot see, must not fill first.
# Ray Serve calls reconfigure, which waits for a model, only if the deployment has a user_config.
@serve.deployment(max_ongoing_requests=10_000, user_config={})
@serve.ingress()
class Ingress:
    """Implements http.service.Service on Ray Serve.

    Ray Serve starts it with default settings, builds the app and calls ``reconfigure``.

    Args:
        preprocessor: First stage of the variant ``main``, if this application contains one.
        teacher: Fits heads.
        start_model: Starts the variant ``main`` in this process, see one_process.py.
    """

    async def __init__(  # type: ignore[misc] # Serve awaits it
        self,
        preprocessor: Handle | None,
        teacher: Handle,
        start_model: Callable[[], Awaitable[LocalModel]] | None = None,
    ) -> None:
        self._check_ray = prepare_replica()
        self._model = await start_model() if start_model else None
        self.prediction_log: PredictionLog | None = None
        self.feedback: Feedback | None = None
        self.heads: Heads | None = None
        self._metrics = IngressMetrics()
        self._preprocessor = LocalHandle(self._model) if self._model else preprocessor
        self._teacher = teacher
        self.router = VariantRouter(self._connect, self._metrics)
        self._closing_log: asyncio.Future[None] | None = None
        self._job_starter = JobStarter(lambda: self.config.jobs)
        self._upkeep = Upkeep(lambda: self.config)
        self._applications = [serve.get_replica_context().app_name]
        self._configured = False
        self._refused: str | None = None
        self.config = IngressConfig()
        self.keys = ApiKeys(self.config.keys)
        self._apply(self.config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the HTTP app; Ray Serve calls this once per replica."""
        return create_app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply other settings at once; a starting replica gets requests when a model answers.

        Invalid settings fail a starting replica. A serving replica keeps its settings: Ray Serve would stop it for an
        exception.
        """
        try:
            config = parse(IngressConfig, user_config)
            split = TrafficSplit.from_config(config)
            if self._preprocessor is None and MAIN in split.names:
                raise ValueError(
                    f"traffic: this application has no variant {MAIN!r}; name other variants, such as {{blue: 100}}"
                )
            if self._model is None and config.classifier:
                raise ValueError("classifier: needs `one_process: true`; else these are settings of the Classifier")
            check_access(config, api_host(), self.config.keys.required)
            model_changes = not self._configured or config.classifier != self.config.classifier
            self._apply(config)
        except ValueError as error:
            if not self._configured:
                raise
            log.error("user_config refused: %s", error)
            self._refused = str(error)
            return
        if self._model and model_changes:
            await self._model.reconfigure(user_config.get("classifier") or {})
        self._refused = None
        self._applications[1:] = [name for name in split.names if name != MAIN]
        self.router.reconfigure(config)
        if not self._configured:
            await self._wait_until_ready()
            restore_scheduling()
        self._configured = True
        self._upkeep.start()
        self._job_starter.start()  # in the background: nothing about jobs may fail or delay a change of settings
        if self._closing_log and not config.prediction_log:  # the caller may read the rows when this returns
            await asyncio.wait({self._closing_log}, timeout=LOG_CLOSE_S)

    async def check_health(self) -> None:
        """Check that Ray works as this code expects; Ray Serve calls this before the first request, and then regularly.

        Raises:
            RuntimeError: See prepare_replica.
            Exception: A model in this process does not work; see ModelHealth.check.
        """
        self._check_ray()
        if self._model:
            await self._model.check_health()

    async def fit_head(self, examples: Sequence[Example], backbone: ModelRef) -> Fitted:
        """Fit a head in the Teacher; see http.service.Service."""
        fitted: Fitted | ServiceError = await call(lambda: self._teacher.remote(examples, backbone), "teach")
        if isinstance(fitted, ServiceError):
            raise fitted
        return fitted

    async def prepare_fit(self) -> None:
        """Let the Teacher import its libraries."""
        await call(lambda: self._teacher.prepare.remote(), "teach")

    async def start_jobs(self) -> None:
        """Start work on batch jobs that have not ended, if there are any; in the background, until it has worked."""
        self._job_starter.start()

    async def describe(self) -> dict[str, Any]:
        """Return ``deployments`` and ``refused`` for GET /v1/status."""
        status = await asyncio.to_thread(serve.status)
        own, *others = self._applications
        apps = {name: status.applications[name] for name in (own, *others) if name in status.applications}
        deployments = {
            name if app_name == own else f"{app_name}.{name}": {
                "status": deployment.status.value,
                "replicas": deployment.replica_states,
                "message": deployment.message,
            }
            for app_name, app in apps.items()
            for name, deployment in app.deployments.items()
        }
        return {"deployments": deployments, "refused": self._refused}

    def __del__(self) -> None:
        if self.prediction_log:  # Ray Serve stops this replica: write the buffered rows
            self.prediction_log.close()

    async def _wait_until_ready(self) -> None:
        """Return once a model answers, or when the application has failed: then HTTP has to report it."""
        while True:
            try:
                return await self.router.check_ready()
            except NotReadyError as error:
                log.info("waiting: %s", error)
            own = (await asyncio.to_thread(serve.status)).applications.get(self._applications[0])
            if own is not None and own.status == ApplicationStatus.DEPLOY_FAILED:
                return
            await asyncio.sleep(RETRY_S)

    def _apply(self, config: IngressConfig) -> None:
        """Use other settings; ValueError if the keys or the log's folder cannot be used, and nothing has changed."""
        # Unchanged keys keep what was last read from a file that may be unreadable at this moment.
        keys = self.keys if config.keys == self.keys.config else ApiKeys(config.keys)
        feedback = Feedback(config.feedback, self._metrics.add_vote) if config.feedback else None
        if config.prediction_log != self.config.prediction_log:
            new = PredictionLog(config.prediction_log, self._metrics.set_log_rows) if config.prediction_log else None
            if self.prediction_log:
                self._closing_log = asyncio.get_running_loop().run_in_executor(None, self.prediction_log.close)
            self.prediction_log = new
        if config.heads != self.config.heads:
            if self.heads:
                self.heads.registry.stop()
            self.heads = _open_heads(config.heads) if config.heads else None
        self.config, self.keys, self.feedback = config, keys, feedback

    def _connect(self, variant: str) -> VariantClient:
        return HandleClient(variant, self._preprocessor if variant == MAIN else None)


def _open_heads(config: HeadsConfig) -> Heads:
    store = HeadStore(Path(data_path(config.folder)), config.keep_versions)
    registry = HeadRegistry(store)
    registry.start()
    return Heads(config, store, registry)
