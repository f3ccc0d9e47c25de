"""The stack around the nodes, the key that opens them, and where the load balancer sends clients."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from cluster.settings import ClusterError, Settings

TEMPLATE = Path(__file__).with_name("ec2-stack.yaml")


class Account:
    """One installation as AWS sees it."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is asked of AWS yet."""
        self.settings = settings
        session = boto3.Session(region_name=settings.region)
        self.cloudformation = session.client("cloudformation")
        self.ec2 = session.client("ec2")
        self.ssm = session.client("ssm")
        self.elb = session.client("elbv2")

    def put_stack(self) -> dict[str, str]:
        """Make the stack or bring it up to date; returns its outputs."""
        settings = self.settings
        parameters = {
            "Name": settings.name,
            "Vpc": settings.vpc,
            "Subnets": ",".join(settings.subnets),
            **({"CertificateArn": settings.certificate} if settings.certificate else {}),
            **({"ClientCidr": settings.client_cidr} if settings.client_cidr else {}),
        }
        request: dict[str, Any] = {
            "StackName": settings.name,
            "TemplateBody": TEMPLATE.read_text(),
            "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            "Capabilities": ["CAPABILITY_IAM"],
        }
        if self._stack() is None:
            self.cloudformation.create_stack(**request)
            self.cloudformation.get_waiter("stack_create_complete").wait(StackName=settings.name)
        else:
            try:
                self.cloudformation.update_stack(**request)
                self.cloudformation.get_waiter("stack_update_complete").wait(StackName=settings.name)
            except ClientError as error:
                if "No updates" not in str(error):
                    raise
        return self.outputs()

    def outputs(self) -> dict[str, str]:
        """What the stack has made.

        Raises:
            ClusterError: There is no stack.
        """
        stack = self._stack()
        if stack is None:
            raise ClusterError(
                f"no stack {self.settings.name} in {self.settings.region}: `python -m cluster up` makes it"
            )
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    def _stack(self) -> dict[str, Any] | None:
        try:
            return dict(self.cloudformation.describe_stacks(StackName=self.settings.name)["Stacks"][0])
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise

    def delete_stack(self) -> None:
        """Delete stack and key; the bucket stays."""
        self.cloudformation.delete_stack(StackName=self.settings.name)
        self.cloudformation.get_waiter("stack_delete_complete").wait(StackName=self.settings.name)
        self.ec2.delete_key_pair(KeyName=self.settings.name)
        self.ssm.delete_parameters(Names=[self._key_parameter])

    @property
    def _key_parameter(self) -> str:
        return f"/{self.settings.name}/ssh-key"

    def private_key(self, folder: Path) -> Path:
        """Write the key that opens the nodes to a file that only its owner reads.

        It is made once and kept encrypted in Parameter Store, so that every operator with the right to read it can
        work on the same nodes.

        Raises:
            ClusterError: The key pair exists but its private half does not.
        """
        name = self.settings.name
        try:
            material = self.ssm.get_parameter(Name=self._key_parameter, WithDecryption=True)["Parameter"]["Value"]
        except self.ssm.exceptions.ParameterNotFound:
            try:
                material = self.ec2.create_key_pair(KeyName=name, KeyType="ed25519")["KeyMaterial"]
            except ClientError as error:
                if error.response["Error"]["Code"] != "InvalidKeyPair.Duplicate":
                    raise
                raise ClusterError(
                    f"key pair {name} exists but its private half is not in {self._key_parameter}: delete the key pair"
                ) from None
            self.ssm.put_parameter(Name=self._key_parameter, Value=material, Type="SecureString")
        path = folder / f"{name}.pem"
        path.unlink(missing_ok=True)
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(material)
        return path

    def nodes(self) -> list[dict[str, str]]:
        """Every node that runs or starts: cluster, type, id, address and market."""
        pages = self.ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {"Name": "tag:ray-cluster-name", "Values": [f"{self.settings.name}-*"]},
                {"Name": "instance-state-name", "Values": ["pending", "running"]},
            ]
        )
        found = []
        for instance in (i for page in pages for each in page["Reservations"] for i in each["Instances"]):
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            if re.fullmatch(rf"{self.settings.name}-[0-9a-f]{{12}}", tags["ray-cluster-name"]):
                found.append(
                    {
                        "cluster": tags["ray-cluster-name"],
                        "kind": tags["ray-node-type"],
                        "type": tags["ray-user-node-type"],
                        "id": instance["InstanceId"],
                        "instance": instance["InstanceType"],
                        "address": instance["PrivateIpAddress"],
                        "market": instance.get("InstanceLifecycle", "on-demand"),
                    }
                )
        return found

    def clusters(self) -> set[str]:
        """Names of the Ray clusters that have nodes."""
        return {node["cluster"] for node in self.nodes()}

    def send_clients_to(self, cluster: str) -> None:
        """Let the load balancer know a cluster's head, and once it is healthy no other; nothing without a balancer."""
        outputs = self.outputs()
        heads = [{"Id": node["id"]} for node in self.nodes() if (node["cluster"], node["kind"]) == (cluster, "head")]
        wanted = ["ApiTargets", *(["PageTargets"] if self.settings.page_image else [])]
        for group in (outputs[name] for name in wanted if name in outputs):
            self.elb.register_targets(TargetGroupArn=group, Targets=heads)
            self.elb.get_waiter("target_in_service").wait(TargetGroupArn=group, Targets=heads)
            health = self.elb.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
            if others := [{"Id": each["Target"]["Id"]} for each in health if each["Target"]["Id"] != heads[0]["Id"]]:
                self.elb.deregister_targets(TargetGroupArn=group, Targets=others)
                self.elb.get_waiter("target_deregistered").wait(TargetGroupArn=group, Targets=others)
