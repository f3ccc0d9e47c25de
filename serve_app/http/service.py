"""What the HTTP layer needs from the deployment around it: the seam between FastAPI and Ray Serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from serve_app.config import IngressConfig
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted
from serve_app.heads.registry import HeadRegistry
from serve_app.heads.store import HeadStore
from serve_app.heads_config import HeadsConfig
from serve_app.http.auth import ApiKeys
from serve_app.model_card import ModelRef
from serve_app.observability.feedback_store import Feedback
from serve_app.observability.prediction_log import PredictionLog
from serve_app.routing.router import VariantRouter


class Heads(NamedTuple):
    """The heads that clients teach."""

    config: HeadsConfig
    store: HeadStore  # on disk
    registry: HeadRegistry  # in this replica's memory


class Service(Protocol):
    """One ingress replica. Attributes change when its settings change, so they are read per request."""

    config: IngressConfig
    keys: ApiKeys
    router: VariantRouter
    prediction_log: PredictionLog | None  # None if no log is kept
    feedback: Feedback | None  # None if no votes are kept
    heads: Heads | None  # None if clients cannot teach heads

    async def fit_head(self, examples: Sequence[Example], backbone: ModelRef) -> Fitted:
        """Fit a head on examples that these weights embedded.

        Raises:
            InvalidParameterError: The examples cannot be fitted (422).
            OverloadedError: Other fits came first (503).
            NotReadyError: The process that fits is not available (503).
        """

    async def prepare_fit(self) -> None:
        """Load what a fit needs, so that ``fit_head`` is quick; raises NotReadyError and OverloadedError (503)."""

    async def start_jobs(self) -> None:
        """Start work on batch jobs that have not ended, if there are any."""

    async def describe(self) -> dict[str, Any]:
        """Return ``deployments`` and ``refused`` for GET /v1/status."""
