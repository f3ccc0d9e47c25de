"""cluster/launcher.py: the config that Ray gets, and how a Serve config reaches the head."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import with_envs

from cluster import launcher
from cluster.settings import ClusterError, Settings
from tests.support.configs import required_capacity
from tests.support.paths import ROOT
from tests.support.polling import wait_for

# Stand-ins: `docker` lists containers or prints its arguments and key, `aws` prints a secret.
STUBS = (
    'docker() {{ case $1 in ps) {};; run) echo "$@"; echo "key: $API_KEY";; esac; }}; '
    'aws() {{ shift 2; echo "secret of $1 $2 $3 $4"; }}; '
)


def test_ray_accepts_the_config_and_no_placeholder_is_left(config: dict[str, Any]) -> None:
    """Ray's own validation passes, and every ${…} of ec2.yaml has a value."""
    assert launcher.validate(config) is config
    assert not re.search(r"\$\{\w+\}", json.dumps(config))


def test_the_error_names_the_key_that_ray_rejects(config: dict[str, Any]) -> None:
    """A misspelled key of ec2.yaml is in the error, with the file's name."""
    config["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(ClusterError, match=r"ec2\.yaml: Ray rejects it: .*max_worker"):
        launcher.validate(config)


def test_the_error_names_the_output_that_the_stack_lacks(settings: Settings) -> None:
    """An outdated stack is reported, with the command that updates it, before Ray gets anything."""
    with pytest.raises(ClusterError, match=r"'Endpoint' is neither .*stack classify: .*python -m cluster up"):
        launcher.render_config(settings, {}, Path("/key.pem"), settings.cluster)


def test_disks_are_encrypted_and_the_metadata_service_requires_tokens(
    config: dict[str, Any], outputs: dict[str, str]
) -> None:
    """Holds for every group of nodes, and each is in the stack's security group."""
    for group in config["available_node_types"].values():
        node = group["node_config"]
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert [(disk["Ebs"]["VolumeType"], disk["Ebs"]["Encrypted"]) for disk in node["BlockDeviceMappings"]] == [
            ("gp3", True)
        ]
        assert node["SecurityGroupIds"] == [outputs["SecurityGroup"]]


def test_only_workers_are_spot_and_only_the_head_may_launch(config: dict[str, Any]) -> None:
    """The head, a GPU node and a CPU node are on demand; only the head has the role that starts instances."""
    groups = config["available_node_types"]
    assert {name for name, group in groups.items() if "InstanceMarketOptions" in group["node_config"]} == {
        "gpu-spot",
        "cpu-spot",
    }
    profiles = {name: group["node_config"]["IamInstanceProfile"]["Name"] for name, group in groups.items()}
    assert profiles == {"head": "head"} | dict.fromkeys(("gpu", "cpu", "gpu-spot", "cpu-spot"), "worker")


def test_on_demand_nodes_hold_every_replica_and_one_more_during_an_update(config: dict[str, Any]) -> None:
    """Without any spot node, and without waiting for a node to start."""
    size = {"g6.2xlarge": {"num_cpus": 8.0, "num_gpus": 1.0}, "c7i.2xlarge": {"num_cpus": 8.0, "num_gpus": 0.0}}
    nodes = [
        dict(size[group["node_config"]["InstanceType"]])
        for group in config["available_node_types"].values()
        for _ in range(group.get("min_workers", 0))
        if "InstanceMarketOptions" not in group["node_config"]
    ]
    (app,) = yaml.safe_load((ROOT / "configs" / "production.yaml").read_text())["applications"]
    requests = []
    for deployment in app["deployments"]:
        replicas = deployment.get("autoscaling_config", {"min_replicas": 1})["min_replicas"]
        surge = math.ceil(replicas * deployment.get("max_surge_percent", 100) / 100)
        assert replicas + surge <= len(nodes) * deployment.get("max_replicas_per_node", math.inf)
        requests += [deployment["ray_actor_options"]] * (replicas + surge)
    # Where each replica lands is Ray's choice, which spreads them; this shows that there is a place for each.
    for request in sorted(requests, key=lambda request: -request.get("num_gpus", 0)):
        fits = [node for node in nodes if all(node[name] + 1e-9 >= amount for name, amount in request.items())]
        assert fits, f"no room for {request} in {nodes}"
        node = min(fits, key=lambda node: node["num_gpus"])
        for name, amount in request.items():
            node[name] -= amount


def test_a_worker_watches_for_the_notice_of_its_end(config: dict[str, Any], tmp_path: Path) -> None:
    """The command returns at once, as Ray's launcher runs it, and a second one starts no second watcher."""
    command = config["worker_start_ray_commands"][-1].replace("/tmp/", f"{tmp_path}/")
    logs = tmp_path / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" $$\nexec sleep 60\n')
    (tmp_path / "python").chmod(0o755)
    (start,) = with_envs([command], {"RAY_HEAD_IP": "10.0.0.2", "PATH": f"{tmp_path}:$PATH"})
    for _ in range(2):
        subprocess.run(" ".join(_with_interactive(start)), shell=True, check=True, capture_output=True, timeout=30)
    started = wait_for((logs / "spot_notice.log").read_text, 20)
    os.kill(int(started.split()[-1]), signal.SIGTERM)
    assert re.fullmatch(r"-m serve_app\.launcher\.spot_notice 10\.0\.0\.2:6379 \d+\n", started)


@pytest.mark.parametrize(("running", "starts"), [("echo 1", True), (":", True), (":", False)])
def test_a_node_sends_its_logs(config: dict[str, Any], running: str, starts: bool) -> None:
    """The container starts once, on every node; a node on which it does not start serves all the same."""
    command = next(line for line in config["initialization_commands"] if "log_group_name" in line)
    run = f'for each; do echo "$each"; done; {str(starts).lower()}'
    stub = f"docker() {{ case $1 in ps) {running};; run) {run};; esac; }}; "
    done = subprocess.run(["sh", "-c", stub + command], capture_output=True, text=True)
    assert done.returncode == 0
    if running == ":":
        logs = "/tmp/ray/session_latest/logs"
        assert f"path={logs}/serve/*.log,{logs}/monitor.*,{logs}/spot_notice.log" in done.stdout.splitlines()
        assert {"log_group_name=/classify/serve", "region=us-east-1"} <= set(done.stdout.splitlines())
        assert f"log_stream_name={config['cluster_name']}/{socket.gethostname()}" in done.stdout.splitlines()
        assert "--volume=/var/log/ray:/tmp/ray" in config["docker"]["run_options"]
    else:
        assert done.stdout == ""
    assert ("stay on this node" in done.stdout) is not starts


def test_no_replica_fits_on_the_head(config: dict[str, Any]) -> None:
    """The head offers no CPU, and every replica of the production config requests at least one."""
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (app,) = yaml.safe_load((ROOT / "configs" / "production.yaml").read_text())["applications"]
    assert all(deployment["ray_actor_options"]["num_cpus"] >= 1 for deployment in app["deployments"])


def test_the_largest_number_of_nodes_has_capacity_for_all_replicas_and_a_job(config: dict[str, Any]) -> None:
    """The job's workers take no CPU for which a replica would wait; all types of workers have 8 vCPUs."""
    groups = config["available_node_types"]
    workers = {name: groups[name]["max_workers"] for name in ("gpu", "cpu", "gpu-spot", "cpu-spot")}
    assert sum(workers.values()) == config["max_workers"]
    assert {groups[name]["node_config"]["InstanceType"].split(".")[1] for name in workers} == {"2xlarge"}
    assert Counter(cpu=8 * sum(workers.values()), gpu=workers["gpu"] + workers["gpu-spot"]) >= required_capacity("max")


def test_the_dashboard_listens_on_loopback_only(config: dict[str, Any]) -> None:
    """Ray's default setup commands, which open the dashboard to every address, are replaced."""
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []


def test_ray_env_is_in_every_container(config: dict[str, Any]) -> None:
    """`docker run` gets each variable of configs/ray.env, quoted for the shell that Ray uses, and each one once."""
    options = shlex.split(" ".join(config["docker"]["run_options"]))
    variables = dict(option.removeprefix("--env=").split("=", 1) for option in options if option.startswith("--env="))
    expected = {**dotenv_values(ROOT / "configs" / "ray.env"), "RAY_AUTH_MODE": "token"}
    assert expected["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert expected.items() <= variables.items()
    assert len(variables) == sum(option.startswith("--env=") for option in options)


@pytest.mark.parametrize("readable", [True, False])
def test_a_node_reads_rays_token_into_a_file_that_only_its_container_reads(
    config: dict[str, Any], tmp_path: Path, readable: bool
) -> None:
    """No command line and no config has the token; a host that may not read it does not start Ray."""
    command = next(line for line in config["initialization_commands"] if "ray-token" in line)
    (volume,) = [option for option in config["docker"]["run_options"] if "ray-token:ro" in option]
    host, container = volume.removeprefix("--volume=").removesuffix(":ro").split(":")
    assert f"--env=RAY_AUTH_TOKEN_PATH={container}" in config["docker"]["run_options"]
    stubs = "aws() { echo secret of $4 $5 $6; }; " if readable else "aws() { return 254; }; "
    stubs += 'sudo() { echo "$@" >&2; shift 8; cat > "$1"; }; '
    done = subprocess.run(
        ["sh", "-c", stubs + command.replace(host, str(tmp_path / "token"))], capture_output=True, text=True
    )
    assert done.stdout == ""
    if readable:
        assert (tmp_path / "token").read_text() == "secret of us-east-1 --name /classify/ray-token"
        assert done.stderr == f"install -m 400 -o 1000 -g 1000 /dev/stdin {tmp_path / 'token'}\n"
    else:
        assert done.returncode == 254
        assert not (tmp_path / "token").exists()


def test_containers_see_the_gpu(config: dict[str, Any]) -> None:
    """NVIDIA's runtime, which Ray selects on a GPU node, acts only where these variables name GPUs and libraries."""
    options = config["docker"]["run_options"]
    assert "--env=NVIDIA_VISIBLE_DEVICES=all" in options
    assert "--env=NVIDIA_DRIVER_CAPABILITIES=compute,utility" in options


def test_every_node_and_the_page_share_the_data_folder(config: dict[str, Any], outputs: dict[str, str]) -> None:
    """Hosts mount the stack's file system at /data, or serve without it; containers see it, the page read-only."""
    mount = next(command for command in config["initialization_commands"] if "mount -t nfs4" in command)
    assert f"{outputs['DataAddress']}:/ /data || echo" in mount
    assert "softerr," in mount  # an error on which a job waits; `soft` gives EIO, as a damaged disk does
    assert subprocess.run(["bash", "-n", "-c", mount], check=False).returncode == 0
    assert "--volume=/data:/data" in config["docker"]["run_options"]
    assert "--volume /data:/data:ro --env PREDICTION_LOG=/data/predictions" in launcher.RUN_PAGE


def page_commands(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, *images: str, key: str | None = None
) -> list[str]:
    commands: list[str] = []
    monkeypatch.setattr(launcher, "run_ray", lambda *arguments: commands.append(str(arguments[-1])))
    for image in images:
        launcher.start_page(Path("c.yaml"), settings.model_copy(update={"page_image": image}), key)
    return commands


def shell(command: str, ps: str) -> str:
    return subprocess.run(["sh", "-c", STUBS.format(ps) + command], capture_output=True, text=True).stdout


def test_a_page_that_runs_with_the_same_options_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """`up` on nodes that serve restarts the page only if its image or options changed; the command is valid shell."""
    first, again, other = page_commands(monkeypatch, settings, "page@sha256:1", "page@sha256:1", "page@sha256:2")
    assert first == again != other
    assert shell(first, ps="echo 1") == ""
    run, key = shell(first, ps=":").splitlines()
    label = shlex.split(first)[4].removeprefix("label=")
    assert run.startswith(f"run --detach --label {label} --name page ")
    assert run.endswith("page@sha256:1")
    assert key == "key: "


def test_the_page_gets_key_and_public_address(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """The head's host reads the key from Parameter Store; it is in no command line. Without the key no page starts."""
    settings = settings.model_copy(update={"public_url": "https://photos.example"})
    (command,) = page_commands(monkeypatch, settings, "page@sha256:1", key="/classify/api-key")
    run, key = shell(command, ps=":").splitlines()
    assert "--env API_KEY --env API_PUBLIC_URL=https://photos.example page@sha256:1" in run
    assert key == "key: secret of --region us-east-1 --name /classify/api-key"
    assert "run" not in shell(command.replace("aws ssm", "false"), ps=":")


@pytest.mark.parametrize(
    ("registry", "commands"),
    [
        (
            "account.dkr.ecr.eu-west-1.amazonaws.com",
            "ecr get-login-password --region eu-west-1|login --username AWS --password-stdin {}",
        ),
        ("ghcr.io", "ssm --name /classify/registry-login|login --username alice --password-stdin {}"),
        ("public.example", "ssm --name /classify/registry-login"),
    ],
)
def test_nodes_log_in_to_a_private_registry(
    settings: Settings, outputs: dict[str, str], registry: str, commands: str
) -> None:
    """To ECR with their role, to another registry with the login in Parameter Store, if there is one."""
    image = settings.image.replace("registry.example.com", registry)
    config = launcher.render_config(
        settings.model_copy(update={"image": image}), outputs, Path("/key.pem"), settings.cluster
    )
    *_, login = config["initialization_commands"]
    assert login == next(command for command in config["initialization_commands"] if "docker login" in command)
    stubs = (
        'docker() { cat >/dev/null; echo "$@" >&2; }; '
        'aws() { case $1 in ecr) echo "$@" >&2;; *) echo "$1 $5 $6" >&3; '
        "case " + registry + " in ghcr.io) echo alice:secret:1;; *) return 1;; esac;; esac; }; exec 3>&2; "
    )
    done = subprocess.run(["sh", "-c", stubs + login], capture_output=True, text=True)
    assert done.returncode == 0
    assert "|".join(done.stderr.splitlines()) == commands.format(registry)


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check that precedes every launch says which program to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="`aws` is not on PATH: install the AWS command line, version 2"):
        launcher.check_tools()


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_serve_config_is_deployed_through_tunnels(monkeypatch: pytest.MonkeyPatch, exit_code: int) -> None:
    """`serve-app deploy` gets the tunnels' addresses, and its exit code decides whether the launch succeeded."""
    commands = []

    @contextmanager
    def tunnel(_config: Path, port: int) -> Any:
        yield f"http://127.0.0.1:1{port}"

    def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command[1:])
        assert (env["RAY_AUTH_TOKEN"], env["API_KEY"]) == ("token", "key")
        return subprocess.CompletedProcess(command, exit_code)

    monkeypatch.setattr(launcher, "tunnel", tunnel)
    monkeypatch.setattr(subprocess, "run", run)
    if exit_code:
        with pytest.raises(ClusterError, match=r"p\.yaml was not deployed"):
            launcher.deploy(Path("c.yaml"), Path("p.yaml"), "token", "key", "--dry-run")
    else:
        launcher.deploy(Path("c.yaml"), Path("p.yaml"), "token", "key", "--dry-run")
    expected = "-m serve_app deploy p.yaml --address http://127.0.0.1:18265 --api http://127.0.0.1:18000 --dry-run"
    assert [" ".join(command) for command in commands] == [expected]
