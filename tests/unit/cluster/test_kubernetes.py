"""cluster/kubernetes: as kustomize renders it, it is valid, closed, and serves configs/production.yaml."""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dotenv import dotenv_values

from tests.support.paths import ROOT

MANIFESTS = ROOT / "cluster" / "kubernetes"
VARIANTS = {"new-cluster": [], "incremental": ["incremental"]}
KINDS = {
    *("Namespace", "ConfigMap", "RayService", "Deployment", "Service"),
    *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
}
Manifest = dict[str, Any]

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which renders the manifests, is missing")


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """What `kubectl apply -k` would send: as shipped, and with incremental updates."""
    folder = tmp_path_factory.mktemp(request.param)
    here = os.path.relpath(MANIFESTS, folder)
    components = [f"{here}/{name}" for name in VARIANTS[request.param]]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [here], "components": components}))
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = (one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"]))
    return found


def groups(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The groups of Ray nodes by name, the head among them."""
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"], **{one["groupName"]: one for one in cluster["workerGroupSpecs"]}}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Every pod template by name, with the label that KubeRay adds."""
    templates = {name: copy.deepcopy(group["template"]) for name, group in groups(manifests).items()}
    for name, template in templates.items():
        template["metadata"]["labels"]["ray.io/node-type"] = "head" if name == "head" else "worker"
    return {**templates, "page": only(manifests, "Deployment")["spec"]["template"]}


def closed(schema: Any) -> Any:
    """A CRD's schema as a JSON schema that refuses unknown keys, which the API server would drop."""
    if not isinstance(schema, dict):
        return schema
    inner = {key: value for key, value in schema.items() if key != "properties"}
    inner = {key: [closed(one) for one in value] if key == "allOf" else closed(value) for key, value in inner.items()}
    if inner.pop("x-kubernetes-int-or-string", False):
        inner["type"] = ["integer", "string"]
    if "properties" in schema:
        inner["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        inner.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return inner


@pytest.fixture(scope="module")
def rayservice_errors() -> Callable[[Manifest], list[str]]:
    packed = (ROOT / "tests" / "data" / "rayservice-1.7.0.json.gz").read_bytes()
    schema = closed(json.loads(gzip.decompress(packed)))
    schema["properties"]["metadata"] = {"type": "object"}
    checker = jsonschema.Draft7Validator(schema)
    return lambda manifest: [error.json_path + ": " + error.message for error in checker.iter_errors(manifest)]


def test_core_objects_are_valid(manifests: list[Manifest]) -> None:
    """Kubernetes' own schemas take them, and know every key."""
    assert {one["kind"] for one in manifests} == KINDS
    for one in manifests:
        if one["kind"] != "RayService":
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_the_rayservice_is_valid(manifests: list[Manifest], rayservice_errors: Callable[..., list[str]]) -> None:
    """KubeRay's CRD takes it, and knows every key."""
    assert rayservice_errors(only(manifests, "RayService")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.serveConfigV3", ""),
        ("spec.serveConfigV2", {}),
        ("spec.rayClusterConfig.workerGroupSpecs.0.maxReplica", 1),
        ("spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", "many"),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.imagePull", "Always"),
        ("spec.rayClusterConfig.autoscalerOptions.version", "v3"),
    ],
)
def test_a_wrong_rayservice_is_refused(
    manifests: list[Manifest], rayservice_errors: Callable[..., list[str]], path: str, value: object
) -> None:
    """The check above finds misspelled keys and wrong values, however deep."""
    manifest = copy.deepcopy(only(manifests, "RayService"))
    *steps, last = path.split(".")
    inner = manifest
    for step in steps:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    inner[last] = value
    assert len(rayservice_errors(manifest)) == 1


def test_it_serves_the_production_config(manifests: list[Manifest]) -> None:
    """The same file as everywhere else, byte for byte."""
    config = (ROOT / "configs" / "production.yaml").read_text()
    assert only(manifests, "RayService")["spec"]["serveConfigV2"] == config


def test_every_ray_container_has_the_environment(manifests: list[Manifest]) -> None:
    """configs/ray.env, whole and nothing beside it, in head, workers and autoscaler."""
    environment = only(manifests, "ConfigMap")
    assert environment["data"] == dotenv_values(ROOT / "configs" / "ray.env")
    source = [{"configMapRef": {"name": environment["metadata"]["name"]}}]
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    containers = [group["template"]["spec"]["containers"][0] for group in groups(manifests).values()]
    for container in (cluster["autoscalerOptions"], *containers):
        assert container["envFrom"] == source
        assert "env" not in container


def test_ray_is_the_pinned_one(manifests: list[Manifest]) -> None:
    """KubeRay chooses its probes by this version."""
    version = only(manifests, "RayService")["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("bound", ["min", "max"])
def test_the_groups_hold_what_the_config_asks_for(manifests: list[Manifest], bound: str) -> None:
    """CPUs and GPUs for the fewest and for the most replicas; the head is for none."""
    (app,) = yaml.safe_load((ROOT / "configs" / "production.yaml").read_text())["applications"]
    needed, held = dict.fromkeys(("cpu", "gpu"), 0.0), dict.fromkeys(("cpu", "gpu"), 0.0)
    for one in app["deployments"]:
        replicas, options = one["autoscaling_config"][f"{bound}_replicas"], one["ray_actor_options"]
        needed["cpu"] += replicas * options["num_cpus"]
        if fraction := options.get("num_gpus"):
            needed["gpu"] += math.ceil(replicas / int(1 / fraction))
    for group in groups(manifests).values():
        if nodes := group.get(f"{bound}Replicas"):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            held["cpu"] += nodes * int(limits["cpu"])
            held["gpu"] += nodes * int(limits.get("nvidia.com/gpu", 0))
    assert held["cpu"] >= needed["cpu"]
    assert held["gpu"] >= needed["gpu"]
    assert groups(manifests)["head"]["rayStartParams"]["num-cpus"] == "0"


def test_images_are_named_by_digest(manifests: list[Manifest]) -> None:
    images = {template["spec"]["containers"][0]["image"] for template in pods(manifests).values()}
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"ghcr\.io/OWNER/REPOSITORY/(serve|page)@sha256:[0-9a-f]{64}", image)


def test_pods_are_locked_down(manifests: list[Manifest]) -> None:
    """No root, no privilege, nothing to write but volumes, no API token but the autoscaler's, memory bounded."""
    for name, template in pods(manifests).items():
        spec = template["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
        assert "memory" in container["resources"]["limits"]
        assert name == "head" or spec["automountServiceAccountToken"] is False


def test_no_secret_is_in_them(manifests: list[Manifest]) -> None:
    """Whatever is secret is made in the cluster, by name."""
    assert not [one for one in manifests if one["kind"] == "Secret"]
    for template in pods(manifests).values():
        for variable in template["spec"]["containers"][0].get("env", []):
            assert not re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"]) or "value" not in variable


def matches(selector: Manifest, template: Manifest) -> bool:
    labels = template["metadata"]["labels"]
    return set(selector) == {"matchLabels"} and selector["matchLabels"].items() <= labels.items()


def test_every_pod_has_its_budget_and_its_spread(manifests: list[Manifest]) -> None:
    """A node's drain takes one pod of a kind at a time, and the head not at all; pods of a kind stand apart."""
    allowed = {"head": 0, "cpu": 1, "gpu": 1, "page": 1}
    budgets = [one["spec"] for one in manifests if one["kind"] == "PodDisruptionBudget"]
    for name, template in pods(manifests).items():
        (budget,) = (one for one in budgets if matches(one["selector"], template))
        assert budget["maxUnavailable"] == allowed[name]
        constraints = template["spec"].get("topologySpreadConstraints", [])
        assert name == "head" or constraints
        assert all(matches(one["labelSelector"], template) for one in constraints)


def entrances(manifests: list[Manifest], template: Manifest) -> Iterator[tuple[str, int | None]]:
    """(who, port) of all that may reach a pod; port None is every port."""
    policies = [one["spec"] for one in manifests if one["kind"] == "NetworkPolicy"]
    mine = [one for one in policies if matches(one["podSelector"], template) and "Ingress" in one["policyTypes"]]
    assert mine, "without a policy everyone may"
    for rule in (rule for one in mine for rule in one["ingress"]):
        for peer in rule["from"]:
            who = {**peer.get("namespaceSelector", {}), **peer.get("podSelector", {})}["matchLabels"]
            for port in rule.get("ports", [{"port": None}]):
                yield ",".join(f"{key}={value}" for key, value in sorted(who.items())), port["port"]


def test_only_named_peers_reach_a_pod(manifests: list[Manifest]) -> None:
    """Ray's own ports are open to Ray's own pods, the API to page, gateway and ingress controller."""
    ray = {
        ("app=classify,part=ray", None),
        ("app=classify,part=page", 8000),
        ("classify=entry", 8000),
        ("classify=metrics", 8080),
        ("app.kubernetes.io/component=kuberay-operator", 8265),
    }
    if "clusterUpgradeOptions" in only(manifests, "RayService")["spec"]["upgradeStrategy"]:
        ray.add(("gateway.networking.k8s.io/gateway-name=classify-gateway", 8000))
    expected = {"head": ray, "cpu": ray, "gpu": ray, "page": {("classify=entry", 8501)}}
    assert {name: set(entrances(manifests, template)) for name, template in pods(manifests).items()} == expected


def test_the_page_asks_only_itself_whether_it_is_ready(manifests: list[Manifest]) -> None:
    """A page whose probe called the API would leave with it."""
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    (port,) = container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/_stcore/health", "port": port["name"]}
    assert port["containerPort"] == 8501


def test_the_page_finds_the_api(manifests: list[Manifest]) -> None:
    """KubeRay names the Service, or the gateway, after the RayService."""
    rayservice = only(manifests, "RayService")
    name, strategy = rayservice["metadata"]["name"], rayservice["spec"]["upgradeStrategy"]
    address = f"http://{name}-serve-svc:8000"
    if options := strategy.get("clusterUpgradeOptions"):
        address = f"http://{name}-gateway-{options['gatewayClassName']}"
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    assert {"name": "API_URL", "value": address} in container["env"]


def test_the_page_scales_by_itself(manifests: list[Manifest]) -> None:
    """A number of replicas beside the autoscaler's would reset it with every update."""
    assert "replicas" not in only(manifests, "Deployment")["spec"]
    target = only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "page"}
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"]
