"""cluster/ec2-stack.yaml: valid, closed to the network, least privilege."""

from __future__ import annotations

import re
from typing import Any

import cfnlint
import pytest
import yaml

from cluster.aws import STACK_TEMPLATE
from serve_app.config import LimitsConfig
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return dict(cfnlint.decode.cfn_yaml.load(str(STACK_TEMPLATE))["Resources"])


def test_cloudformation_accepts_the_template() -> None:
    """CloudFormation's own linter finds nothing, YAML aliases and merge keys included."""
    assert [str(match) for match in cfnlint.api.lint_file(STACK_TEMPLATE)] == []


def test_the_deploy_role_admits_approved_runs_only() -> None:
    """The linter accepts it; the token has to be of the environment; a session lasts as long as the workflow asks."""
    path = STACK_TEMPLATE.with_name("deploy-role.yaml")
    assert [str(match) for match in cfnlint.api.lint_file(path)] == []
    role = cfnlint.decode.cfn_yaml.load(str(path))["Resources"]["DeployRole"]["Properties"]
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    conditions = {name.rpartition(":")[2]: value for name, value in statement["Condition"]["StringEquals"].items()}
    assert conditions == {"aud": "sts.amazonaws.com", "sub": {"Fn::Sub": "repo:${Repository}:environment:production"}}
    workflow = (ROOT / ".github" / "workflows" / "deploy.yml").read_text()
    (seconds,) = re.findall(r"role-duration-seconds: (\d+)", workflow)
    assert int(seconds) <= role["MaxSessionDuration"]


def test_only_the_load_balancer_is_open_to_addresses(resources: dict[str, Any]) -> None:
    """Every other ingress rule names a security group as its source; the load balancer opens 443 only."""
    rules = [
        (name, rule)
        for name, resource in resources.items()
        for rule in (
            [resource["Properties"]]
            if resource["Type"] == "AWS::EC2::SecurityGroupIngress"
            else resource["Properties"].get("SecurityGroupIngress", [])
        )
    ]
    assert [(name, rule["FromPort"], rule["ToPort"]) for name, rule in rules if "CidrIp" in rule] == [
        ("Clients", 443, 443)
    ]
    by_group = {name: rule.get("FromPort") for name, rule in rules if "SourceSecurityGroupId" in rule}
    assert by_group.pop("AmongNodes") is None
    assert by_group == {"OperatorSsh": 22, "FromLoadBalancerToApi": 8000, "FromLoadBalancerToPage": 8501}


def test_the_load_balancer_closes_idle_connections_first(resources: dict[str, Any]) -> None:
    """If the service did, a request could reach a connection that is just being closed: 502."""
    attributes = resources["LoadBalancer"]["Properties"]["LoadBalancerAttributes"]
    idle_s = next(int(each["Value"]) for each in attributes if each["Key"] == "idle_timeout.timeout_seconds")
    http = yaml.safe_load((ROOT / "configs" / "production.yaml").read_text())["http_options"]
    assert LimitsConfig().deadline_s < idle_s < http["keep_alive_timeout_s"]


def test_roles_name_their_actions_and_resources(resources: dict[str, Any]) -> None:
    """No action has a wildcard; only DescribeInstances applies to every resource; workers have no role policy."""
    documents = [policy["PolicyDocument"] for policy in resources["HeadRole"]["Properties"]["Policies"]]
    documents.append(resources["ReadWeightsWriteLogs"]["Properties"]["PolicyDocument"])
    for statement in (statement for document in documents for statement in document["Statement"]):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert actions in (["ec2:DescribeInstances"], ["ecr:GetAuthorizationToken"])
    assert "Policies" not in resources["WorkerRole"]["Properties"]


def test_every_node_may_read_rays_token_and_no_operators_key(resources: dict[str, Any]) -> None:
    """Workers read two parameters: the token and the registry's login; the ssh key stays with the operators."""
    policy = resources["ReadWeightsWriteLogs"]["Properties"]
    assert policy["Roles"] == [{"Ref": "HeadRole"}, {"Ref": "WorkerRole"}]
    (resource,) = [
        statement["Resource"]
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Action"] == "ssm:GetParameter"
    ]
    assert [each["Fn::Sub"].rpartition("${Name}")[2] for each in resource] == ["/ray-token", "/registry-login"]


def test_alarms_reach_the_operator_and_fire_without_a_head(resources: dict[str, Any]) -> None:
    """A lost head is no target any more, so its metric ends: missing data raises ApiDown, and no other alarm."""
    alarms = {name: each["Properties"] for name, each in resources.items() if each["Type"] == "AWS::CloudWatch::Alarm"}
    missing = {name: alarm["TreatMissingData"] for name, alarm in alarms.items()}
    assert missing == {"ApiDown": "breaching", "PageDown": "notBreaching", "ServerErrors": "notBreaching"}
    assert all(alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": "Alarms"}] for alarm in alarms.values())
    for name, group in (("ApiDown", "Api"), ("PageDown", "Page")):
        balancer, target = (each["Value"]["Fn::GetAtt"] for each in alarms[name]["Dimensions"])
        assert (balancer[0], target) == ("LoadBalancer", [group, "TargetGroupFullName"])
    sums = {each["Id"]: each["MetricStat"]["Metric"]["MetricName"] for each in alarms["ServerErrors"]["Metrics"][1:]}
    assert sums == {
        "requests": "RequestCount",
        "service": "HTTPCode_Target_5XX_Count",
        "balancer": "HTTPCode_ELB_5XX_Count",
    }


def test_nodes_may_only_write_to_their_log_group_which_forgets(resources: dict[str, Any]) -> None:
    """They neither read logs nor create groups; a line is kept for a month."""
    statements = resources["ReadWeightsWriteLogs"]["Properties"]["PolicyDocument"]["Statement"]
    (statement,) = [each for each in statements if "logs:" in str(each["Action"])]
    assert statement["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert statement["Resource"] == {"Fn::GetAtt": ["Logs", "Arn"]}
    assert resources["Logs"]["Properties"]["RetentionInDays"] == 30


def test_the_file_system_is_encrypted_among_the_nodes_and_outlives_the_stack(resources: dict[str, Any]) -> None:
    """Only the nodes' security group reaches its mount targets, one in each of the first two subnets."""
    assert resources["Data"]["DeletionPolicy"] == "RetainExceptOnCreate"
    assert resources["Data"]["Properties"]["Encrypted"] is True
    targets = [each["Properties"] for each in resources.values() if each["Type"] == "AWS::EFS::MountTarget"]
    assert [target["SubnetId"]["Fn::Select"][0] for target in targets] == [0, 1]
    assert all(target["SecurityGroups"] == [{"Fn::GetAtt": ["Nodes", "GroupId"]}] for target in targets)


def test_the_bucket_is_private_encrypted_and_outlives_the_stack(resources: dict[str, Any]) -> None:
    """Deleting the stack keeps the bucket; public access is blocked in all four ways."""
    bucket = resources["Bucket"]
    assert bucket["DeletionPolicy"] == "RetainExceptOnCreate"
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketEncryption" in bucket["Properties"]
