"""One Serve config and one environment everywhere: places differ in capacity and addresses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from serve_app.launcher.environment import read_ray_env
from serve_app.release.serve_config import read
from tests.support.configs import in_one_process, local
from tests.support.paths import ROOT

ONE_PROCESS = ROOT / "configs" / "one-process.yaml"
OTHER_GRAPHS = {ONE_PROCESS, ROOT / "configs" / "blue-green.yaml"}  # on purpose
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - OTHER_GRAPHS)
CAPACITY = {
    *("num_replicas", "autoscaling_config", "max_replicas_per_node", "max_ongoing_requests", "ray_actor_options"),
    *("max_inflight_groups", "max_group_size", "max_batch_size", "max_batch_wait_ms"),
}
# jobs: their workers and how many may wait; open: who may call, where the address is not loopback
ADDRESSES = {"host", "port", "proxy_location", "jobs", "open"}
# How replicas are replaced and watched, and what the log looks like: no answer depends on it.
OPERATION = {
    *("max_surge_percent", "graceful_shutdown_timeout_s", "health_check_period_s"),
    *("keep_alive_timeout_s", "encoding"),
}


def graph(value: Any) -> Any:
    """A config without what may differ: the graph, its limits and what decides its answers."""
    if isinstance(value, dict):
        return {key: graph(one) for key, one in value.items() if key not in CAPACITY | ADDRESSES | OPERATION}
    return [graph(one) for one in value] if isinstance(value, list) else value


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *patterns]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_configs_differ_only_in_capacity_and_addresses() -> None:
    """Laptop and compose, GPU machine, EC2 and Kubernetes: one graph, the same limits and answers."""
    assert {path.stem for path in CONFIGS} >= {"local", "gpu", "production"}
    first, *others = (graph(yaml.safe_load(path.read_text())) for path in CONFIGS)
    args = {path.stem: one["applications"][0]["args"] for path, one in zip(CONFIGS, (first, *others), strict=True)}
    runtimes = {name: values.pop("engine", "auto") for name, values in args.items()}
    assert runtimes == {"local": "auto", "gpu": "cuda", "production": "cuda"}  # no silent fallback where a GPU is paid
    weights = {values.pop("weights") for values in args.values()}
    assert weights == {"demo", "imagenet"}  # the laptop's choice needs no download
    assert all(one == first for one in others)


def test_one_process_has_the_settings_of_the_laptop() -> None:
    """Only the place of the stages differs from configs/local.yaml."""
    assert read(ONE_PROCESS) == in_one_process(local())


@pytest.mark.parametrize("change", [("args", "limits", {"max_images": 8}), ("deployments", 0, {"name": "Other"})])
def test_another_difference_would_be_seen(change: tuple[str, Any, Any]) -> None:
    config = yaml.safe_load(CONFIGS[0].read_text())
    outer, key, value = change
    config["applications"][0][outer][key] = value
    assert graph(config) != graph(yaml.safe_load(CONFIGS[0].read_text()))


def test_there_is_no_other_serve_config() -> None:
    """Nothing outside configs/ says what Serve runs; what a place names there exists."""
    for path in tracked("*.yaml", "*.yml"):
        text = path.read_text()
        if path.parent != ROOT / "configs":
            assert not re.search(r"^\s*applications:", text, re.M), path
    for path in tracked("compose.yaml", "Dockerfile", "Makefile", "cluster", "serve_app/*.py", ".github"):
        for name in re.findall(r"configs/[\w.-]+\.(?:yaml|env)", path.read_text()):
            assert (ROOT / name).exists(), f"{path}: {name}"


def test_the_environment_is_the_same_wherever_it_is_set() -> None:
    """configs/ray.env is its home: a file that repeats a variable repeats its value. EC2 alone asks for a token."""
    environment = dotenv_values(ROOT / "configs" / "ray.env")
    names = "|".join(environment)
    places = tracked("compose.yaml", "Dockerfile", "Makefile", "cluster", "configs", "serve_app", ".github")
    for path in places:
        if path.suffix not in {".safetensors", ".env"}:
            for name, value in re.findall(rf"\b({names})\b\"?\s*[=:]\s*(\"[^\"]+\"|[^\s\"\\]+)", path.read_text()):
                ec2 = {"RAY_AUTH_MODE": "token"} if path == ROOT / "cluster" / "launcher.py" else {}
                assert value.strip('"') == {**environment, **ec2}[name], f"{path}: {name}"


def test_every_ray_node_gets_ray_env() -> None:
    """In each way of running the service, from the one file.

    `serve-app run` reads it (also as the image's command); compose.yaml hands it to the container; kustomize makes a
    ConfigMap of it, which every Ray container of the RayService takes; `python -m cluster` puts it into `docker run`.
    What the last two render is held by tests/unit/cluster/test_kubernetes.py and test_ec2.py.
    """
    assert read_ray_env() == dotenv_values(ROOT / "configs" / "ray.env")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {services[name]["env_file"] for name in ("api", "api-gpu")} == {"configs/ray.env"}
    (generated, *_) = yaml.safe_load((ROOT / "configs" / "Kustomization").read_text())["configMapGenerator"]
    assert generated == {"name": "ray-env", "envs": ["ray.env"]}
    ray_service = next(yaml.safe_load_all((ROOT / "cluster" / "kubernetes" / "rayservice.yaml").read_text()))
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in (cluster["autoscalerOptions"], *(group["template"]["spec"]["containers"][0] for group in groups)):
        assert container["envFrom"] == [{"configMapRef": {"name": "ray-env"}}]
