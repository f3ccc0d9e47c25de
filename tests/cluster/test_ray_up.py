"""`ray up` and the stack against moto's AWS API; ssh and rsync are stand-ins that record their arguments."""

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
from cluster import aws, launcher
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
    """Adds the Instance Connect endpoint, which moto does not have."""

    def outputs(self) -> dict[str, str]:
        return {**super().outputs(), "Endpoint": "eice-0123456789abcdef0"}

    def _endpoint_in_vpc(self) -> dict[str, str]:
        return {}


@dataclass
class Launched:
    """What `ray up` leaves: the account, its config file, the folder of recorded commands."""

    account: MockedAccount
    config: Path
    recorded: Path

    def node(self, group: str) -> dict[str, Any]:
        """Return the only instance of a group of nodes, as EC2 describes it."""
        filters = [
            {"Name": "tag:ray-user-node-type", "Values": [group]},
            {"Name": "instance-state-name", "Values": ["running"]},
        ]
        ((instance,),) = [
            reservation["Instances"]
            for reservation in self.account.ec2.describe_instances(Filters=filters)["Reservations"]
        ]
        return dict(instance)

    def commands(self) -> list[str]:
        """Return the shell commands that ran on the head, in order."""
        return [json.loads(line)[-1] for line in (self.recorded / "commands").read_text().splitlines()]


@pytest.fixture(scope="module")
def mock_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """An empty account on a local port, and an environment in which every AWS client uses it."""
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
    pytest.fail("moto did not answer within 30 s")


@pytest.fixture(scope="module")
def launched(mock_aws: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Stack and head, created by the code of `python -m cluster up`; no host is behind the head's address."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("ssh", "rsync"):
        (folder / name).write_text(RECORDER.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    mock_aws.setenv("PATH", str(folder), prepend=":")
    mock_aws.setattr(cli, "WORK_FOLDER", tmp_path_factory.mktemp("work"))
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
    template = tmp_path_factory.mktemp("stack") / "ec2-stack.yaml"
    known = aws.STACK_TEMPLATE.read_text().replace("RetainExceptOnCreate", "Retain")  # moto knows the older one only
    template.write_text(known)
    mock_aws.setattr(aws, "STACK_TEMPLATE", template)
    account = MockedAccount(settings)
    account.put_stack()
    account.ray_token()
    config = cli.write_ray_config(account, settings.cluster)
    launcher.run_ray("up", "--yes", "--no-restart", "--no-config-cache", config)
    return Launched(account, config, folder)


def test_the_head_is_launched_as_configured(launched: Launched) -> None:
    """EC2 has its type, AMI, subnet, security group, role, key, IMDSv2, encrypted gp3 disk, on demand."""
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
    ("group", "instance_type", "lifecycle"),
    [
        ("gpu", "g6.2xlarge", None),
        ("cpu", "c7i.2xlarge", None),
        ("gpu-spot", "g6.2xlarge", "spot"),
        ("cpu-spot", "c7i.2xlarge", "spot"),
    ],
)
def test_workers_are_launched_as_configured(
    launched: Launched, group: str, instance_type: str, lifecycle: str | None
) -> None:
    """Ray's node provider launches each group from the config that `ray up` leaves on the head."""
    from ray.autoscaler._private.providers import _get_node_provider

    config = json.loads((launched.recorded / "ray_bootstrap_config.yaml").read_text())
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    tags = {"ray-user-node-type": group, "ray-node-type": "worker"}
    provider.create_node(config["available_node_types"][group]["node_config"], tags, 1)
    worker, outputs = launched.node(group), launched.account.outputs()
    assert (worker["InstanceType"], worker.get("InstanceLifecycle")) == (instance_type, lifecycle)
    assert worker["IamInstanceProfile"]["Arn"].endswith(f"/{outputs['WorkerProfile']}")
    assert [security_group["GroupId"] for security_group in worker["SecurityGroups"]] == [outputs["SecurityGroup"]]
    check_metadata_and_disk(launched, worker)


def test_the_head_reaches_workers_directly_and_its_key_is_private(launched: Launched) -> None:
    """The head's config has no proxy command; the operator's key file is readable by its owner only."""
    auth = json.loads((launched.recorded / "ray_bootstrap_config.yaml").read_text())["auth"]
    assert auth == {"ssh_user": "ubuntu", "ssh_private_key": "~/ray_bootstrap_key.pem"}
    key = Path(yaml.safe_load(launched.config.read_text())["auth"]["ssh_private_key"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_ssh_goes_through_the_endpoint(launched: Launched) -> None:
    """Every ssh and rsync command has the Instance Connect tunnel as its proxy."""
    lines = [json.loads(line) for line in (launched.recorded / "commands").read_text().splitlines()]
    expected = (
        f"ProxyCommand=aws ec2-instance-connect open-tunnel --region {REGION} "
        "--instance-connect-endpoint-id eice-0123456789abcdef0 --private-ip-address %h"
    )
    assert all(expected in line or any(expected in part for part in line) for line in lines)


def test_the_head_runs_our_image_and_then_ray(launched: Launched) -> None:
    """The container has configs/ray.env and no capabilities; nothing is installed with pip."""
    commands = launched.commands()
    (run,) = [command for command in commands if "docker run --rm --name serve" in command]
    assert f" --net=host {IMAGE} bash" in run
    assert all(shlex.quote(f"--env={name}={value}") in run for name, value in launcher.node_environment().items())
    assert "--cap-drop=ALL" in run
    (start,) = [command for command in commands if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert commands.index(run) < commands.index(start)
    assert not [command for command in commands if "pip install" in command]


def test_ray_creates_no_role_group_or_key_of_its_own(launched: Launched) -> None:
    """Ray's defaults (a role with full access, a security group open to the world, a key) are not created."""
    account = launched.account
    groups = {group["GroupName"] for group in account.ec2.describe_security_groups()["SecurityGroups"]}
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    keys = {key["KeyName"] for key in account.ec2.describe_key_pairs()["KeyPairs"]}
    assert not [name for name in groups | roles if "ray-autoscaler" in name]
    assert keys == {"classify"}


def test_only_nodes_endpoint_and_load_balancer_reach_the_nodes(launched: Launched) -> None:
    """No rule of the nodes' security group names an address; ports 22, 8000 and 8501 name another group."""
    group = launched.account.outputs()["SecurityGroup"]
    (described,) = launched.account.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert not [rule for rule in described["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    ports = {
        (rule.get("FromPort"), rule.get("ToPort")): rule["UserIdGroupPairs"] for rule in described["IpPermissions"]
    }
    assert [pair["GroupId"] for pair in ports.pop((None, None), ports.pop((-1, -1), []))] == [group]
    assert set(ports) == {(22, 22), (8000, 8000), (8501, 8501)}
    assert group not in {pair["GroupId"] for pairs in ports.values() for pair in pairs}


def test_roles_are_limited_to_the_stacks_own_nodes(launched: Launched) -> None:
    """The head may end only instances with the stack's tag, and start only ones that require IMDSv2."""
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
    """Return a policy's statements; moto returns some policies as text where AWS returns objects."""
    # moto's text is JSON or a Python literal, depending on its version; YAML reads both.
    return list((yaml.safe_load(document) if isinstance(document, str) else document)["Statement"])


def test_clients_use_tls_and_reach_the_head(launched: Launched) -> None:
    """The only listener is HTTPS on 443 with the settings' certificate; the head is the only target."""
    elb, outputs = launched.account.elb, launched.account.outputs()
    (balancer,) = elb.describe_load_balancers()["LoadBalancers"]
    (listener,) = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert listener["Certificates"][0]["CertificateArn"] == launched.account.settings.certificate
    launched.account.move_clients_to(launched.account.settings.cluster)
    health = elb.describe_target_health(TargetGroupArn=outputs["ApiTargets"])["TargetHealthDescriptions"]
    assert [description["Target"]["Id"] for description in health] == [launched.node("head")["InstanceId"]]


def test_another_operator_gets_the_same_key(launched: Launched, tmp_path: Path) -> None:
    """The private key comes from Parameter Store, also where no key file exists yet."""
    first = Path(yaml.safe_load(launched.config.read_text())["auth"]["ssh_private_key"])
    assert launched.account.write_private_key(tmp_path).read_text() == first.read_text()


def test_every_operator_has_the_same_token_and_no_command_contains_it(launched: Launched) -> None:
    """Parameter Store keeps it encrypted; neither ssh nor the config that Ray leaves on the head contains it."""
    token = launched.account.ray_token()
    assert launched.account.ray_token() == token
    ssm = launched.account.ssm
    assert ssm.get_parameter(Name="/classify/ray-token")["Parameter"]["Type"] == "SecureString"
    assert not [path for path in launched.recorded.iterdir() if token in path.read_text()]
    assert token not in launched.config.read_text()


def test_down_leaves_the_bucket_and_nothing_else(launched: Launched) -> None:
    """Ends nodes, stack, key and token. Last in this file, because the other tests read what it deletes."""
    account, bucket = launched.account, launched.account.outputs()["Bucket"]
    launcher.run_ray("down", "--yes", launched.config)
    assert account.nodes() == []
    account.delete_stack()
    with pytest.raises(ClusterError, match="stack classify does not exist"):
        account.outputs()
    assert account.ec2.describe_key_pairs()["KeyPairs"] == []
    assert account.ssm.describe_parameters()["Parameters"] == []
    assert bucket in {listed["Name"] for listed in boto3.client("s3").list_buckets()["Buckets"]}
