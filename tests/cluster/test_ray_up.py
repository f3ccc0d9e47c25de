"""Ray's own launcher and our stack against a mock of AWS; ssh and rsync are stand-ins that write down what they get."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import EndpointConnectionError

from cluster import __main__ as cli
from cluster import launcher
from cluster.aws import Account
from cluster.settings import ClusterError, Settings
from serve_app.launcher.environment import free_port

REGION = "us-west-2"
IMAGE = "registry.example.com/serve@sha256:" + "0123456789abcdef" * 4
RECORDER = """#!{python}
import json, os, pathlib, shutil, sys
folder = pathlib.Path({folder!r})
with open(folder / "commands", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[0].endswith("rsync"):
    shutil.copy(sys.argv[-2], folder / pathlib.Path(sys.argv[-1]).name)
if ".Config.Env" in sys.argv[-1]:
    print("[]")
"""


class MockedAccount(Account):
    """The mock knows no Instance Connect endpoint."""

    def outputs(self) -> dict[str, str]:
        return {**super().outputs(), "Endpoint": "eice-0123456789abcdef0"}


@dataclass
class Launched:
    """What `ray up` has left behind."""

    account: MockedAccount
    config: Path
    recorded: Path

    def node(self, kind: str) -> dict[str, Any]:
        """The one instance of a node type, as EC2 describes it."""
        filters = [
            {"Name": "tag:ray-user-node-type", "Values": [kind]},
            {"Name": "instance-state-name", "Values": ["running"]},
        ]
        ((instance,),) = [
            each["Instances"] for each in self.account.ec2.describe_instances(Filters=filters)["Reservations"]
        ]
        return dict(instance)

    def commands(self) -> list[str]:
        """What was run on the head, in order."""
        return [json.loads(line)[-1] for line in (self.recorded / "commands").read_text().splitlines()]


@pytest.fixture(scope="module")
def mock_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """An empty account on a port of this machine, and an environment that leads there and nowhere else."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "mock",
            "AWS_SECRET_ACCESS_KEY": "mock",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
            "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
            "HOME": str(tmp_path_factory.mktemp("home")),
        }.items():
            patch.setenv(name, value)
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_aws()
            yield patch
        finally:
            server.terminate()
            server.wait()


def wait_for_aws() -> None:
    for _ in range(300):
        try:
            boto3.client("ec2").describe_regions()
            return
        except EndpointConnectionError:
            time.sleep(0.1)
    pytest.fail("the mock did not start")


@pytest.fixture(scope="module")
def launched(mock_aws: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Stack and head, made as `python -m cluster up` makes them, without a host behind the head's address."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("ssh", "rsync"):
        (folder / name).write_text(RECORDER.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    mock_aws.setenv("PATH", str(folder), prepend=":")
    mock_aws.setattr(cli, "FOLDER", tmp_path_factory.mktemp("made"))
    ec2 = boto3.client("ec2")
    settings = Settings(
        name="classify",
        region=REGION,
        image=IMAGE,
        ami=ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        vpc=ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
        subnets=tuple(subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]),
        certificate=boto3.client("acm").request_certificate(DomainName="classify.example.com")["CertificateArn"],
        client_cidr="0.0.0.0/0",
    )
    account = MockedAccount(settings)
    account.put_stack()
    config = cli.ray_config(account, settings.cluster)
    launcher.ray("up", config, "--yes", "--no-restart", "--no-config-cache")
    return Launched(account, config, folder)


def test_the_head_is_what_we_claim(launched: Launched) -> None:
    """Type, image, subnet, group, role, key, IMDSv2, encrypted gp3, on demand."""
    head, settings, outputs = launched.node("head"), launched.account.settings, launched.account.outputs()
    assert (head["InstanceType"], head["ImageId"], head["KeyName"]) == ("m7i.xlarge", settings.ami, "classify")
    assert head["SubnetId"] in settings.subnets
    assert [group["GroupId"] for group in head["SecurityGroups"]] == [outputs["SecurityGroup"]]
    assert head["IamInstanceProfile"]["Arn"].endswith(f"/{outputs['HeadProfile']}")
    assert "InstanceLifecycle" not in head
    check_metadata_and_disk(launched, head)
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert (tags["ray-cluster-name"], tags["ray-node-type"]) == (settings.cluster, "head")
    assert tags["ray-node-status"] == "up-to-date"


def check_metadata_and_disk(launched: Launched, instance: dict[str, Any]) -> None:
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    volumes = [mapping["Ebs"]["VolumeId"] for mapping in instance["BlockDeviceMappings"]]
    (volume,) = launched.account.ec2.describe_volumes(VolumeIds=volumes)["Volumes"]
    assert (volume["VolumeType"], volume["Size"], volume["Encrypted"]) == ("gp3", 150, True)


@pytest.mark.parametrize(
    ("kind", "instance_type", "lifecycle"),
    [("gpu", "g6.2xlarge", None), ("gpu-spot", "g6.2xlarge", "spot"), ("cpu-spot", "c7i.2xlarge", "spot")],
)
def test_workers_are_what_we_claim(launched: Launched, kind: str, instance_type: str, lifecycle: str | None) -> None:
    """Launched through Ray's own node provider with the config that `ray up` has left on the head."""
    from ray.autoscaler._private.providers import _get_node_provider

    config = json.loads((launched.recorded / "ray_bootstrap_config.yaml").read_text())
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    tags = {"ray-user-node-type": kind, "ray-node-type": "worker"}
    provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    worker, outputs = launched.node(kind), launched.account.outputs()
    assert (worker["InstanceType"], worker.get("InstanceLifecycle")) == (instance_type, lifecycle)
    assert worker["IamInstanceProfile"]["Arn"].endswith(f"/{outputs['WorkerProfile']}")
    assert [group["GroupId"] for group in worker["SecurityGroups"]] == [outputs["SecurityGroup"]]
    check_metadata_and_disk(launched, worker)


def test_the_head_reaches_workers_directly_and_keeps_its_key_to_itself(launched: Launched) -> None:
    auth = json.loads((launched.recorded / "ray_bootstrap_config.yaml").read_text())["auth"]
    assert auth == {"ssh_user": "ubuntu", "ssh_private_key": "~/ray_bootstrap_key.pem"}
    key = Path(yaml.safe_load(launched.config.read_text())["auth"]["ssh_private_key"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_ssh_goes_through_the_endpoint(launched: Launched) -> None:
    lines = [json.loads(line) for line in (launched.recorded / "commands").read_text().splitlines()]
    expected = (
        f"ProxyCommand=aws ec2-instance-connect open-tunnel --region {REGION} "
        "--instance-connect-endpoint-id eice-0123456789abcdef0 --private-ip-address %h"
    )
    assert all(expected in line or any(expected in part for part in line) for line in lines)


def test_the_head_runs_our_image_and_then_ray(launched: Launched) -> None:
    commands = launched.commands()
    (run,) = [command for command in commands if "docker run" in command]
    assert f" --net=host {IMAGE} bash" in run
    assert all(shlex.quote(f"--env={name}={value}") in run for name, value in launcher.read_ray_env().items())
    assert "--cap-drop=ALL" in run
    (start,) = [command for command in commands if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert commands.index(run) < commands.index(start)
    assert not [command for command in commands if "pip install" in command]


def test_ray_makes_nothing_of_its_own_around_the_nodes(launched: Launched) -> None:
    """No default role with full access, no default group open to the world, no key of Ray's."""
    account = launched.account
    groups = {group["GroupName"] for group in account.ec2.describe_security_groups()["SecurityGroups"]}
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    keys = {key["KeyName"] for key in account.ec2.describe_key_pairs()["KeyPairs"]}
    assert not [name for name in groups | roles if "ray-autoscaler" in name]
    assert keys == {"classify"}


def test_only_nodes_endpoint_and_load_balancer_reach_the_nodes(launched: Launched) -> None:
    group = launched.account.outputs()["SecurityGroup"]
    (found,) = launched.account.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert not [rule for rule in found["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    ports = {(rule.get("FromPort"), rule.get("ToPort")): rule["UserIdGroupPairs"] for rule in found["IpPermissions"]}
    assert [pair["GroupId"] for pair in ports.pop((None, None), ports.pop((-1, -1), []))] == [group]
    assert set(ports) == {(22, 22), (8000, 8000), (8501, 8501)}
    assert group not in {pair["GroupId"] for pairs in ports.values() for pair in pairs}


def test_roles_are_bounded_to_the_stacks_own_nodes(launched: Launched) -> None:
    iam, outputs = boto3.client("iam"), launched.account.outputs()
    policies = {}
    for name in ("HeadProfile", "WorkerProfile"):
        (role,) = iam.get_instance_profile(InstanceProfileName=outputs[name])["InstanceProfile"]["Roles"]
        policies[name] = {
            policy: statements(iam.get_role_policy(RoleName=role["RoleName"], PolicyName=policy)["PolicyDocument"])
            for policy in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        }
        assert iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"] == []
    assert set(policies["WorkerProfile"]) == {"data"}
    assert set(policies["HeadProfile"]) == {"autoscaler", "data"}
    by_sid = {statement["Sid"]: statement for statement in policies["HeadProfile"]["autoscaler"]}
    own = {"StringLike": {"aws:ResourceTag/ray-cluster-name": "classify-*"}}
    assert by_sid["TagAndEndOwnNodes"]["Condition"] == own
    assert by_sid["StartOwnWorkers"]["Condition"]["StringEquals"] == {"ec2:MetadataHttpTokens": "required"}


def statements(document: Any) -> list[dict[str, Any]]:
    """The mock hands some policies out as text, AWS itself as objects."""
    # Its text is JSON or Python's own, by version; YAML reads both.
    return list((yaml.safe_load(document) if isinstance(document, str) else document)["Statement"])


def test_clients_come_by_tls_and_reach_the_head(launched: Launched) -> None:
    elb, outputs = launched.account.elb, launched.account.outputs()
    (balancer,) = elb.describe_load_balancers()["LoadBalancers"]
    (listener,) = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert listener["Certificates"][0]["CertificateArn"] == launched.account.settings.certificate
    launched.account.send_clients_to(launched.account.settings.cluster)
    health = elb.describe_target_health(TargetGroupArn=outputs["ApiTargets"])["TargetHealthDescriptions"]
    assert [each["Target"]["Id"] for each in health] == [launched.node("head")["InstanceId"]]


def test_another_operator_gets_the_same_key(launched: Launched, tmp_path: Path) -> None:
    first = Path(yaml.safe_load(launched.config.read_text())["auth"]["ssh_private_key"])
    assert launched.account.private_key(tmp_path).read_text() == first.read_text()


def test_down_leaves_the_bucket_and_nothing_else(launched: Launched) -> None:
    """Last in this file: it ends what the others look at."""
    account, bucket = launched.account, launched.account.outputs()["Bucket"]
    launcher.ray("down", launched.config, "--yes")
    assert account.nodes() == []
    account.delete_stack()
    with pytest.raises(ClusterError, match="no stack classify"):
        account.outputs()
    assert account.ec2.describe_key_pairs()["KeyPairs"] == []
    assert bucket in {each["Name"] for each in boto3.client("s3").list_buckets()["Buckets"]}
