"""Deploy a Serve config file: check, plan, roll out, smoke test; roll back if that fails."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import yaml

from serve_app.console import say
from serve_app.release.compare import refuse_worse
from serve_app.release.plan import plan
from serve_app.release.rollout import DeployError, RefusedError, ServeApi, State, previous_config
from serve_app.release.serve_config import APP, INGRESS, Config, ConfigError, app_name, check, check_access, read
from serve_app.release.smoke import authorization, generate_image, smoke_test


class DeployedApi:
    """The HTTP API of the service in front of the deployed applications."""

    def __init__(self, url: str, image: bytes) -> None:
        self.url, self._image = url.rstrip("/"), image

    def check_reachable(self) -> None:
        """Send one request, to refuse a wrong address before anything changes."""
        try:
            httpx2.get(self.url, timeout=10)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RefusedError(f"no service answers at {self.url} ({error}): set its address with --api") from None

    def model_cards(self) -> list[dict[str, Any]]:
        """Return the model cards of ``GET /v1/models``; empty if it does not answer."""
        try:
            response = httpx2.get(f"{self.url}/v1/models", headers=authorization(), timeout=10).raise_for_status()
            cards: list[dict[str, Any]] = response.json()["models"]
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError) as error:
            say(f"not compared with the served model: {self.url}/v1/models does not answer ({error})")
            return []
        return cards

    def smoke_test(self, state: State, config: Config) -> None:
        """Send test requests to every application of ours that has an ingress and a route."""
        for app in config["applications"]:
            if app["import_path"] in (APP, INGRESS) and app.get("route_prefix", "/"):
                deployments = state["applications"][app_name(app)]["deployments"]
                say(smoke_test(self.url, app, self._image, deployments["Ingress"]["target_num_replicas"]))


def deploy(
    config_file: Path,
    address: str,
    api_url: str | None = None,
    token_file: Path | None = None,
    image_file: Path | None = None,
    dry_run: bool = False,
    force: bool = False,
    timeout_s: float = 600,
) -> None:
    """Deploy a config file, or only print its effect; the options are those of `serve-app deploy`.

    Raises:
        ConfigError, RefusedError: The cluster is unchanged.
        DeployError: The config is not live; the message says what runs now.
        KeyboardInterrupt: Ctrl-C before the rollout; the cluster is unchanged.
    """
    config, image, token = read(config_file), read_image(image_file), read_token(token_file)
    check(config)
    serve = ServeApi(address, token)
    before = serve.state()
    check_access(config, api_host(before, config), previous_config(before))
    for change in plan(before, config):
        say(str(change))
    api = DeployedApi(api_url or default_api_url(address, before, config), image)
    if not force:
        for comparison in refuse_worse(config, api.model_cards() if is_running(before) else []):
            say(comparison)
    if not dry_run:
        roll_out_or_back(serve, config, before, api, timeout_s)


def roll_out_or_back(serve: ServeApi, config: Config, before: State, api: DeployedApi, timeout_s: float) -> None:
    """Roll out a config; roll back to the previous one if it does not become live. Raises as ``deploy``."""
    previous = previous_config(before)
    if is_running(before):
        api.check_reachable()
    try:
        roll_out(serve, config, before, api, timeout_s)
    except RefusedError:
        raise
    except DeployError as error:
        say(f"failed: {error}")
        roll_back(serve, previous, api, timeout_s, str(error))
    except KeyboardInterrupt:
        remedy = f"to roll back, deploy the previous one in {save(previous)}"
        raise DeployError(f"interrupted: Ray continues with the new config; {remedy}") from None


def roll_out(serve: ServeApi, config: Config, before: State, api: DeployedApi, timeout_s: float) -> None:
    """Put a config in place, wait until it is live, and run the smoke test; RefusedError: the cluster is unchanged."""
    start = time.monotonic()
    say("deploying")
    state = serve.apply(config, timeout_s, before)
    say(f"every replica is new and healthy after {time.monotonic() - start:.0f} s")
    api.smoke_test(state, config)


def roll_back(serve: ServeApi, previous: Config, api: DeployedApi, timeout_s: float, reason: str) -> None:
    """Make the previous config live again; always raise DeployError with the reason and what runs now."""
    exists = bool(previous["applications"])
    say("rolling back to the previous config" if exists else "no previous config exists; removing the new one")
    try:
        roll_out(serve, previous, serve.state(), api, timeout_s)
    except DeployError as error:
        raise DeployError(f"{reason}; the previous config, in {save(previous)}, is not live either: {error}") from None
    except KeyboardInterrupt:
        state = f"interrupted during the rollback to the previous config, in {save(previous)}"
        raise DeployError(f"{reason}; {state}") from None
    raise DeployError(f"{reason}; {'the previous config is live' if exists else 'nothing runs'}")


def is_running(state: State) -> bool:
    """Return whether any application serves requests."""
    return any(app["status"] == "RUNNING" for app in state["applications"].values())


def api_host(state: State, config: Config) -> str:
    """Return the address on which Serve listens, or will if it does not run; Ray's default is every address."""
    return str((state.get("http_options") or config.get("http_options") or {}).get("host", "0.0.0.0"))


def default_api_url(address: str, state: State, config: Config) -> str:
    """Return Serve's URL on the dashboard's host, which is also right behind an SSH tunnel."""
    port = (state.get("http_options") or config.get("http_options") or {}).get("port", 8000)
    return f"http://{urlsplit(address).hostname}:{port}"


def read_image(path: Path | None) -> bytes:
    """Return the bytes of an image file, or of a generated image for None."""
    try:
        return generate_image() if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the image {path} cannot be read ({error.strerror})") from None


def read_token(path: Path | None) -> str | None:
    """Return Ray's token from a file, or from ``RAY_AUTH_TOKEN`` for None."""
    if path is None:
        return os.environ.get("RAY_AUTH_TOKEN")
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read ({error})") from None
    if not token:
        raise ConfigError(f"the token file {path} holds no token")
    return token


def save(config: Config) -> Path:
    """Write a config to a temporary file that only its owner can read, and return the path."""
    with tempfile.NamedTemporaryFile("w", prefix="previous-", suffix=".yaml", delete=False) as file:
        yaml.safe_dump(config, file, sort_keys=False)
    return Path(file.name)
