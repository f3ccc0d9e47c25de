"""Put a config in place through Ray's REST API for Serve, and wait until it is live.

REST API: https://docs.ray.io/en/master/serve/api/rest-api.html
"""

from __future__ import annotations

import re
import time
from typing import Any

import httpx2

from serve_app.release.serve_config import Config, app_name

POLL_S = 0.5
REQUEST_TIMEOUT_S = 60  # a PUT to a cluster without Serve starts Serve first
SERVICE_ERROR = re.compile(r"serve_app\.errors\.\w+: (.+)")
EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception): .")
State = dict[str, Any]


class DeployError(Exception):
    """The new config is not live; the message says why in one sentence."""


class RefusedError(DeployError):
    """The config was refused or Ray did not answer; the cluster is unchanged."""


class ServeApi:
    """Client of Ray Serve's REST API on a cluster's dashboard, such as http://127.0.0.1:8265.

    Args:
        token: Ray's token, for a cluster with token authentication.
        transport: Replaces the network in tests.
    """

    def __init__(self, address: str, token: str | None = None, transport: httpx2.BaseTransport | None = None) -> None:
        self.address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._transport = transport

    def state(self) -> State:
        """Return the state of all Serve applications; raise RefusedError if the dashboard does not answer."""
        state: State = self._request("GET").json()
        return state

    def apply(self, config: Config, timeout_s: float, before: State | None = None) -> State:
        """Put a checked config in place and wait until every replica is new and runs, and no old one is left.

        Returns:
            The state once the config is live.

        Raises:
            RefusedError: The cluster is unchanged.
            DeployError: The config is in place, but failed or is not live in time.
        """
        before = before or self.state()  # the caller may have read it already
        self._request("PUT", config)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                state = self.state()
            except RefusedError as error:  # the dashboard or the controller may be restarting
                pending = [str(error)]
            else:
                for name in map(app_name, config["applications"]):
                    app = state["applications"].get(name)
                    if app and _is_new(app, before) and (reason := failure_reason(app)):
                        raise DeployError(f"application {name}: {reason}")
                if not (pending := find_pending(state, config, before)):
                    return state
            if time.monotonic() > deadline:
                raise DeployError(f"not live within {timeout_s:.0f} s: {'; '.join(pending)}")
            time.sleep(POLL_S)

    def _request(self, method: str, body: Config | None = None) -> httpx2.Response:
        try:
            with httpx2.Client(headers=self._headers, timeout=REQUEST_TIMEOUT_S, transport=self._transport) as client:
                response = client.request(method, f"{self.address}/api/serve/applications/", json=body)
        except (httpx2.ConnectError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            remedy = "start Ray or a tunnel to it, or set --address"
            raise RefusedError(f"no Ray dashboard answers at {self.address} ({error}): {remedy}") from None
        except httpx2.HTTPError as error:
            kind = DeployError if method == "PUT" else RefusedError  # Ray may have taken a PUT that it did not answer
            raise kind(f"Ray's dashboard at {self.address} did not answer a {method} request ({error})") from None
        if response.status_code in (401, 403):
            raise RefusedError(f"{self.address} rejected Ray's token: pass the right one with --token-file")
        if response.status_code != 200:
            raise RefusedError(f"Ray refused the request: {' '.join(response.text.split())}")
        return response


def previous_config(state: State) -> Config:
    """Return the config that produced a state, as ``serve config`` prints it."""
    apps = [app["deployed_app_config"] for app in state["applications"].values() if app.get("deployed_app_config")]
    capacity = state.get("target_capacity")
    return {"applications": apps} | ({} if capacity is None else {"target_capacity": capacity})


def find_pending(state: State, config: Config, before: State) -> list[str]:
    """Return one sentence per application or deployment that is not live yet; empty once the config is live."""
    pending, names = [], [app_name(app) for app in config["applications"]]
    for name in names:
        app = state["applications"].get(name)
        if app is None or not _is_new(app, before):
            pending.append(f"Ray has not started to deploy {name}")
            continue
        if app["status"] != "RUNNING":
            pending.append(" ".join(f"{name} is {app['status']} {app['message']}".split()))
        for deployment, live in app["deployments"].items():
            running = sum(replica["state"] == "RUNNING" for replica in live["replicas"])
            others = len(live["replicas"]) - running
            # Ray reports HEALTHY once every replica has the new version and no old replica is left.
            if live["status"] != "HEALTHY" or running != live["target_num_replicas"] or others:
                count = f"{running} of {live['target_num_replicas']} replicas run, {others} are starting or stopping"
                pending.append(" ".join(f"{name}.{deployment} is {live['status']} ({count}) {live['message']}".split()))
    removed = {app_name(app) for app in previous_config(before)["applications"]} - set(names)
    return pending + [f"{name} is not removed yet" for name in state["applications"] if name in removed]


def failure_reason(app: State) -> str | None:
    """Return the line that explains why an application failed, without Ray's traceback; None if it did not."""
    deployments = list(app["deployments"].values())
    for deployment in deployments:
        # A ServiceError does not go away on Ray's next attempt. A HEALTHY deployment may still show an old message.
        failing = deployment["status"] in ("UPDATING", "DEPLOY_FAILED")
        if failing and (match := SERVICE_ERROR.search(deployment["message"])):
            return match[1]
    if app["status"] != "DEPLOY_FAILED":
        return None
    messages = [app["message"], *(deployment["message"] for deployment in deployments)]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    if match := SERVICE_ERROR.search("\n".join(lines)):
        return match[1]
    exceptions = [line for line in lines if EXCEPTION.match(line)]
    return exceptions[-1] if exceptions else " ".join(lines)


def _is_new(app: State, before: State) -> bool:
    old = before["applications"].get(app["name"], {})
    return bool(app["last_deployed_time_s"] != old.get("last_deployed_time_s"))
