"""Nobody may call by mistake: keys, or `open: true`, wherever the API is reachable from other machines."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.config import IngressConfig
from serve_app.exposure import PUBLISHED_ON, check_access, is_loopback, reachable_host
from serve_app.release.serve_config import APP, INGRESS, MODEL, Config, ConfigError
from serve_app.release.serve_config import check_access as check_config
from serve_app.validation import parse

KEYS = {"hashes": {"alice": "0" * 64}}
KEYLESS: list[dict[str, Any]] = [{}, {"keys": {}}, {"keys": {"images_per_s": 5}}, {"open": False}]
GUARDED: list[dict[str, Any]] = [{"keys": KEYS}, {"keys": {"file": "/run/keys"}}, {"keys": {"env": "KEYS"}}]
BEYOND = ["0.0.0.0", "::", "10.0.0.7", "192.0.2.1", "2001:db8::1", "api.example"]
LOOPBACK = ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "localhost"]


@pytest.mark.parametrize("host", BEYOND)
@pytest.mark.parametrize("settings", KEYLESS, ids=str)
def test_an_api_that_others_reach_needs_keys_or_open(host: str, settings: dict[str, Any]) -> None:
    """The sentence names the address and both ways out."""
    with pytest.raises(ValueError, match=rf"reachable on {host}, .*: set `keys`, or `open: true`"):
        check_access(parse(IngressConfig, settings), host, keys_before=False)


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("settings", KEYLESS, ids=str)
def test_loopback_needs_neither(host: str, settings: dict[str, Any]) -> None:
    assert is_loopback(host)
    check_access(parse(IngressConfig, settings), host, keys_before=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("settings", KEYLESS, ids=str)
def test_keys_do_not_vanish(host: str, settings: dict[str, Any]) -> None:
    """A config that leaves them out is refused, on loopback too: a proxy on this machine may call for others."""
    with pytest.raises(ValueError, match="required a key until now, and this config names none"):
        check_access(parse(IngressConfig, settings), host, keys_before=True)


@pytest.mark.parametrize("settings", [*GUARDED, {"open": True}], ids=str)
@pytest.mark.parametrize("keys_before", [False, True])
def test_keys_and_open_are_the_two_ways(settings: dict[str, Any], keys_before: bool) -> None:
    check_access(parse(IngressConfig, settings), "0.0.0.0", keys_before)


def test_open_beside_keys_is_an_error() -> None:
    """It would say two things."""
    with pytest.raises(ValueError, match=r"open: `keys` are set, so a call needs one; remove"):
        parse(IngressConfig, {"open": True, "keys": KEYS})


@pytest.mark.parametrize(("published", "host"), [("", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("10.0.0.7", "10.0.0.7")])
def test_a_containers_published_address_counts(monkeypatch: pytest.MonkeyPatch, published: str, host: str) -> None:
    monkeypatch.setenv(PUBLISHED_ON, published)
    assert reachable_host("0.0.0.0") == host


def config(import_path: str = APP, **user_config: Any) -> Config:
    ingress = {"name": "Ingress", "user_config": user_config} if user_config else {"name": "Ingress"}
    return {"applications": [{"name": "photos", "import_path": import_path, "deployments": [ingress]}]}


@pytest.mark.parametrize("import_path", [APP, INGRESS])
def test_the_file_and_the_place_are_named(import_path: str) -> None:
    with pytest.raises(ConfigError, match=r"^photos\.Ingress\.user_config: keys: the API is reachable on 0\.0\.0\.0"):
        check_config(config(import_path), "0.0.0.0")


def test_a_file_without_deployments_is_keyless_too() -> None:
    with pytest.raises(ConfigError, match="photos"):
        check_config({"applications": [{"name": "photos", "import_path": APP}]}, "0.0.0.0")


def test_an_application_without_ingress_needs_no_keys() -> None:
    check_config({"applications": [{"name": "blue", "import_path": MODEL}]}, "0.0.0.0")


@pytest.mark.parametrize("keys", [KEYS, {"file": "/run/keys"}, {"unknown": 1}], ids=str)
def test_a_renamed_application_keeps_its_keys(keys: dict[str, Any]) -> None:
    """Keys that are in force count whatever the application is called; so do keys that this version cannot read."""
    with pytest.raises(ConfigError, match="required a key until now"):
        check_config(config(top_k=3), "127.0.0.1", before=config(keys=keys))
    check_config(config(open=True), "127.0.0.1", before=config(keys=keys))
    check_config(config(top_k=3), "127.0.0.1", before=config(top_k=5))
