"""The load balancer's targets: whose head gets the clients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import WaiterError

from cluster.settings import ClusterError
from serve_app.console import say

WATCH_S = 10  # between two looks at the targets' health, the interval of the load balancer's own checks
GONE = ("draining", "unused")  # states of a target that gets no requests: deregistered, stopped or terminated
Targets = Mapping[str, list[str]]  # ARN of each target group -> ids of the heads in it


class LoadBalancer:
    """The target groups of one installation; without a load balancer there are none, and nothing is moved.

    Args:
        client: boto3's client of `elbv2`.
        groups: ARNs of all target groups.
    """

    def __init__(self, client: Any, groups: list[str]) -> None:
        self._client, self._groups = client, groups

    def targets(self) -> dict[str, list[str]]:
        """Return the heads that each group sends requests to, or will once they are healthy."""
        return {
            group: [each["Target"]["Id"] for each in self._health(group) if each["TargetHealth"]["State"] not in GONE]
            for group in self._groups
        }

    def move(self, targets: Targets) -> dict[str, list[str]]:
        """Make heads the only targets of each group; put the former ones back if that fails or is interrupted.

        Returns:
            The former targets.

        Raises:
            ClusterError: A head does not become healthy. The former targets have the clients.
            ClientError, KeyboardInterrupt: As above. If it comes while the former ones are put back, old and new heads
                may both be targets.
        """
        former = self.targets()
        try:
            self._replace(targets)
        except BaseException:  # Ctrl-C too
            say("the clients could not be moved; putting the former targets back")
            self._replace(former)
            raise
        return former

    def check_healthy(self, targets: Targets) -> None:
        """Raise a ClusterError that names the first head which is not a healthy target, and the reason."""
        for group, heads in targets.items():
            for each in self._health(group, heads) if heads else []:
                if (health := each["TargetHealth"])["State"] != "healthy":
                    reason = " ".join(filter(None, (health.get("Reason"), health.get("Description"))))
                    raise ClusterError(
                        f"the load balancer finds {each['Target']['Id']} {health['State']} in {group.split('/')[-2]} "
                        f"({reason or 'no reason given'}): read the head's logs with `python -m cluster status`"
                    )

    def watch(self, targets: Targets, seconds: float) -> None:
        """Raise a ClusterError as soon as a head is not healthy; return after the given time."""
        for _ in range(round(seconds / WATCH_S)):
            time.sleep(WATCH_S)
            self.check_healthy(targets)

    def _replace(self, targets: Targets) -> None:
        """Register and wait for health in all groups first, then deregister: each group always has a healthy target."""
        for group, heads in targets.items():
            if heads:
                self._client.register_targets(TargetGroupArn=group, Targets=_described(heads))
        for group, heads in targets.items():
            if heads:
                self._wait_until_healthy(group, heads)
        others = {group: [head for head in now if head not in targets[group]] for group, now in self.targets().items()}
        for group, heads in others.items():
            if heads:
                self._client.deregister_targets(TargetGroupArn=group, Targets=_described(heads))
        while any(self._is_draining(group, heads) for group, heads in others.items() if heads):
            time.sleep(WATCH_S)
            self.check_healthy(targets)

    def _wait_until_healthy(self, group: str, heads: list[str]) -> None:
        try:
            self._client.get_waiter("target_in_service").wait(TargetGroupArn=group, Targets=_described(heads))
        except WaiterError as error:
            if "Max attempts" in str(error):  # else a call failed
                self.check_healthy({group: heads})
            raise

    def _is_draining(self, group: str, heads: list[str]) -> bool:
        return any(each["TargetHealth"]["State"] == "draining" for each in self._health(group, heads))

    def _health(self, group: str, heads: list[str] | None = None) -> list[dict[str, Any]]:
        """Return the health of some targets, by default of all that a group has."""
        only = {} if heads is None else {"Targets": _described(heads)}
        described = self._client.describe_target_health(TargetGroupArn=group, **only)
        return list(described["TargetHealthDescriptions"])


def _described(heads: list[str]) -> list[dict[str, str]]:
    return [{"Id": head} for head in heads]
