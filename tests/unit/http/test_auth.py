"""Who may call: keys, their rates, other sites' pages, and what answers say to browsers."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import KeysConfig, WeightsConfig, parse
from serve_app.errors import RateLimitedError, UnauthorizedError
from serve_app.http.app import create_app
from serve_app.http.auth import Keys, hash_of
from serve_app.http.rate_limit import Bucket
from tests.conftest import make_photo
from tests.support.local_service import LocalService

PHOTO = make_photo()
ALICE, BOB = "key_of_alice", "key_of_bob"
OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
CLOSED = ("/v1/models", "/v1/models/resnet18/labels", "/v1/status", "/v2", "/v2/models/resnet18")


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    service = LocalService(weights)
    service.keys = Keys(KeysConfig(hashes={"alice": hash_of(ALICE), "bob": hash_of(BOB)}))
    return service


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def test_without_keys_everyone_may_call(http: TestClient, service: LocalService) -> None:
    service.keys = Keys(KeysConfig())
    assert http.post("/v1/classify", content=PHOTO).status_code == 200
    assert http.get("/v1/status").status_code == 200


def test_either_header_opens(http: TestClient) -> None:
    """Several keys are valid at once."""
    for headers in (bearer(ALICE), {"x-api-key": BOB}, {"authorization": f"bearer {BOB}"}):
        assert http.post("/v1/classify", content=PHOTO, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer(""), bearer("wrong"), bearer(hash_of(ALICE)), {"x-api-key": "é"}, {"authorization": f"Basic {ALICE}"}],
)
def test_others_get_401_and_how_to_do_it(http: TestClient, headers: dict[str, str]) -> None:
    """Also whoever has stolen the hash."""
    raw = {name: value.encode() for name, value in headers.items()}
    response = http.post("/v1/classify", content=PHOTO, headers=raw)  # type: ignore[arg-type] # bytes are fine
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    assert http.post("/v2/models/resnet18/infer", content=b"{}").json()["error"].startswith("no API key")


def test_only_health_and_documentation_are_open(http: TestClient) -> None:
    assert {path: http.get(path).status_code for path in OPEN} == dict.fromkeys(OPEN, 200)
    assert {path: http.get(path).status_code for path in CLOSED} == dict.fromkeys(CLOSED, 401)
    assert {path: http.get(path, headers=bearer(ALICE)).status_code for path in CLOSED} == dict.fromkeys(CLOSED, 200)


def test_a_revoked_key_is_no_longer_one(http: TestClient, service: LocalService) -> None:
    service.keys = Keys(KeysConfig(hashes={"bob": hash_of(BOB)}))
    assert http.get("/v1/models", headers=bearer(ALICE)).status_code == 401
    assert http.get("/v1/models", headers=bearer(BOB)).status_code == 200


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within a second; a file that went bad changes nothing, an empty one lets nobody in."""
    file, clock = tmp_path / "keys", Clock()
    file.write_text(f"# ours\nalice {hash_of(ALICE)}\n\n")
    keys = Keys(KeysConfig(file=str(file)), clock)
    assert keys.caller(bearer(ALICE)) == "alice"
    file.write_text(f"alice {hash_of(ALICE)}\nbob {hash_of(BOB)}\n")
    clock.now += 1.1
    assert keys.caller(bearer(BOB)) == "bob"
    with caplog.at_level(logging.ERROR, "serve_app"):
        file.write_text("alice secret\n")
        clock.now += 1.1
        assert keys.caller(bearer(ALICE)) == "alice"
    assert "line 1: not `name sha256`" in caplog.text
    file.write_text("")
    clock.now += 1.1
    with pytest.raises(UnauthorizedError):
        keys.caller(bearer(ALICE))


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", f"alice {hash_of(ALICE)}")
    assert Keys(KeysConfig(env="SOME_KEYS")).caller({"x-api-key": ALICE}) == "alice"


@pytest.mark.parametrize(
    ("tuning", "sentence"),
    [
        (KeysConfig(file="none.txt"), "keys.file none.txt: cannot be read"),
        (KeysConfig(env="NO_SUCH_VARIABLE"), "keys.env NO_SUCH_VARIABLE: no such environment variable"),
    ],
)
def test_keys_that_are_missing_leave_nothing_open(tuning: KeysConfig, sentence: str) -> None:
    """The config is refused; a service that was to be closed never opens by mistake."""
    with pytest.raises(ValueError, match=sentence):
        Keys(tuning)


def test_a_key_in_place_of_its_hash_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hashes\.alice"):
        parse(KeysConfig, {"hashes": {"alice": ALICE}})


def test_the_command_makes_a_key_that_opens(tmp_path: Path) -> None:
    """What it prints first is the key, what it prints second is the line for the file."""
    command = [sys.executable, "-m", "serve_app.http.auth", "new"]
    done = subprocess.run([*command, "carol"], capture_output=True, text=True, check=True)
    key, line = (row.partition(":")[2].strip() for row in done.stdout.splitlines())
    (tmp_path / "keys").write_text(line)
    assert Keys(KeysConfig(file=str(tmp_path / "keys"))).caller(bearer(key)) == "carol"
    assert key not in line
    assert len(key) > 40
    refused = subprocess.run([*command, "two words"], capture_output=True, text=True, check=False)
    assert "a name without spaces" in refused.stderr


def test_a_rate_is_kept() -> None:
    """A burst, then the rate; a request that overdraws makes the next one wait for it."""
    clock = Clock()
    bucket = Bucket(per_s=10, size=20, clock=clock)
    bucket.check()
    bucket.take(64)
    with pytest.raises(RateLimitedError, match=r"may send 10 images/s; wait 4\.5 s") as refused:
        bucket.check()
    assert (refused.value.status, refused.value.retry_after_s) == (429, 5)
    clock.now += 4.6
    bucket.check()


def test_a_rate_is_each_keys_own(http: TestClient, service: LocalService) -> None:
    """The 429 says when to come again; other callers do not notice."""
    hashes = {"alice": hash_of(ALICE), "bob": hash_of(BOB)}
    service.keys = Keys(KeysConfig(hashes=hashes, images_per_s=0.01, burst=2))
    files = [("images", ("a.jpg", PHOTO))] * 2
    assert http.post("/v1/classify", files=files, headers=bearer(ALICE)).status_code == 200
    limited = http.post("/v1/classify", files=files, headers=bearer(ALICE))
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 90 < int(limited.headers["retry-after"]) <= 100
    assert http.post("/v1/classify", files=files, headers=bearer(BOB)).status_code == 200


def test_keys_are_never_logged(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for key in (ALICE, "wrong_key"):
            answer = http.post("/v1/classify", content=PHOTO, headers=bearer(key))
            assert key not in answer.text
    assert ALICE not in caplog.text
    assert "wrong_key" not in caplog.text


SITE = {"origin": "https://photos.example"}


def test_no_other_site_may_call_by_default(http: TestClient) -> None:
    assert "access-control-allow-origin" not in http.get("/healthz", headers=SITE).headers


def test_named_sites_may_call(http: TestClient, service: LocalService) -> None:
    """From now on, preflight without a key included; refusals can be read there too; other sites still may not."""
    service.cors_origins = (SITE["origin"],)
    asked = SITE | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = http.options("/v1/classify", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, SITE["origin"])
    refused = http.post("/v1/classify", content=PHOTO, headers=SITE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SITE["origin"])
    other = http.get("/healthz", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/v1/models", "/none"])
def test_answers_are_safe_in_a_browser(http: TestClient, path: str) -> None:
    """No guessing of types, no frames, no referrer; refusals and documentation included."""
    headers = http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
