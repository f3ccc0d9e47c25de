"""Deploy a Serve config file: wait until it is live, ask it, and put the previous one back if it fails.

Exit code 0: live (or a dry run). 1: not live; the last line says what runs now. 2: nothing was changed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import httpx2
import yaml

from serve_app.release.compare import refuse_worse
from serve_app.release.plan import plan
from serve_app.release.rollout import Cluster, DeployError, RefusedError, State, previous_config
from serve_app.release.serve_config import BUILDERS, MODEL, Config, ConfigError, check, read
from serve_app.release.smoke import authorization, known_image, smoke_test


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.release.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="Serve config file")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="of Ray's dashboard; default: %(default)s")
    parser.add_argument("--api", help="of the service; default: Serve's port on the host of --address")
    parser.add_argument(
        "--token-file", type=Path, help="holds Ray's token; default: the environment's RAY_AUTH_TOKEN, if any"
    )
    parser.add_argument("--image", type=Path, help="to test with; default: one made here")
    parser.add_argument("--dry-run", action="store_true", help="print what would change, and change nothing")
    parser.add_argument("--force", action="store_true", help="deploy weights whose card says that they are worse")
    parser.add_argument("--timeout-s", type=float, default=600, help="for the way there, and for the way back")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        config, image = read(options.config), known_image(options.image)
        check(config)
        cluster = Cluster(options.address, token(options.token_file))
        before = cluster.state()
        for change in plan(before, config):
            say(str(change))
        api = options.api or api_address(options.address, before, config)
        service = Service(api.rstrip("/"), image)
        if not options.force:
            for found in refuse_worse(config, service.cards() if is_running(before) else []):
                say(found)
        if not options.dry_run:
            deploy(cluster, config, before, service, options.timeout_s)
    except KeyboardInterrupt:
        end(1, "interrupted; nothing was changed")
    except (ConfigError, RefusedError, OSError) as error:
        end(2, f"{error}; nothing was changed")
    except DeployError as error:
        end(1, str(error))


class Service:
    """The API in front of what is deployed."""

    def __init__(self, api: str, image: bytes) -> None:
        """Remember where it is and what to ask it."""
        self.api, self._image = api, image

    def check_there(self) -> None:
        """Find out that the address is right while nothing depends on it.

        Raises:
            RefusedError: Nothing answers there.
        """
        try:
            httpx2.get(self.api, timeout=10)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RefusedError(f"no service answers at {self.api} ({error}): name its address with --api") from None

    def cards(self) -> list[dict[str, Any]]:
        """What is served now; nothing if it does not say."""
        try:
            answer = httpx2.get(f"{self.api}/v1/models", headers=authorization(), timeout=10).raise_for_status()
            models: list[dict[str, Any]] = answer.json()["models"]
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError) as error:
            say(f"not compared with what is served: {self.api}/v1/models does not answer ({error})")
            return []
        return models

    def test(self, state: State, config: Config) -> None:
        """Ask every application of ours.

        Raises:
            DeployError: One does not classify.
        """
        for app in config["applications"]:
            ours = app["import_path"] in BUILDERS and app["import_path"] != MODEL
            if ours and app.get("route_prefix", "/"):
                live = state["applications"][app.get("name", "default")]["deployments"]
                say(smoke_test(self.api, app, self._image, live["Ingress"]["target_num_replicas"]))


def deploy(cluster: Cluster, config: Config, before: State, service: Service, timeout_s: float) -> None:
    """Make a config live, or go back to what was there.

    Raises:
        RefusedError: Nothing has changed.
        DeployError: It is not live; says why, and what is.
    """
    previous = previous_config(before)
    if is_running(before):
        service.check_there()
    try:
        make_live(cluster, config, before, service, timeout_s)
    except RefusedError:
        raise
    except DeployError as error:
        say(f"failed: {error}")
        go_back(cluster, previous, service, timeout_s, str(error))
    except KeyboardInterrupt:
        raise DeployError(
            f"interrupted: Ray goes on with the new config; the previous one is in {save(previous)}, deploy that to go "
            "back"
        ) from None


def is_running(state: State) -> bool:
    """Whether some application answers now."""
    return any(app["status"] == "RUNNING" for app in state["applications"].values())


def make_live(cluster: Cluster, config: Config, before: State, service: Service, timeout_s: float) -> None:
    """Put a config in place, wait, test.

    Raises:
        RefusedError: Nothing has changed.
        DeployError: It has been put in place but does not serve.
    """
    start = time.monotonic()
    say("deploying")
    state = cluster.apply(config, timeout_s, before)
    say(f"every replica is new and healthy after {time.monotonic() - start:.0f} s")
    service.test(state, config)


def go_back(cluster: Cluster, previous: Config, service: Service, timeout_s: float, reason: str) -> None:
    """Make the previous config live again.

    Raises:
        DeployError: Always; says why the new one is not live, and what is.
    """
    if not previous["applications"]:
        say("there is no previous config; taking this one away")
    else:
        say("putting the previous config back")
    try:
        make_live(cluster, previous, cluster.state(), service, timeout_s)
    except DeployError as error:
        raise DeployError(
            f"{reason}; and the previous config, in {save(previous)}, is not live either: {error}"
        ) from None
    except KeyboardInterrupt:
        raise DeployError(
            f"{reason}; interrupted on the way back to the previous config, in {save(previous)}"
        ) from None
    raise DeployError(f"{reason}; " + ("the previous config is live" if previous["applications"] else "nothing runs"))


def api_address(address: str, state: State, config: Config) -> str:
    """Where Serve listens, seen from here: on the dashboard's host, or through the same tunnel."""
    port = (state.get("http_options") or config.get("http_options") or {}).get("port", 8000)
    return f"http://{urlsplit(address).hostname}:{port}"


def token(path: Path | None) -> str | None:
    """Ray's token, from a file or the environment.

    Raises:
        ConfigError: The file holds none.
    """
    if path is None:
        return os.environ.get("RAY_AUTH_TOKEN")
    if not (found := path.read_text().strip()):
        raise ConfigError(f"{path} holds no token")
    return found


def save(config: Config) -> Path:
    """Write a config to a file that only its owner can read."""
    with tempfile.NamedTemporaryFile("w", prefix="previous-", suffix=".yaml", delete=False) as file:
        yaml.safe_dump(config, file, sort_keys=False)
    return Path(file.name)


def say(what: str) -> None:
    """Tell the user what is being done."""
    print(f"· {what}", flush=True)


def end(code: int, why: str) -> None:
    """Leave with one sentence."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(code)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
