"""AWS in memory, as far as an update needs it: instances, target groups with health, and errors at a chosen moment.

How a load balancer behaves is taken from AWS's *User Guide for Application Load Balancers* (health checks, register
targets) with the values of ec2-stack.yaml: a new target is `initial` until a check passes, an unhealthy one needs two
checks in a row, a healthy one is `unhealthy` after three failures, and one that is deregistered is `draining` for 60 s.
Requests go to the healthy targets, or to all registered ones if none is healthy. Without targets the answer is 503.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

CHECK_S = 10
RECOVER_S, UNHEALTHY_S, DRAIN_S = 2 * CHECK_S, 3 * CHECK_S, 60


@dataclass
class Target:
    """One instance in one target group."""

    state: str
    since: float


class FakeAws:
    """Time passes only in ``sleep``; a client sends one request per group and second meanwhile.

    Args:
        running: Ids of the instances that run.
        groups: Target groups, each with its healthy targets.

    Attributes:
        broken: Pairs of group and instance that does not answer there although it runs.
        lost: (second, group) of requests that were not answered.
        steps: Number of calls and sleeps so far.
        at_step: Called before each step; may raise, or end instances.
    """

    def __init__(self, running: set[str], groups: dict[str, list[str]]) -> None:
        self.running, self.now, self.steps = set(running), 0.0, 0
        self._groups = {name: {each: Target("healthy", 0) for each in targets} for name, targets in groups.items()}
        self.broken: set[tuple[str, str]] = set()
        self.lost: list[tuple[float, str]] = []
        self.at_step: Callable[[int], None] = lambda step: None

    def targets(self, group: str) -> dict[str, str]:
        """Return the state of each target of a group."""
        return {instance: target.state for instance, target in self._groups[group].items()}

    def step(self) -> None:
        """Count one thing that the program under test does."""
        self.steps += 1
        self.at_step(self.steps)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.step()
        for _ in range(round(seconds)):
            self.now += 1
            for group in self._groups:
                self._check(group)
                self._send(group)

    def call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer as boto3's client of elbv2 does; takes the place of its ``_make_api_call``."""
        self.step()
        group, targets = arguments["TargetGroupArn"], [each["Id"] for each in arguments.get("Targets", [])]
        if operation == "RegisterTargets":
            self._register(group, targets)
        elif operation == "DeregisterTargets":
            for instance in targets:
                if instance in self._groups[group]:
                    self._groups[group][instance] = Target("draining", self.now)
        elif operation == "DescribeTargetHealth":
            described = [self._describe(group, instance) for instance in targets or self._groups[group]]
            return {"TargetHealthDescriptions": described}
        else:
            raise NotImplementedError(operation)
        return {}

    def _register(self, group: str, instances: list[str]) -> None:
        if dead := [instance for instance in instances if instance not in self.running]:
            message = "The following targets are not in a running state and cannot be registered: "
            raise ClientError({"Error": {"Code": "InvalidTarget", "Message": message + str(dead)}}, "RegisterTargets")
        for instance in instances:
            if self.targets(group).get(instance, "draining") == "draining":
                self._groups[group][instance] = Target("initial", self.now)

    def _describe(self, group: str, instance: str) -> dict[str, Any]:
        state = self.targets(group).get(instance, "unused")
        reasons = {"unhealthy": "Target.ResponseCodeMismatch", "unused": "Target.NotRegistered"}
        health = {"State": state} | ({"Reason": reasons[state]} if state in reasons else {})
        return {"Target": {"Id": instance}, "TargetHealth": health}

    def _answers(self, group: str, instance: str) -> bool:
        return instance in self.running and (group, instance) not in self.broken

    def _check(self, group: str) -> None:
        """Let the health checks run, and end what has drained."""
        for instance, target in list(self._groups[group].items()):
            age, answers = self.now - target.since, self._answers(group, instance)
            if target.state == "draining":
                if age >= DRAIN_S:
                    del self._groups[group][instance]
            elif target.state == "healthy" and answers:
                target.since = self.now  # when the last check passed
            elif target.state == "healthy":
                if age >= UNHEALTHY_S:
                    self._groups[group][instance] = Target("unhealthy", self.now)
            elif age >= (CHECK_S if target.state == "initial" else RECOVER_S):
                self._groups[group][instance] = Target("healthy" if answers else "unhealthy", self.now)

    def _send(self, group: str) -> None:
        """Send a request to each target that may get one: it must be answered whichever the load balancer takes."""
        states = {name: state for name, state in self.targets(group).items() if state != "draining"}
        healthy = [name for name, state in states.items() if state == "healthy"]
        if not all(self._answers(group, name) for name in healthy or states) or not states:
            self.lost.append((self.now, group))
