"""cluster/aws.py: stacks that failed, and what the VPC has already."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from cluster.aws import Account
from cluster.settings import Settings

ENDPOINT = {"InstanceConnectEndpointId": "eice-0123456789abcdef0", "SecurityGroupIds": ["sg-0123456789abcdef0"]}


@pytest.fixture
def account(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Account:
    """An account whose calls are answered by stubs, which check each call against AWS's own model of it."""
    account = Account(settings)
    for name in ("cloudformation", "ec2", "ssm"):
        fake = boto3.Session("id", "secret", region_name=settings.region).client(name)
        monkeypatch.setattr(account, name, fake)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return account


def stack(status: str, **parameters: str) -> dict[str, Any]:
    described = [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()]
    details = {"StackName": "classify", "CreationTime": "2026-01-01", "StackStatus": status, "Parameters": described}
    return {"Stacks": [details]}


def put(account: Account, endpoints: list[Any] | None, *stacks: dict[str, Any] | None, then: str) -> dict[str, str]:
    """Run put_stack against stacks as CloudFormation describes them in turn; return the parameters that it sent."""
    sent: dict[str, str] = {}

    def keep(params: dict[str, Any], **_: Any) -> None:
        sent.update({each["ParameterKey"]: each["ParameterValue"] for each in params.get("Parameters", [])})

    account.cloudformation.meta.events.register(f"provide-client-params.cloudformation.{then}", keep)
    with Stubber(account.cloudformation) as cloudformation, Stubber(account.ec2) as ec2:
        for described in stacks:
            if described is None:
                cloudformation.add_client_error("describe_stacks", "ValidationError", "Stack classify does not exist")
            elif described["Stacks"][0]["StackStatus"] == "DELETE":
                cloudformation.add_response("delete_stack", {}, {"StackName": "classify"})
            else:
                cloudformation.add_response("describe_stacks", described)
            if described is stacks[-2]:
                if endpoints is not None:
                    ec2.add_response("describe_instance_connect_endpoints", {"InstanceConnectEndpoints": endpoints})
                operation = "create_stack" if then == "CreateStack" else "update_stack"
                cloudformation.add_response(operation, {}, dict.fromkeys(KEYS, ANY))
        account.put_stack()
        cloudformation.assert_no_pending_responses()
        ec2.assert_no_pending_responses()
    return sent


KEYS = ("StackName", "TemplateBody", "Parameters", "Capabilities")
CREATED, UPDATED = stack("CREATE_COMPLETE"), stack("UPDATE_COMPLETE")


def test_a_stack_that_was_never_created_is_deleted_first(account: Account) -> None:
    """CloudFormation can neither update nor create a stack in ROLLBACK_COMPLETE."""
    sent = put(account, [], stack("ROLLBACK_COMPLETE"), stack("DELETE"), None, CREATED, then="CreateStack")
    assert sent["Name"] == "classify"
    assert "Endpoint" not in sent


def test_an_endpoint_of_the_vpc_is_used(account: Account) -> None:
    """AWS allows one Instance Connect endpoint for each VPC, so a second stack takes the first one's."""
    sent = put(account, [ENDPOINT], None, CREATED, then="CreateStack")
    assert (sent["Endpoint"], sent["EndpointGroup"]) == ("eice-0123456789abcdef0", "sg-0123456789abcdef0")


def test_a_stack_keeps_the_endpoint_that_it_began_with(account: Account) -> None:
    """An update neither replaces a foreign endpoint nor takes the stack's own for a foreign one."""
    foreign = stack("CREATE_COMPLETE", Endpoint="eice-1", EndpointGroup="sg-1")
    assert put(account, None, foreign, UPDATED, then="UpdateStack")["Endpoint"] == "eice-1"
    assert "Endpoint" not in put(account, None, CREATED, UPDATED, then="UpdateStack")


def test_address_and_budget_of_the_alarms_are_optional(account: Account) -> None:
    """Without them the stack's defaults hold, which send no mail."""
    assert not {"AlarmEmail", "MonthlyBudget"} & put(account, None, CREATED, UPDATED, then="UpdateStack").keys()
    account.settings = account.settings.model_copy(update={"alarm_email": "a@photos.example", "monthly_budget": 900})
    sent = put(account, None, CREATED, UPDATED, then="UpdateStack")
    assert (sent["AlarmEmail"], sent["MonthlyBudget"]) == ("a@photos.example", "900")


def test_rays_token_is_made_once(account: Account) -> None:
    """Parameter Store keeps it encrypted; whoever comes later gets the same one."""
    name = "/classify/ray-token"
    with Stubber(account.ssm) as ssm:
        ssm.add_client_error("get_parameter", "ParameterNotFound")
        ssm.add_response("put_parameter", {}, {"Name": name, "Value": ANY, "Type": "SecureString"})
        made = account.ray_token()
        ssm.add_response("get_parameter", {"Parameter": {"Value": made}}, {"Name": name, "WithDecryption": True})
        assert account.ray_token() == made
    assert len(made) == 64
