"""cluster/kubernetes, as kustomize renders it: valid, serving configs/production.yaml, on nodes that have room."""

from __future__ import annotations

import copy
import gzip
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from dotenv import dotenv_values

from serve_app.config import LimitsConfig
from tests.support.configs import required_capacity
from tests.support.kubernetes import Manifest, groups, matches, only, pods
from tests.support.paths import ROOT

KINDS = {
    *("Namespace", "ConfigMap", "RayService", "Deployment", "Service", "PersistentVolumeClaim"),
    *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
}
OLDEST = "1.31"
# vCPUs and GiB of the nodes in docs/kubernetes.md. Kubernetes, its agents and the operating system take their share.
NODES = {"head": (4, 16), "cpu": (8, 16), "gpu": (4, 16)}
OVERHEAD = (1, 3)  # cores and GiB; GKE reserves 0.08 and 2.7 of 4 and 16, the rest is for agents
AUTOSCALER = (0.5, 0.5)  # cores and GiB of the container that KubeRay adds to the head


def closed(schema: Any) -> Any:
    """Return a CRD's schema as a JSON schema that rejects unknown keys, which the API server would drop."""
    if not isinstance(schema, dict):
        return schema
    inner = {key: value for key, value in schema.items() if key != "properties"}
    inner = {key: [closed(item) for item in value] if key == "allOf" else closed(value) for key, value in inner.items()}
    if inner.pop("x-kubernetes-int-or-string", False):
        inner["type"] = ["integer", "string"]
    if "properties" in schema:
        inner["properties"] = {name: closed(inner_schema) for name, inner_schema in schema["properties"].items()}
        inner.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return inner


@pytest.fixture(scope="module")
def rayservice_errors() -> Callable[[Manifest], list[str]]:
    compressed = (ROOT / "tests" / "data" / "rayservice-1.7.0.json.gz").read_bytes()
    schema = closed(json.loads(gzip.decompress(compressed)))
    schema["properties"]["metadata"] = {"type": "object"}
    checker = jsonschema.Draft7Validator(schema)
    return lambda manifest: [error.json_path + ": " + error.message for error in checker.iter_errors(manifest)]


def test_core_objects_are_valid(manifests: list[Manifest]) -> None:
    """They match Kubernetes' own schemas, without unknown keys, from the oldest version that the page names."""
    assert f"Kubernetes {OLDEST}" in (ROOT / "docs" / "kubernetes.md").read_text()
    assert {manifest["kind"] for manifest in manifests} - {"PodMonitor", "StatefulSet"} == KINDS
    for manifest in manifests:
        if manifest["kind"] not in ("RayService", "PodMonitor"):
            for version in (OLDEST, kubernetes_validate.latest_version()):
                kubernetes_validate.validate(manifest, version, strict=True)


def test_the_rayservice_is_valid(manifests: list[Manifest], rayservice_errors: Callable[..., list[str]]) -> None:
    """It matches the schema of KubeRay's CRD, without unknown keys."""
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
def test_the_schema_rejects_a_wrong_rayservice(
    manifests: list[Manifest], rayservice_errors: Callable[..., list[str]], path: str, value: object
) -> None:
    """The schema check of these tests finds misspelled keys and wrong values at any depth."""
    manifest = copy.deepcopy(only(manifests, "RayService"))
    *steps, last = path.split(".")
    inner = manifest
    for step in steps:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    inner[last] = value
    assert len(rayservice_errors(manifest)) == 1


def test_it_serves_the_production_config(manifests: list[Manifest]) -> None:
    """The RayService contains configs/production.yaml byte for byte."""
    config = (ROOT / "configs" / "production.yaml").read_text()
    assert only(manifests, "RayService")["spec"]["serveConfigV2"] == config


def test_every_ray_container_has_the_environment(manifests: list[Manifest]) -> None:
    """Head, workers and autoscaler get exactly the variables of configs/ray.env."""
    environment = only(manifests, "ConfigMap")
    assert environment["data"] == dotenv_values(ROOT / "configs" / "ray.env")
    source = [{"configMapRef": {"name": environment["metadata"]["name"]}}]
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    containers = [group["template"]["spec"]["containers"][0] for group in groups(manifests).values()]
    for container in (cluster["autoscalerOptions"], *containers):
        assert container["envFrom"] == source
        assert "env" not in container


def test_rayversion_is_the_pinned_version(manifests: list[Manifest]) -> None:
    """KubeRay chooses its probes by `rayVersion`, so it equals the version in constraints.txt."""
    version = only(manifests, "RayService")["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("bound", ["min", "max"])
def test_the_nodes_have_capacity_for_the_replicas(manifests: list[Manifest], bound: str) -> None:
    """CPUs and GPUs suffice for a batch job beside the minimum or maximum of replicas; none is placed on the head."""
    required, available = required_capacity(bound), Counter[str]()
    for group in groups(manifests).values():
        if nodes := group.get(f"{bound}Replicas"):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            available["cpu"] += nodes * int(limits["cpu"])
            available["gpu"] += nodes * int(limits.get("nvidia.com/gpu", 0))
    assert available >= required
    assert groups(manifests)["head"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_fit_on_the_nodes_that_the_docs_name(manifests: list[Manifest]) -> None:
    """One Ray pod fits on one node beside what Kubernetes itself needs; every pod asks for the images' architecture."""
    documented = (ROOT / "docs" / "kubernetes.md").read_text()
    for name, (cores, gibibytes) in NODES.items():
        limits = groups(manifests)[name]["template"]["spec"]["containers"][0]["resources"]["limits"]
        extra = AUTOSCALER if name == "head" else (0, 0)
        assert int(limits["cpu"]) + extra[0] <= cores - OVERHEAD[0]
        assert int(limits["memory"].removesuffix("Gi")) + extra[1] <= gibibytes - OVERHEAD[1]
        assert f"| {name} | {cores} vCPUs, {gibibytes} GiB" in documented
    for template in pods(manifests).values():
        assert template["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_a_worker_that_is_evicted_finishes_its_requests(manifests: list[Manifest]) -> None:
    """Ray gets SIGTERM, which ends its replicas at once, only after the longest request; then it has time to stop."""
    deadline_s, service_s, ray_stop_s = LimitsConfig().deadline_s, 15, 30
    for name in ("cpu", "gpu"):
        spec = groups(manifests)[name]["template"]["spec"]
        sleep_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert sleep_s >= service_s + deadline_s
        assert spec["terminationGracePeriodSeconds"] >= sleep_s + ray_stop_s


def test_every_pod_has_a_disruption_budget_and_a_spread(manifests: list[Manifest]) -> None:
    """A drain leaves one pod of each kind and never evicts the head; pods of a kind spread over nodes.

    The controller of Ray's pods has no scale subresource, so Kubernetes cannot tell how many there should be: there a
    budget of `maxUnavailable`, or of a percentage, permits no eviction at all.
    """
    budgets = [manifest["spec"] for manifest in manifests if manifest["kind"] == "PodDisruptionBudget"]
    for name, template in pods(manifests).items():
        (budget,) = (budget for budget in budgets if matches(budget["selector"], template))
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert "maxUnavailable" not in budget or name == "page"
        if name != "page":
            replicas = groups(manifests)[name].get("minReplicas", 1)
            assert budget["minAvailable"] == (1 if name == "head" else replicas - 1)
        constraints = template["spec"].get("topologySpreadConstraints", [])
        assert name == "head" or constraints
        assert all(matches(constraint["labelSelector"], template) for constraint in constraints)


def test_only_the_autoscaler_sets_the_pages_replicas(manifests: list[Manifest]) -> None:
    """The Deployment has no `replicas`, which would reset the number with every `kubectl apply`."""
    assert "replicas" not in only(manifests, "Deployment")["spec"]
    target = only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "page"}
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"]


def test_the_pages_probes_call_the_page_only(manifests: list[Manifest]) -> None:
    """The page stays ready while the API is down."""
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    (port,) = container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/_stcore/health", "port": port["name"]}
    assert port["containerPort"] == 8501
