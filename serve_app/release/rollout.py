"""Ray's REST API for Serve: what runs, put another config in its place, wait until it is really live."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import httpx2

from serve_app.release.serve_config import Config

POLL_S = 0.5
REQUEST_TIMEOUT_S = 60  # a PUT to a cluster without Serve starts it
OURS = re.compile(r"serve_app\.errors\.\w+: (.+)")
RAISED = re.compile(r"[\w.]+(?:Error|Exception): .")
State = dict[str, Any]


class DeployError(Exception):
    """Why a config is not live, in one sentence."""


class RefusedError(DeployError):
    """Ray did not take the config, or could not be asked: nothing has changed."""


class Cluster:
    """One Ray cluster, by the address of its dashboard."""

    def __init__(self, address: str, token: str | None = None, transport: httpx2.BaseTransport | None = None) -> None:
        """Connect nowhere yet.

        Args:
            address: Of the dashboard, such as http://127.0.0.1:8265.
            token: For a cluster with token authentication.
            transport: Stands in for the network in tests.
        """
        self.address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._transport = transport

    def state(self) -> State:
        """What Serve runs now.

        Raises:
            RefusedError: No answer.
        """
        state: State = self._ask("GET").json()
        return state

    def put(self, config: Config) -> None:
        """Make a config the wanted one; Ray then works towards it.

        Raises:
            RefusedError: Ray did not take it.
        """
        self._ask("PUT", config)

    def apply(self, config: Config, timeout_s: float, before: State | None = None) -> State:
        """Put a config in place and return once nothing else runs any more.

        Args:
            config: Checked.
            timeout_s: How long that may take.
            before: What ran until now, if that was asked already.

        Returns:
            What runs then.

        Raises:
            RefusedError: Nothing has changed.
            DeployError: It has been put in place, but failed or is late.
        """
        before = before or self.state()
        self.put(config)
        return wait_until_live(self.state, config, before, timeout_s)

    def _ask(self, method: str, body: Config | None = None) -> httpx2.Response:
        try:
            with httpx2.Client(headers=self._headers, timeout=REQUEST_TIMEOUT_S, transport=self._transport) as client:
                response = client.request(method, f"{self.address}/api/serve/applications/", json=body)
        except (httpx2.ConnectError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise RefusedError(
                f"no Ray dashboard answers at {self.address} ({error}): start Ray or a tunnel to it, or name it "
                "with --address"
            ) from None
        except httpx2.HTTPError as error:
            unsure = DeployError if method == "PUT" else RefusedError
            raise unsure(f"Ray's dashboard at {self.address} did not answer a {method} ({error})") from None
        if response.status_code in (401, 403):
            raise RefusedError(f"{self.address} wants another token: name its file with --token-file")
        if response.status_code != 200:
            raise RefusedError(f"Ray refused: {' '.join(response.text.split())}")
        return response


def wait_until_live(read: Callable[[], State], config: Config, before: State, timeout_s: float) -> State:
    """Poll until every replica of every application is new and runs, and none else is left.

    Args:
        read: Gives Serve's state.
        config: What was put in place.
        before: Serve's state before that.
        timeout_s: How long it may take.

    Returns:
        Serve's state then.

    Raises:
        DeployError: An application failed, or time is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            state = read()
        except RefusedError as error:  # the dashboard or the controller may be starting again
            missing = [str(error)]
        else:
            for name in names(config):
                app = state["applications"].get(name)
                if app and _is_new(app, before) and (reason := failure(app)):
                    raise DeployError(f"application {name}: {reason}")
            if not (missing := still_missing(state, config, before)):
                return state
        if time.monotonic() > deadline:
            raise DeployError(f"not live within {timeout_s:.0f} s: {'; '.join(missing)}")
        time.sleep(POLL_S)


def names(config: Config) -> list[str]:
    """The applications of a config."""
    return [app.get("name", "default") for app in config["applications"]]


def previous_config(state: State) -> Config:
    """The config that leads to a state: what `serve config` shows."""
    apps = [app["deployed_app_config"] for app in state["applications"].values() if app.get("deployed_app_config")]
    capacity = state.get("target_capacity")
    return {"applications": apps} | ({} if capacity is None else {"target_capacity": capacity})


def still_missing(state: State, config: Config, before: State) -> list[str]:
    """What keeps a config from being live: empty once it is."""
    missing, wanted = [], names(config)
    for name in wanted:
        app = state["applications"].get(name)
        if app is None or not _is_new(app, before):
            missing.append(f"{name} has not been taken up yet")
            continue
        if app["status"] != "RUNNING":
            missing.append(" ".join(f"{name} is {app['status']} {app['message']}".split()))
        for deployment, one in app["deployments"].items():
            running = sum(replica["state"] == "RUNNING" for replica in one["replicas"])
            others = len(one["replicas"]) - running
            # HEALTHY comes only once every replica is of the new version and no old one is left.
            if one["status"] != "HEALTHY" or running != one["target_num_replicas"] or others:
                count = f"{running} of {one['target_num_replicas']} replicas run, {others} start or stop"
                missing.append(" ".join(f"{name}.{deployment} is {one['status']} ({count}) {one['message']}".split()))
    declared = set(names(previous_config(before)))
    missing += [f"{name} is not gone yet" for name in state["applications"] if name in declared - set(wanted)]
    return missing


def failure(app: State) -> str | None:
    """Find the sentence that says why an application failed, under Ray's traceback."""
    deployments = list(app["deployments"].values())
    for one in deployments:
        # Our own errors say what no second try will change. A message left from before has another status.
        if one["status"] in ("UPDATING", "DEPLOY_FAILED") and (ours := OURS.search(one["message"])):
            return ours[1]
    if app["status"] != "DEPLOY_FAILED":
        return None
    messages = [app["message"], *(one["message"] for one in deployments)]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    if ours := OURS.search("\n".join(lines)):
        return ours[1]
    raised = [line for line in lines if RAISED.match(line)]
    return raised[-1] if raised else " ".join(lines)


def _is_new(app: State, before: State) -> bool:
    old = before["applications"].get(app["name"], {})
    return bool(app["last_deployed_time_s"] != old.get("last_deployed_time_s"))
