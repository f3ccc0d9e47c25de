"""API keys, their rate limits, cross-origin requests and security headers."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import KeysConfig, WeightsConfig
from serve_app.errors import RateLimitedError, UnauthorizedError
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.http.rate_limit import TokenBucket
from serve_app.validation import parse
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
ALICE, BOB = "key_of_alice", "key_of_bob"
OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
CLOSED = ("/v1/models", "/v1/models/resnet18/labels", "/v1/status", "/v2", "/v2/models/resnet18")


class Clock:
    """A clock that stands still until a test moves ``now``."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    service = LocalService(weights)
    service.keys = ApiKeys(KeysConfig(hashes={"alice": hash_key(ALICE), "bob": hash_key(BOB)}))
    return service


def test_without_configured_keys_every_client_may_call(http: TestClient, service: LocalService) -> None:
    service.keys = ApiKeys(KeysConfig())
    assert http.post("/v1/classify", content=PHOTO).status_code == 200
    assert http.get("/v1/status").status_code == 200


def test_both_headers_carry_a_key(http: TestClient) -> None:
    """`Authorization: Bearer` in any case and `X-API-Key` are accepted; several keys are valid at once."""
    for headers in (bearer(ALICE), {"x-api-key": BOB}, {"authorization": f"bearer {BOB}"}):
        assert http.post("/v1/classify", content=PHOTO, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer(""), bearer("wrong"), bearer(hash_key(ALICE)), {"x-api-key": "é"}, {"authorization": f"Basic {ALICE}"}],
)
def test_a_request_without_a_valid_key_gets_401(http: TestClient, headers: dict[str, str]) -> None:
    """Missing, wrong and malformed keys and the hash of a valid key are refused; the error says how to send a key."""
    raw = {name: value.encode() for name, value in headers.items()}
    response = http.post("/v1/classify", content=PHOTO, headers=raw)  # type: ignore[arg-type] # httpx takes bytes
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    assert http.post("/v2/models/resnet18/infer", content=b"{}").json()["error"].startswith("no API key")


def test_only_health_and_documentation_need_no_key(http: TestClient) -> None:
    """Every other route answers 401 without a key and 200 with one."""
    assert {path: http.get(path).status_code for path in OPEN} == dict.fromkeys(OPEN, 200)
    assert {path: http.get(path).status_code for path in CLOSED} == dict.fromkeys(CLOSED, 401)
    assert {path: http.get(path, headers=bearer(ALICE)).status_code for path in CLOSED} == dict.fromkeys(CLOSED, 200)


def test_a_revoked_key_is_refused(http: TestClient, service: LocalService) -> None:
    """A key that a new config omits gets 401; the remaining keys stay valid."""
    service.keys = ApiKeys(KeysConfig(hashes={"bob": hash_key(BOB)}))
    assert http.get("/v1/models", headers=bearer(ALICE)).status_code == 401
    assert http.get("/v1/models", headers=bearer(BOB)).status_code == 200


def test_a_changed_key_file_is_reloaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new key is valid after a second; a malformed file changes nothing; an empty file revokes all keys."""
    file, clock = tmp_path / "keys", Clock()
    file.write_text(f"# a comment\nalice {hash_key(ALICE)}\n\n")
    keys = ApiKeys(KeysConfig(file=str(file)), clock)
    assert keys.caller(bearer(ALICE)) == "alice"
    file.write_text(f"alice {hash_key(ALICE)}\nbob {hash_key(BOB)}\n")
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


def test_a_removed_key_is_revoked_whatever_other_lines_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A malformed line keeps the old key of its own name only, and is logged once."""
    file, clock = tmp_path / "keys", Clock()
    file.write_text(f"alice {hash_key(ALICE)}\nbob {hash_key(BOB)}\n")
    keys = ApiKeys(KeysConfig(file=str(file)), clock)
    file.write_text("bob secret\nmallory\n")
    with caplog.at_level(logging.ERROR, "serve_app"):
        for _ in range(3):
            clock.now += 1.1
            with pytest.raises(UnauthorizedError):
                keys.caller(bearer(ALICE))
            assert keys.caller(bearer(BOB)) == "bob"
    assert len(caplog.records) == 1
    file.write_text("")
    clock.now += 1.1
    with pytest.raises(UnauthorizedError):
        keys.caller(bearer(BOB))


def test_a_missed_refresh_is_made_up_for(tmp_path: Path) -> None:
    """A file that is away at one look is read at the next, even if its time and size are those of the old one."""
    file, clock = tmp_path / "keys", Clock()
    file.write_text(f"alice {hash_key(ALICE)}\n")
    stat = file.stat()
    keys = ApiKeys(KeysConfig(file=str(file)), clock)
    file.rename(tmp_path / "away")
    clock.now += 1.1
    assert keys.caller(bearer(ALICE)) == "alice"
    (tmp_path / "away").rename(file)
    file.write_text(f"alice {hash_key(BOB)}\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    clock.now += 1.1
    assert keys.caller(bearer(BOB)) == "alice"
    with pytest.raises(UnauthorizedError):
        keys.caller(bearer(ALICE))


def test_keys_are_read_from_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in the named variable makes its key valid."""
    monkeypatch.setenv("SOME_KEYS", f"alice {hash_key(ALICE)}")
    assert ApiKeys(KeysConfig(env="SOME_KEYS")).caller({"x-api-key": ALICE}) == "alice"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (KeysConfig(file="none.txt"), "keys.file none.txt: cannot be read"),
        (KeysConfig(env="NO_SUCH_VARIABLE"), "keys.env NO_SUCH_VARIABLE: no such environment variable"),
    ],
)
def test_a_missing_key_source_is_an_error(config: KeysConfig, sentence: str) -> None:
    """The config is refused, so a service that requires keys never runs without them."""
    with pytest.raises(ValueError, match=sentence):
        ApiKeys(config)


def test_a_key_in_place_of_its_hash_is_refused() -> None:
    """The config takes SHA-256 hashes only, so no key is stored by mistake."""
    with pytest.raises(ValueError, match=r"hashes\.alice"):
        parse(KeysConfig, {"hashes": {"alice": ALICE}})


def test_the_keys_command_makes_a_valid_key(tmp_path: Path) -> None:
    """`serve-app keys new` prints the key, then the line to store, which does not contain the key."""
    result = CliRunner().invoke(app, ["keys", "new", "carol"])
    key, line = (row.partition(":")[2].strip() for row in result.stdout.splitlines())
    (tmp_path / "keys").write_text(line)
    assert ApiKeys(KeysConfig(file=str(tmp_path / "keys"))).caller(bearer(key)) == "carol"
    assert key not in line
    assert len(key) > 40


@pytest.mark.parametrize("name", ["two words", "", "#comment"])
def test_the_keys_command_refuses_a_name_that_no_line_can_hold(name: str) -> None:
    """Exit code 2 and one sentence; no key is printed."""
    result = CliRunner().invoke(app, ["keys", "new", name])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {name!r} is not a valid name")


def test_a_token_bucket_allows_a_burst_and_then_the_rate() -> None:
    """A request that overdraws the bucket delays the next request."""
    clock = Clock()
    bucket = TokenBucket(rate=10, capacity=20, clock=clock)
    bucket.check()
    bucket.take(64)
    with pytest.raises(RateLimitedError, match=r"may send 10 images/s; wait 4\.5 s") as refused:
        bucket.check()
    assert (refused.value.status, refused.value.retry_after_s) == (429, 5)
    clock.now += 4.6
    bucket.check()


def test_each_key_has_its_own_rate_limit(http: TestClient, service: LocalService) -> None:
    """A 429 holds Retry-After; requests with other keys are answered."""
    hashes = {"alice": hash_key(ALICE), "bob": hash_key(BOB)}
    service.keys = ApiKeys(KeysConfig(hashes=hashes, images_per_s=0.01, burst=2))
    files = [("images", ("a.jpg", PHOTO))] * 2
    assert http.post("/v1/classify", files=files, headers=bearer(ALICE)).status_code == 200
    limited = http.post("/v1/classify", files=files, headers=bearer(ALICE))
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 90 < int(limited.headers["retry-after"]) <= 100
    assert http.post("/v1/classify", files=files, headers=bearer(BOB)).status_code == 200


def test_keys_are_never_logged(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Neither valid nor unknown keys appear in logs or responses."""
    with caplog.at_level(logging.DEBUG):
        for key in (ALICE, "wrong_key"):
            response = http.post("/v1/classify", content=PHOTO, headers=bearer(key))
            assert key not in response.text
    assert ALICE not in caplog.text
    assert "wrong_key" not in caplog.text


SITE = {"origin": "https://photos.example"}


def test_cross_origin_requests_are_off_by_default(http: TestClient) -> None:
    """A response allows no origin."""
    assert "access-control-allow-origin" not in http.get("/healthz", headers=SITE).headers


def test_configured_origins_may_call(http: TestClient, service: LocalService) -> None:
    """A preflight needs no key, refusals carry the CORS header, and other origins stay excluded."""
    service.configure(cors_origins=(SITE["origin"],))
    request = SITE | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = http.options("/v1/classify", headers=request)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, SITE["origin"])
    refused = http.post("/v1/classify", content=PHOTO, headers=SITE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SITE["origin"])
    other = http.get("/healthz", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/v1/models", "/none"])
def test_responses_carry_security_headers(http: TestClient, path: str) -> None:
    """Content sniffing, framing and referrers are off on every response, errors and documentation included."""
    headers = http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
