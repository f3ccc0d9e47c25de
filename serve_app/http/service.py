"""What the HTTP layer needs from the deployment around it: the seam between FastAPI and Ray Serve."""

from __future__ import annotations

from typing import Any, Protocol

from serve_app.config import IngressConfig
from serve_app.http.auth import ApiKeys
from serve_app.observability.feedback_store import Feedback
from serve_app.observability.prediction_log import PredictionLog
from serve_app.routing.router import VariantRouter


class Service(Protocol):
    """One ingress replica. Attributes change when its settings change, so they are read per request."""

    config: IngressConfig
    keys: ApiKeys
    router: VariantRouter
    prediction_log: PredictionLog | None  # None if no log is kept
    feedback: Feedback | None  # None if no votes are kept

    async def start_jobs(self) -> None:
        """Start work on batch jobs that have not ended, if there are any."""

    async def describe(self) -> dict[str, Any]:
        """Return ``deployments`` and ``refused`` for GET /v1/status."""
