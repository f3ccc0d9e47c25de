"""The FastAPI application: routes, middleware, and errors as problem+json."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from serve_app.errors import InvalidParameterError, ServiceError
from serve_app.http import classify, embed, feedback, hugging_face, oip, status, torchserve
from serve_app.http.accounts import Accounts
from serve_app.http.admission import AdmissionController
from serve_app.http.canonical import CanonicalMiddleware
from serve_app.http.cross_site import CrossSiteMiddleware
from serve_app.http.error_forms import advice, error_response
from serve_app.http.fan_out import FanOut
from serve_app.http.heads import examples as head_examples
from serve_app.http.heads import export as head_export
from serve_app.http.heads import routes as head_routes
from serve_app.http.heads import suggestions as head_suggestions
from serve_app.http.heads.access import HeadAccess
from serve_app.http.heads.photos import PhotoEmbedder
from serve_app.http.heads.refit import HeadRefitter
from serve_app.http.heads.requests import HeadRequests
from serve_app.http.heads.use import HeadUses
from serve_app.http.jobs import routes as job_routes
from serve_app.http.middleware import AdmissionMiddleware, CorsMiddleware, RequestIdMiddleware
from serve_app.http.model_names import NamedModels
from serve_app.http.openapi import complete_document, operation_id
from serve_app.http.parameters_middleware import ParametersMiddleware
from serve_app.http.responses import to_problem
from serve_app.http.schemas import Problem
from serve_app.http.service import Service
from serve_app.observability.stats import Stats
from serve_app.validation import describe_errors

log = logging.getLogger("serve_app")


def create_app(service: Service) -> FastAPI:
    """Build the HTTP API of one ingress replica."""
    app = FastAPIOffline(
        title="Image classification",
        version="1",
        summary="Send a photo, get its most likely classes.",
        separate_input_output_schemas=False,
        generate_unique_id_function=operation_id,
        openapi_tags=[
            {"name": name} for name in ("images", "heads", "jobs", "service")
        ],  # the order in /docs; others follow
        redoc_url=None,  # its page loads a picture from a CDN
    )
    # A redirect to the path without its last slash would make a client send its body twice.
    app.router.redirect_slashes = False
    stats = Stats()
    fan_out = FanOut(service, stats)
    admission = AdmissionController(lambda: service.config)
    accounts = Accounts(lambda: service.keys.config)
    access, embedder = HeadAccess(service), PhotoEmbedder(service, fan_out)
    refitter = HeadRefitter(service, access, embedder, admission)
    head_uses = HeadUses(service, access, refitter)
    models = NamedModels(service, head_uses)
    head_requests = HeadRequests(service, access, embedder, refitter)
    _handle_errors(app)

    # The middleware that is added last runs first.
    app.add_middleware(ParametersMiddleware)
    app.add_middleware(AdmissionMiddleware, service=service, admission=admission, accounts=accounts, stats=stats)
    app.add_middleware(CrossSiteMiddleware, service=service)
    app.add_middleware(CorsMiddleware, service=service)
    app.add_middleware(RequestIdMiddleware, service=service)
    app.add_middleware(CanonicalMiddleware)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    # FastAPI tries one router after the other: the first answers most requests.
    app.include_router(classify.create_router(service, fan_out, head_uses))
    app.include_router(embed.create_router(service, fan_out))
    app.include_router(oip.create_router(service, fan_out, models))
    app.include_router(feedback.create_router(service, fan_out))
    app.include_router(job_routes.create_router(service, access, head_uses))
    app.include_router(head_routes.create_router(head_requests))
    app.include_router(head_examples.create_router(head_requests))
    app.include_router(head_suggestions.create_router(head_requests))
    app.include_router(head_export.create_router(head_requests))
    app.include_router(status.create_router(service, access, admission, accounts, stats))
    app.include_router(hugging_face.create_router(service, fan_out, models))
    app.include_router(torchserve.create_router(service, fan_out, models))

    complete_document(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Answer every error as problem+json, and under /v2 in the form of the Open Inference Protocol."""

    def request_id(request: Request) -> str | None:
        return getattr(request.state, "id", None)

    def allowed_methods(path: str, of_one_route: str) -> str:
        """Return the methods of all routes of a path: Starlette names those of one route, and no HEAD."""
        routes = app.openapi()["paths"].items()
        methods = {m.upper() for route, methods in routes if compile_path(route)[0].match(path) for m in methods}
        methods |= set(of_one_route.split(", "))
        return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        response = error_response(request, to_problem(error, request_id(request)))
        response.headers.update(error.response_headers)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        route, method = request.scope["route"].path, request.method.lower()
        parameters = app.openapi()["paths"][route][method]["parameters"]
        places = {detail["loc"][0] for detail in error.errors()}  # query or header
        known = [parameter["name"] for parameter in parameters if parameter["in"] in places]
        details = [{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]
        return await service_error(request, InvalidParameterError(describe_errors(details, known)))

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        problem = Problem(
            type="about:blank",
            title=error.detail,
            status=error.status_code,
            code=error.detail.lower().replace(" ", "_"),
            detail=f"{request.method} {request.url.path:.200}: {error.detail}; {advice(request)}",
            retryable=False,
            request_id=request_id(request),
        )
        response = error_response(request, problem)
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = allowed_methods(request.url.path, response.headers["Allow"])
        return response

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        log.error("request %s", request_id(request), exc_info=error)
        return await service_error(request, ServiceError("the server failed; its log has the reason"))
