"""The CloudFormation stack around the nodes, the nodes' ssh key, and the nodes themselves."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from cluster.load_balancer import LoadBalancer
from cluster.settings import ClusterError, Settings
from serve_app.console import say

STACK_TEMPLATE = Path(__file__).with_name("ec2-stack.yaml")


@dataclass(frozen=True)
class Node:
    """One EC2 instance of a Ray cluster."""

    cluster: str  # one per image
    role: str  # Ray's node type, `head` or `worker`
    group: str  # key in available_node_types of ec2.yaml
    instance_id: str
    instance_type: str
    address: str  # private IP address
    market: str  # `on-demand` or `spot`


class Account:
    """One installation of the service in one AWS account and region."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ssh_parameter, self.key_parameter = f"/{settings.name}/ssh-key", f"/{settings.name}/api-key"
        self._token_parameter = f"/{settings.name}/ray-token"
        session = boto3.Session(region_name=settings.region)
        self.cloudformation = session.client("cloudformation")
        self.ec2 = session.client("ec2")
        self.ssm = session.client("ssm")
        self.elb = session.client("elbv2")

    def put_stack(self) -> None:
        """Create the stack or update it, and wait until CloudFormation is done."""
        settings = self.settings
        stack = self._stack()
        if stack and stack["StackStatus"] == "ROLLBACK_COMPLETE":
            say("the stack was never created completely; deleting what is left of it")
            self.cloudformation.delete_stack(StackName=settings.name)
            self.cloudformation.get_waiter("stack_delete_complete").wait(StackName=settings.name)
            stack = None
        parameters = {
            "Name": settings.name,
            "Vpc": settings.vpc,
            "Subnets": ",".join(settings.subnets),
            "CertificateArn": settings.certificate,
            "ClientCidr": settings.client_cidr,
            "AlarmEmail": settings.alarm_email,
            "MonthlyBudget": settings.monthly_budget and str(settings.monthly_budget),
            # A stack keeps the endpoint that it began with: its own, or one that the VPC had.
            **(self._endpoint_in_vpc() if stack is None else endpoint_parameters(stack)),
        }
        present = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items() if value]
        request: dict[str, Any] = {
            "StackName": settings.name,
            "TemplateBody": STACK_TEMPLATE.read_text(),
            "Parameters": present,
            "Capabilities": ["CAPABILITY_IAM"],
        }
        if stack is None:
            self.cloudformation.create_stack(**request)
            self.cloudformation.get_waiter("stack_create_complete").wait(StackName=settings.name)
            return
        try:
            self.cloudformation.update_stack(**request)
        except ClientError as error:
            if "No updates" not in str(error):
                raise
        else:
            self.cloudformation.get_waiter("stack_update_complete").wait(StackName=settings.name)

    def outputs(self) -> dict[str, str]:
        """Return the stack's outputs by name; raise a ClusterError if the stack does not exist."""
        stack = self._stack()
        if stack is None:
            raise ClusterError(
                f"stack {self.settings.name} does not exist in {self.settings.region}: "
                "create it with `python -m cluster up`"
            )
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    def _stack(self) -> dict[str, Any] | None:
        try:
            return dict(self.cloudformation.describe_stacks(StackName=self.settings.name)["Stacks"][0])
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise

    def _endpoint_in_vpc(self) -> dict[str, str]:
        """Return the parameters for an Instance Connect endpoint that the VPC has already; empty without one.

        AWS allows one endpoint for each VPC.
        """
        found = self.ec2.describe_instance_connect_endpoints(
            Filters=[
                {"Name": "vpc-id", "Values": [self.settings.vpc]},
                {"Name": "state", "Values": ["create-complete"]},
            ]
        )["InstanceConnectEndpoints"]
        if not found:
            return {}
        endpoint = found[0]
        group = endpoint["SecurityGroupIds"][0]
        say(f"using the VPC's endpoint {endpoint['InstanceConnectEndpointId']}; its group {group} must allow ssh out")
        return {"Endpoint": endpoint["InstanceConnectEndpointId"], "EndpointGroup": group}

    def api_key(self) -> str | None:
        """Return the API key that page and tests send; None if Parameter Store has none."""
        try:
            value = self.ssm.get_parameter(Name=self.key_parameter, WithDecryption=True)["Parameter"]["Value"]
        except self.ssm.exceptions.ParameterNotFound:
            return None
        return str(value)

    def ray_token(self) -> str:
        """Return the token that Ray asks of every caller; it is made once, and the nodes read it with their role."""
        try:
            value = self.ssm.get_parameter(Name=self._token_parameter, WithDecryption=True)["Parameter"]["Value"]
        except self.ssm.exceptions.ParameterNotFound:
            value = secrets.token_hex(32)
            self.ssm.put_parameter(Name=self._token_parameter, Value=value, Type="SecureString")
        return str(value)

    def delete_stack(self) -> None:
        """Delete the stack, the ssh key and Ray's token, and wait until CloudFormation is done; the bucket stays."""
        self.cloudformation.delete_stack(StackName=self.settings.name)
        self.cloudformation.get_waiter("stack_delete_complete").wait(StackName=self.settings.name)
        self.ec2.delete_key_pair(KeyName=self.settings.name)
        self.ssm.delete_parameters(Names=[self._ssh_parameter, self._token_parameter])

    def write_private_key(self, folder: Path) -> Path:
        """Write the nodes' ssh key to a file that only its owner can read, and return its path.

        The key pair is created once. Its private half is stored encrypted in Parameter Store, so that every
        operator who may read that parameter can work on the same nodes.

        Raises:
            ClusterError: EC2 has the key pair, but Parameter Store does not have its private half.
        """
        name = self.settings.name
        try:
            private_key = self.ssm.get_parameter(Name=self._ssh_parameter, WithDecryption=True)["Parameter"]["Value"]
        except self.ssm.exceptions.ParameterNotFound:
            try:
                private_key = self.ec2.create_key_pair(KeyName=name, KeyType="ed25519")["KeyMaterial"]
            except ClientError as error:
                if error.response["Error"]["Code"] != "InvalidKeyPair.Duplicate":
                    raise
                raise ClusterError(
                    f"key pair {name} exists in EC2, but Parameter Store has no {self._ssh_parameter} with its "
                    "private half: delete the key pair, then run this command again"
                ) from None
            self.ssm.put_parameter(Name=self._ssh_parameter, Value=private_key, Type="SecureString")
        path = folder / f"{name}.pem"
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_text(private_key)
        return path

    def nodes(self) -> list[Node]:
        """Return the nodes of every image that are starting or running."""
        pages = self.ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {"Name": "tag:ray-cluster-name", "Values": [f"{self.settings.name}-*"]},
                {"Name": "instance-state-name", "Values": ["pending", "running"]},
            ]
        )
        nodes = []
        for instance in pages.search("Reservations[].Instances[]"):
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            cluster = tags["ray-cluster-name"]
            # The filter's * also matches clusters of another installation whose name starts like this one's.
            if re.fullmatch(rf"{self.settings.name}-[0-9a-f]{{12}}", cluster):
                role, group = tags["ray-node-type"], tags["ray-user-node-type"]
                host = instance["InstanceId"], instance["InstanceType"], instance["PrivateIpAddress"]
                nodes.append(Node(cluster, role, group, *host, instance.get("InstanceLifecycle", "on-demand")))
        return nodes

    def clusters(self) -> set[str]:
        """Return the names of the Ray clusters that have nodes."""
        return {node.cluster for node in self.nodes()}

    def move_clients_to(self, cluster: str) -> dict[str, list[str]]:
        """Make a cluster's head the load balancer's only target; return the former targets. See LoadBalancer.move."""
        return self.balancer().move(self.heads(cluster))

    def heads(self, cluster: str) -> dict[str, list[str]]:
        """Return a cluster's head for each target group in which it has to serve; no head if there is no page.

        Raises:
            ClusterError: The cluster has no head; without targets the load balancer would answer 503.
        """
        outputs = self.outputs()
        heads = [node.instance_id for node in self.nodes() if (node.cluster, node.role) == (cluster, "head")]
        if not heads:
            raise ClusterError(f"{cluster} has no running head: launch it with `python -m cluster up`")
        served = {"ApiTargets": heads, "PageTargets": heads if self.settings.page_image else []}
        return {outputs[name]: heads for name, heads in served.items() if name in outputs}

    def balancer(self) -> LoadBalancer:
        """Return the load balancer; it has no target groups if the settings name no certificate."""
        outputs = self.outputs()
        return LoadBalancer(self.elb, [outputs[name] for name in ("ApiTargets", "PageTargets") if name in outputs])

    def serves(self, cluster: str) -> bool:
        """Return whether the load balancer sends requests to a cluster, so that its nodes must not end."""
        targets = {head for heads in self.balancer().targets().values() for head in heads}
        return any(node.instance_id in targets for node in self.nodes() if node.cluster == cluster)


def endpoint_parameters(stack: dict[str, Any]) -> dict[str, str]:
    """Return a stack's parameters about the endpoint."""
    parameters = {each["ParameterKey"]: each["ParameterValue"] for each in stack.get("Parameters", [])}
    return {name: parameters[name] for name in ("Endpoint", "EndpointGroup") if name in parameters}
