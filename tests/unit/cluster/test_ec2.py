"""cluster/: settings, the launcher's config, costs, the stack's template, the order of an update."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cfnlint
import pytest
import yaml

from cluster import __main__ as cli
from cluster import aws, costs, launcher
from cluster.settings import ClusterError, Settings, read_settings

DIGEST = "0123456789abcdef" * 4
FOUND = {
    "name": "classify",
    "region": "us-east-1",
    "image": f"registry.example.com/serve@sha256:{DIGEST}",
    "ami": "ami-0123456789abcdef0",
    "vpc": "vpc-0123456789abcdef0",
    "subnets": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"],
}
OUTPUTS = {
    "Bucket": "bucket",
    "Endpoint": "eice-0123456789abcdef0",
    "SecurityGroup": "sg-0123456789abcdef0",
    "HeadProfile": "head",
    "WorkerProfile": "worker",
}


@pytest.fixture
def settings() -> Settings:
    return Settings(**FOUND)


@pytest.fixture
def config(settings: Settings) -> dict[str, Any]:
    return launcher.render(settings, OUTPUTS, Path("/key.pem"), settings.cluster)


# ---- settings


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in (FOUND | changes).items() if value is not None}))
    return path


def test_the_example_names_every_setting() -> None:
    text = Path(aws.TEMPLATE.with_name("settings.example.yaml")).read_text()
    names = {line.removeprefix("# ").partition(":")[0] for line in text.splitlines() if ": " in line}
    assert set(Settings.model_fields) <= names


def test_a_flag_replaces_what_the_file_says(tmp_path: Path) -> None:
    other = FOUND["image"].replace("0123", "ffff")
    assert read_settings(write(tmp_path), [f"image={other}"]).image == other


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ami": None}, "ami is missing: wanted is a pinned image id"),
        ({"image": "registry.example.com/serve:latest"}, "image is malformed: wanted is an image by digest"),
        ({"subnets": ["subnet-0123456789abcdef0"]}, "subnets is malformed: wanted is a list of two"),
        ({"color": "red"}, "color is no setting: there are name, region"),
        ({"certificate": "arn:aws:acm:x"}, "certificate and client_cidr belong together"),
    ],
)
def test_wrong_settings_end_in_one_sentence(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ClusterError, match=says) as error:
        read_settings(write(tmp_path, **changes))
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"copy cluster/settings\.example\.yaml there"):
        read_settings(tmp_path / "none.yaml")


# ---- what Ray gets


def test_ray_accepts_the_config_and_no_placeholder_is_left(config: dict[str, Any]) -> None:
    launcher.check(config)
    assert "${" not in json.dumps(config)


def test_a_config_that_ray_refuses_is_named(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(ClusterError, match=r"ec2\.yaml: Ray refuses it: .*max_worker"):
        launcher.check(config)


def test_a_stack_without_an_output_is_named(settings: Settings) -> None:
    with pytest.raises(ClusterError, match="has no output 'Endpoint'"):
        launcher.render(settings, {}, Path("/key.pem"), settings.cluster)


def test_every_disk_is_encrypted_and_the_metadata_service_wants_a_token(config: dict[str, Any]) -> None:
    for group in config["available_node_types"].values():
        node = group["node_config"]
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert [(disk["Ebs"]["VolumeType"], disk["Ebs"]["Encrypted"]) for disk in node["BlockDeviceMappings"]] == [
            ("gp3", True)
        ]
        assert node["SecurityGroupIds"] == [OUTPUTS["SecurityGroup"]]


def test_only_workers_are_spot_and_only_the_head_may_launch(config: dict[str, Any]) -> None:
    groups = config["available_node_types"]
    assert {name for name, group in groups.items() if "InstanceMarketOptions" in group["node_config"]} == {
        "gpu-spot",
        "cpu-spot",
    }
    profiles = {name: group["node_config"]["IamInstanceProfile"]["Name"] for name, group in groups.items()}
    assert profiles == {"head": "head", "gpu": "worker", "gpu-spot": "worker", "cpu-spot": "worker"}


def test_no_replica_fits_on_the_head(config: dict[str, Any]) -> None:
    """It offers no CPU, and every replica of the production config asks for one."""
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (app,) = yaml.safe_load((launcher.ROOT / "configs" / "production.yaml").read_text())["applications"]
    assert all(deployment["ray_actor_options"]["num_cpus"] >= 1 for deployment in app["deployments"])


def test_the_dashboard_listens_on_the_head_only(config: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []


def test_ray_env_is_in_every_container(config: dict[str, Any]) -> None:
    options = shlex.split(" ".join(config["docker"]["run_options"]))
    assert "--env=RAY_SERVE_ENABLE_HA_PROXY=1" in options
    assert {f"--env={name}={value}" for name, value in launcher.read_ray_env().items()} <= set(options)


def test_a_missing_program_is_named_before_anything_is_launched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="`aws` is not on PATH: install the AWS command line, version 2"):
        launcher.check_tools()


# ---- costs


def test_the_cost_table_adds_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One head at 1 $ and two to four workers at 2 $, each with a disk of 730 GB at 1 $ a GB and month."""
    prices = {"date": "D", "region": "r", "instance_hour": {"h": 1, "w": 2}, "gp3_gb_month": 1}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
    monkeypatch.setattr(costs, "PRICES", tmp_path / "prices.yaml")
    disk = {"BlockDeviceMappings": [{"Ebs": {"VolumeSize": 730}}]}
    groups = {
        "head": {"node_config": {"InstanceType": "h", **disk}},
        "work": {"node_config": {"InstanceType": "w", **disk}, "min_workers": 2, "max_workers": 4},
    }
    table = costs.cost_table({"head_node_type": "head", "available_node_types": groups}, "r2", load_balancer=False)
    assert table.splitlines()[-2].split() == ["per", "hour", "$8.00", "$14.00"]
    assert table.endswith("on-demand prices of r, D; r2 differs")


def test_every_instance_type_has_a_price() -> None:
    assert "per hour" in costs.cost_table(launcher.template(), "us-east-1", load_balancer=True)
    config = launcher.template()
    config["available_node_types"]["gpu"]["node_config"]["InstanceType"] = "z9.tiny"
    with pytest.raises(ClusterError, match=r"no price for z9\.tiny .*: add it to instance_hour"):
        costs.cost_table(config, "us-east-1", load_balancer=True)


# ---- the stack's template


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return dict(cfnlint.decode.cfn_yaml.load(str(aws.TEMPLATE))["Resources"])


def test_cloudformation_accepts_the_template() -> None:
    """By its own linter; aliases and merge keys, which it would refuse, included."""
    found = cfnlint.api.lint_file(aws.TEMPLATE)
    assert [str(each) for each in found] == []


def test_only_the_load_balancer_is_open_to_addresses(resources: dict[str, Any]) -> None:
    """Every other way in names a security group as its source; 443 is the load balancer's only port."""
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
    among = {name: rule.get("FromPort") for name, rule in rules if "SourceSecurityGroupId" in rule}
    assert among.pop("AmongNodes") is None
    assert among == {"OperatorSsh": 22, "FromLoadBalancerToApi": 8000, "FromLoadBalancerToPage": 8501}


def test_roles_name_actions_and_only_looking_is_unbounded(resources: dict[str, Any]) -> None:
    documents = [policy["PolicyDocument"] for policy in resources["HeadRole"]["Properties"]["Policies"]]
    documents.append(resources["ReadWeightsWriteLogs"]["Properties"]["PolicyDocument"])
    for statement in (each for document in documents for each in document["Statement"]):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert actions == ["ec2:DescribeInstances"]
    assert "Policies" not in resources["WorkerRole"]["Properties"]


def test_the_bucket_is_private_encrypted_and_outlives_the_stack(resources: dict[str, Any]) -> None:
    bucket = resources["Bucket"]
    assert bucket["DeletionPolicy"] == "Retain"
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketEncryption" in bucket["Properties"]


# ---- the order of things


class FakeAccount:
    """AWS with one older cluster that serves."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.running = {"classify-aaaaaaaaaaaa"}
        self.entry = "classify-aaaaaaaaaaaa"

    def put_stack(self) -> dict[str, str]:
        return OUTPUTS

    outputs = put_stack

    def clusters(self) -> set[str]:
        return set(self.running)

    def private_key(self, folder: Path) -> Path:
        return folder / "key.pem"

    def send_clients_to(self, cluster: str) -> None:
        self.entry = cluster


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings) -> FakeAccount:
    """`ray up` and `ray down` change the fake; `calls` on it is what happened."""
    made = FakeAccount(settings)

    def ray(command: str, config: Path, *_arguments: str) -> None:
        (made.running.add if command == "up" else made.running.discard)(config.stem)

    monkeypatch.setattr(cli, "Account", lambda _settings: made)
    monkeypatch.setattr(cli, "FOLDER", tmp_path / "made")
    monkeypatch.setattr(launcher, "ray", ray)
    monkeypatch.setattr(launcher, "check_tools", lambda: None)
    return made


UP = argparse.Namespace(yes=True, keep=False, config=Path("production.yaml"))


def test_an_update_ends_older_nodes_after_clients_have_moved(
    monkeypatch: pytest.MonkeyPatch, account: FakeAccount, settings: Settings
) -> None:
    seen = []
    monkeypatch.setattr(launcher, "deploy", lambda *_: seen.append((account.entry, set(account.running))))
    cli.up(settings, UP)
    assert seen == [("classify-aaaaaaaaaaaa", {"classify-aaaaaaaaaaaa", settings.cluster})]
    assert (account.entry, account.running) == (settings.cluster, {settings.cluster})


@pytest.mark.parametrize("keep", [False, True])
def test_a_failed_update_leaves_the_older_nodes_serving(
    monkeypatch: pytest.MonkeyPatch, account: FakeAccount, settings: Settings, keep: bool
) -> None:
    def fail(*_: Any) -> None:
        raise ClusterError("not deployed")

    monkeypatch.setattr(launcher, "deploy", fail)
    with pytest.raises(ClusterError, match="not deployed"):
        cli.up(settings, argparse.Namespace(yes=True, keep=keep, config=Path("production.yaml")))
    assert account.entry == "classify-aaaaaaaaaaaa"
    assert account.running == {"classify-aaaaaaaaaaaa"} | ({settings.cluster} if keep else set())


def test_nothing_is_launched_without_consent(account: FakeAccount, settings: Settings) -> None:
    with pytest.raises(ClusterError, match="add --yes"):
        cli.up(settings, argparse.Namespace(yes=False, keep=False, config=Path("production.yaml")))
    assert account.running == {"classify-aaaaaaaaaaaa"}


def test_deploy_needs_the_image_to_run(account: FakeAccount, settings: Settings) -> None:
    with pytest.raises(ClusterError, match=f"{settings.cluster} does not run .running: classify-aaaaaaaaaaaa"):
        cli.deploy(settings, argparse.Namespace(dry_run=False, config=Path("production.yaml")))


@pytest.mark.parametrize("code", [0, 1])
def test_a_config_goes_through_tunnels_to_the_deploy_command(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Its exit code decides."""
    commands = []

    @contextmanager
    def tunnel(_config: Path, port: int) -> Any:
        yield f"http://127.0.0.1:1{port}"

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(launcher, "tunnel", tunnel)
    monkeypatch.setattr(subprocess, "run", run)
    if code:
        with pytest.raises(ClusterError, match=r"p\.yaml was not deployed"):
            launcher.deploy(Path("c.yaml"), Path("p.yaml"))
    else:
        launcher.deploy(Path("c.yaml"), Path("p.yaml"), "--dry-run")
        expected = (
            "-m serve_app.release.deploy p.yaml --address http://127.0.0.1:18265 --api http://127.0.0.1:18000 --dry-run"
        )
        assert " ".join(commands[0]) == expected
