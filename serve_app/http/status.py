"""GET routes about the service itself: health, models and labels, status."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from serve_app.batch.job_store import open_store
from serve_app.config import ResponseConfig
from serve_app.errors import NotReadyError
from serve_app.http.accounts import Accounts
from serve_app.http.admission import AdmissionController
from serve_app.http.heads.access import HeadAccess
from serve_app.http.heads.schemas import summary
from serve_app.http.jobs.quota import queue_quota
from serve_app.http.model_names import check_model_name
from serve_app.http.openapi import PROBLEMS
from serve_app.http.schemas import Usage
from serve_app.http.service import Service
from serve_app.observability.stats import Stats
from serve_app.preprocessing.formats import FORMATS


def create_router(
    service: Service, heads: HeadAccess, admission: AdmissionController, accounts: Accounts, stats: Stats
) -> APIRouter:
    """Build the GET routes that describe this ingress replica, its models and the caller's use of them."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Liveness: the process runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", responses={503: PROBLEMS[503]}, summary="Readiness: a model answers")
    async def readyz() -> dict[str, str]:
        await service.router.check_ready()
        return {"status": "ready", "version": service.router.first_card().version}

    @router.get("/v1/models", responses={503: PROBLEMS[503]}, summary="Served models, limits and accepted formats")
    async def list_models(request: Request) -> dict[str, Any]:
        service.router.first_card()
        caller, cards = request.state.caller, service.router.cards()
        served = {card.sha256 for card in cards.values()}
        taught = [summary(entry, caller, served).model_dump() for entry in heads.all_visible(caller)]
        config = service.config
        return {
            "models": [
                {"variant": name, "classes": len(card.labels)}
                | card.model_dump(mode="json", exclude={"labels": True, "descriptions": True, "int8": {"ranges"}})
                for name, card in cards.items()
            ],
            "heads": taught if service.heads else None,
            "limits": config.limits.model_dump(),
            "defaults": config.model_dump(include=set(ResponseConfig.model_fields)),
            "formats": [name.lower() for name in FORMATS],
            "feedback": service.feedback and {"keep_images": service.feedback.keep_images},
        }

    @router.get(
        "/v1/models/{name}/labels",
        responses={404: PROBLEMS[404], 503: PROBLEMS[503]},
        summary="Class names by class id, and a line about each; X-Model selects another variant",
    )
    async def list_labels(request: Request, name: str) -> dict[str, Any]:
        variant = request.headers.get("x-model")
        cards = service.router.cards()
        card = service.router.first_card() if variant is None else cards.get(service.router.choose(variant).variant)
        if card is None:
            raise NotReadyError(f"variant {variant!r} is not ready yet; retry")
        check_model_name(service, name, card.name)
        return {"name": card.name, "version": card.version, "labels": card.labels, "descriptions": card.descriptions}

    @router.get("/v1/status", summary="State of the service, and totals of this ingress replica since its start")
    async def get_status() -> dict[str, Any]:
        described = {**await service.describe(), **await service.router.describe()}
        cards = list(service.router.cards().values())
        return {
            "model": cards[0].ref.model_dump() if cards else None,
            **described,
            "admission": admission.snapshot(),
            "prediction_log": (rows := service.prediction_log) and {**rows.snapshot(), "error": rows.error},
            **stats.snapshot(),
        }

    @router.get(
        "/v1/usage",
        response_model=Usage,
        responses={401: PROBLEMS[401]},
        summary="What the caller has used, and may use, at this ingress replica",
    )
    async def get_usage(request: Request) -> Usage:
        """Return the counts of the caller's API key. Ingress replicas count separately; all of them share the jobs."""
        caller: str | None = request.state.caller
        account, jobs = accounts.of(caller), service.config.jobs
        queue = await asyncio.to_thread(queue_quota, open_store(jobs.folder), caller, jobs) if jobs else None
        return Usage(caller=caller, images=account.images.quota(), bytes=account.bytes.quota(), jobs=queue)

    return router
