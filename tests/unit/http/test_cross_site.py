"""Pages of other sites cannot use a service on the visitor's machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import FeedbackConfig, JobsConfig, KeysConfig, WeightsConfig
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.observability.feedback_store import Feedback
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
HEALTH = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    service = LocalService(weights)
    service.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs")))
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path / "votes")))
    return service


OWN = [
    *(
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "app.localhost:8000",
        "127.0.0.1:8000",
        "127.8.8.8",
        "[::1]:8000",
    ),
    *("10.1.2.3:8000", "[2001:db8::1]", "api:8000", "classify-serve-svc", "x"),
    *(socket.gethostname(), f"{socket.gethostname()}.local:8000"),
]


def test_own_names_and_addresses_are_served(http: TestClient) -> None:
    """Loopback, any IP address (load balancers), a name without a dot (compose, Kubernetes), this machine's name."""
    for host in OWN:
        assert http.get("/v1/models", headers={"host": host}).status_code == 200, host


HOSTILE = (
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example."),
    *("127.0.0.1@evil.example", "evil.localhost.example", "a.b", "1.2.3", "[::1].evil.example]", "[evil.example]"),
)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/classify"), ("GET", "/docs")])
def test_other_names_are_refused_without_keys(http: TestClient, method: str, path: str) -> None:
    """A name that someone else may point to this machine (DNS rebinding) is a 421 that names the setting."""
    for host in HOSTILE:
        refused = http.request(method, path, headers={"host": host})
        assert (refused.status_code, refused.json()["code"]) == (421, "unknown_host"), host
        assert "`allowed_hosts`" in refused.json()["detail"]


def test_health_is_answered_under_any_name(http: TestClient) -> None:
    """Load balancers probe under names of their own; a write to the same path is no probe."""
    headers = {"host": "probe.example"}
    assert {path: http.get(path, headers=headers).status_code for path in HEALTH} == dict.fromkeys(HEALTH, 200)
    assert http.head("/healthz", headers=headers).status_code == 200
    assert http.post("/healthz", headers=headers).status_code == 421


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        (("photos.example",), "Photos.Example:443", 200),
        (("photos.example",), "a.photos.example", 421),
        (("*.photos.example",), "a.photos.example", 200),
        (("*.photos.example",), "photos.example", 421),
        (("*.photos.example",), "evilphotos.example", 421),
        (("*",), "evil.example", 200),
        (("photos.example",), "127.0.0.1", 200),
    ],
)
def test_allowed_hosts(
    http: TestClient, service: LocalService, allowed: tuple[str, ...], host: str, status: int
) -> None:
    """The setting adds names, with a wildcard for subdomains or for everything."""
    service.configure(allowed_hosts=allowed)
    assert http.get("/v1/models", headers={"host": host}).status_code == status


def test_with_keys_the_name_is_free_unless_it_is_set(http: TestClient, service: LocalService) -> None:
    """A page of another site has no key, so a service with keys answers under every name."""
    service.keys = ApiKeys(KeysConfig(hashes={"alice": hash_key("a")}))
    headers = {"host": "photos.example", "x-api-key": "a"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    service.configure(allowed_hosts=("other.example",))
    assert http.get("/v1/models", headers=headers).status_code == 421


WRITES = (("POST", "/v1/classify"), ("POST", "/predict"), ("POST", "/v1/feedback"), ("POST", "/v1/jobs"))
WRITES += (("DELETE", f"/v1/jobs/{'0' * 32}"), ("POST", "/v2/models/resnet18/infer"), ("POST", "/"), ("PUT", "/none"))
WRITES += (("POST", "/predictions/resnet18"), ("PUT", "/predictions/resnet18"), ("DELETE", "/models/resnet18"))
FOREIGN = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://127.0.0.1:8000.evil.example"},
    {"origin": "http://["},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8000"},
)


@pytest.mark.parametrize("headers", FOREIGN)
def test_writes_of_other_sites_are_refused(http: TestClient, headers: dict[str, str]) -> None:
    """A browser sends these headers with a form or a script of another site; the body is not read."""
    for method, path in WRITES:
        refused = http.request(method, path, headers={"host": "127.0.0.1:8000", **headers}, content=PHOTO)
        assert refused.status_code == 403, (method, path)
        body = refused.json()
        assert "`cors_origins`" in next(body[name] for name in ("detail", "error", "message") if name in body)


OTHER = [
    {},
    {"origin": "http://127.0.0.1:8000"},
    {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
    {"host": "photos", "origin": "https://photos"},
    {"host": "photos:443", "origin": "https://photos"},
    {"host": "rewritten", "origin": "https://photos.example", "sec-fetch-site": "same-origin"},
]


def test_other_writes_are_answered(http: TestClient) -> None:
    """Programs send neither header; /docs sends its own origin."""
    for headers in OTHER:
        answer = http.post("/v1/classify", headers={"host": "127.0.0.1:8000", **headers}, content=PHOTO)
        assert answer.status_code == 200, headers


def test_reads_of_other_sites_are_left_to_the_browser(http: TestClient) -> None:
    """A browser shows the page none of these responses, and a link to /docs has to work."""
    headers = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    assert http.get("/docs", headers=headers).status_code == 200
    assert "access-control-allow-origin" not in http.get("/v1/models", headers=headers).headers


@pytest.mark.parametrize("origins", [("https://photos.example",), ("*",)])
def test_configured_origins_may_write(http: TestClient, service: LocalService, origins: tuple[str, ...]) -> None:
    """A preflight and the write after it; other origins stay excluded unless all are allowed."""
    service.configure(cors_origins=origins)
    site = {"origin": "https://photos.example", "sec-fetch-site": "cross-site"}
    for method in ("POST", "PUT"):
        preflight = http.options("/v1/classify", headers=site | {"access-control-request-method": method})
        assert preflight.status_code == 200
    answer = http.post("/v1/classify", headers=site, content=PHOTO)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origins[0])
    other = http.post("/v1/classify", headers=site | {"origin": "https://evil.example"}, content=PHOTO)
    assert other.status_code == (200 if origins == ("*",) else 403)
