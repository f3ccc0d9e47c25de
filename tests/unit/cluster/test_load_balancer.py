"""Account.move_clients_to: no client loses its target before the new head is healthy."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from cluster.aws import Account, Node
from cluster.settings import Settings

OLD = {"Id": "i-old"}
NEW = {"Id": "i-new"}


class FakeLoadBalancer:
    """Target groups with the old head; `unhealthy` names a group in which a new target never becomes healthy."""

    def __init__(self, unhealthy: str | None) -> None:
        self.targets = defaultdict(lambda: [OLD])
        self.unhealthy = unhealthy

    def register_targets(self, TargetGroupArn: str, Targets: list[dict[str, str]]) -> None:  # noqa: N803 - boto3's
        self.targets[TargetGroupArn] = [*self.targets[TargetGroupArn], *Targets]

    def deregister_targets(self, TargetGroupArn: str, Targets: list[dict[str, str]]) -> None:  # noqa: N803 - boto3's
        self.targets[TargetGroupArn] = [target for target in self.targets[TargetGroupArn] if target not in Targets]

    def describe_target_health(self, TargetGroupArn: str) -> Any:  # noqa: N803 - boto3's
        return {"TargetHealthDescriptions": [{"Target": target} for target in self.targets[TargetGroupArn]]}

    def get_waiter(self, _name: str) -> FakeLoadBalancer:
        return self

    def wait(self, TargetGroupArn: str, Targets: list[dict[str, str]]) -> None:  # noqa: N803 - boto3's
        if TargetGroupArn == self.unhealthy and NEW in Targets:
            raise TimeoutError("target_in_service")


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, settings: Settings, outputs: dict[str, str]) -> Account:
    """A stack with target groups for API and page, and a new head."""
    account = Account(settings.model_copy(update={"page_image": settings.image}))
    head = Node(settings.cluster, "head", "head", NEW["Id"], "m7i.xlarge", "10.0.0.2", "on-demand")
    monkeypatch.setattr(account, "outputs", lambda: {**outputs, "ApiTargets": "api", "PageTargets": "page"})
    monkeypatch.setattr(account, "nodes", lambda: [head])
    return account


def test_the_new_head_becomes_the_only_target(account: Account) -> None:
    """For the API and for the page."""
    account.elb = FakeLoadBalancer(unhealthy=None)
    account.move_clients_to(account.settings.cluster)
    assert account.elb.targets == {"api": [NEW], "page": [NEW]}


@pytest.mark.parametrize("unhealthy", ["api", "page"])
def test_old_heads_stay_targets_while_the_new_one_is_unhealthy(account: Account, unhealthy: str) -> None:
    """If API or page of the new head fails its health check, the old head keeps the clients of both."""
    account.elb = FakeLoadBalancer(unhealthy)
    with pytest.raises(TimeoutError):
        account.move_clients_to(account.settings.cluster)
    assert all(OLD in account.elb.targets[group] for group in ("api", "page"))
