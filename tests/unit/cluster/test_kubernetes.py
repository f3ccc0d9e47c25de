"""cluster/kubernetes, as kustomize renders it: valid, closed to other pods, and serving configs/production.yaml."""

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

from serve_app.config import LimitsConfig
from tests.support.paths import ROOT

MANIFESTS = ROOT / "cluster" / "kubernetes"
VARIANTS = {"new-cluster": [], "components": ["durable-head", "incremental", "monitoring", "private-images"]}
KINDS = {
    *("Namespace", "ConfigMap", "RayService", "Deployment", "Service", "PersistentVolumeClaim"),
    *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
}
OLDEST = "1.31"
# vCPUs and GiB of the nodes in docs/kubernetes.md. Kubernetes, its agents and the operating system take their share.
NODES = {"head": (4, 16), "cpu": (8, 16), "gpu": (4, 16)}
OVERHEAD = (1, 3)  # cores and GiB; GKE reserves 0.08 and 2.7 of 4 and 16, the rest is for agents
AUTOSCALER = (0.5, 0.5)  # cores and GiB of the container that KubeRay adds to the head
Manifest = dict[str, Any]

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which renders the manifests, is missing")


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The objects that `kubectl apply -k` sends: as shipped, and with incremental updates."""
    folder = tmp_path_factory.mktemp(request.param)
    source = os.path.relpath(MANIFESTS, folder)
    components = [f"{source}/{name}" for name in VARIANTS[request.param]]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [source], "components": components}))
    command = ["kubectl", "kustomize", str(folder)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the single object of a kind."""
    (manifest,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return manifest


def groups(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the groups of Ray nodes by name, including the head."""
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return every pod template by name, with the labels that KubeRay adds."""
    templates = {name: copy.deepcopy(group["template"]) for name, group in groups(manifests).items()}
    for name, template in templates.items():
        template["metadata"]["labels"] |= {"ray.io/node-type": "head" if name == "head" else "worker"}
        template["metadata"]["labels"]["ray.io/group"] = "headgroup" if name == "head" else name
    return {**templates, "page": only(manifests, "Deployment")["spec"]["template"]}


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
    """CPUs and GPUs suffice for the minimum and for the maximum of replicas; none is placed on the head."""
    (app,) = yaml.safe_load((ROOT / "configs" / "production.yaml").read_text())["applications"]
    required, available = dict.fromkeys(("cpu", "gpu"), 0.0), dict.fromkeys(("cpu", "gpu"), 0.0)
    for deployment in app["deployments"]:
        scaling, options = deployment.get("autoscaling_config"), deployment["ray_actor_options"]
        replicas = scaling[f"{bound}_replicas"] if scaling else 1
        required["cpu"] += replicas * options["num_cpus"]
        if fraction := options.get("num_gpus"):
            required["gpu"] += math.ceil(replicas / int(1 / fraction))
    for group in groups(manifests).values():
        if nodes := group.get(f"{bound}Replicas"):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            available["cpu"] += nodes * int(limits["cpu"])
            available["gpu"] += nodes * int(limits.get("nvidia.com/gpu", 0))
    assert available["cpu"] >= required["cpu"]
    assert available["gpu"] >= required["gpu"]
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


def test_a_durable_head_finds_its_state(manifests: list[Manifest]) -> None:
    """KubeRay gets the address and the password of a store that Ray's pods, and nobody else, may reach."""
    stores = [manifest for manifest in manifests if manifest["kind"] == "StatefulSet"]
    options = only(manifests, "RayService")["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions")
    assert bool(stores) == bool(options)
    for store in stores:
        template = store["spec"]["template"]
        (container,) = template["spec"]["containers"]
        (port,) = (each["containerPort"] for each in container["ports"])
        services = [manifest for manifest in manifests if manifest["kind"] == "Service"]
        (service,) = (each for each in services if matches({"matchLabels": each["spec"]["selector"]}, template))
        assert options["redisAddress"] == f"{service['metadata']['name']}:{port}"
        (password,) = container["env"]
        assert options["redisPassword"] == {"valueFrom": password["valueFrom"]}
        assert f"$({password['name']})" in container["args"]
        assert set(admitted(manifests, template)) == {("app=classify,part=ray", port)}
        policies = [manifest["spec"] for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
        peers = [
            rule
            for policy in policies
            if matches(policy["podSelector"], pods(manifests)["head"])
            for rule in policy.get("egress", ())
            if any(each["podSelector"]["matchLabels"] == template["metadata"]["labels"] for each in rule.get("to", ()))
        ]
        assert [rule["ports"] for rule in peers] == [[{"port": port}]]
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_images_are_named_by_digest(manifests: list[Manifest]) -> None:
    """Ray nodes and page each have one image, pinned by digest."""
    images = {template["spec"]["containers"][0]["image"] for template in pods(manifests).values()}
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"ghcr\.io/OWNER/REPOSITORY/(serve|page)@sha256:[0-9a-f]{64}", image)


def test_pods_are_locked_down(manifests: list[Manifest]) -> None:
    """No root, no privileges, read-only root, a memory limit; only the autoscaler has a Kubernetes API token."""
    for name, template in pods(manifests).items():
        spec = template["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert "memory" in container["resources"]["limits"]
        assert name == "head" or spec["automountServiceAccountToken"] is False


def test_prometheus_finds_the_metrics(manifests: list[Manifest]) -> None:
    """The PodMonitor selects every Ray pod, by a port that each has and that the network policy opens."""
    for monitor in (manifest for manifest in manifests if manifest["kind"] == "PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        for name, template in pods(manifests).items():
            assert matches(monitor["spec"]["selector"], template) == (name != "page")
            if name != "page":
                (container,) = template["spec"]["containers"]
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                assert ("classify=metrics", ports[endpoint["port"]]) in set(admitted(manifests, template))


def test_private_images_are_pulled_with_a_login(manifests: list[Manifest]) -> None:
    """With the component every pod names the Secret; without it none does: each missing Secret would be an event."""
    private = "clusterUpgradeOptions" in only(manifests, "RayService")["spec"]["upgradeStrategy"]  # see VARIANTS
    for template in pods(manifests).values():
        assert template["spec"].get("imagePullSecrets") == ([{"name": "registry"}] if private else None)


def test_the_page_takes_its_key_from_a_secret(manifests: list[Manifest]) -> None:
    """The Secret is optional: an API without keys needs none."""
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    source = {"secretKeyRef": {"name": "api-key", "key": "page", "optional": True}}
    assert {"name": "API_KEY", "valueFrom": source} in container["env"]


def test_manifests_contain_no_secret(manifests: list[Manifest]) -> None:
    """There is no Secret object, and no variable named like a secret has a literal value."""
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]
    for template in pods(manifests).values():
        for variable in template["spec"]["containers"][0].get("env", []):
            assert not re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"]) or "value" not in variable


def matches(selector: Manifest, template: Manifest) -> bool:
    labels = template["metadata"]["labels"]
    return set(selector) == {"matchLabels"} and selector["matchLabels"].items() <= labels.items()


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


def admitted(manifests: list[Manifest], template: Manifest) -> Iterator[tuple[str, int | None]]:
    """Yield (label of the peer, port) for everything that may connect to a pod; port None means every port."""
    policies = [manifest["spec"] for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    selected = [
        spec for spec in policies if matches(spec["podSelector"], template) and "Ingress" in spec["policyTypes"]
    ]
    assert selected, "a pod without a policy accepts every connection"
    for rule in (rule for policy in selected for rule in policy["ingress"]):
        for peer in rule["from"]:
            labels = {**peer.get("namespaceSelector", {}), **peer.get("podSelector", {})}["matchLabels"]
            for port in rule.get("ports", [{"port": None}]):
                yield ",".join(f"{key}={value}" for key, value in sorted(labels.items())), port["port"]


def test_only_named_peers_reach_a_pod(manifests: list[Manifest]) -> None:
    """Ray's own ports admit Ray's pods only; the API admits page, gateway and ingress controller."""
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
    assert {name: set(admitted(manifests, template)) for name, template in pods(manifests).items()} == expected


def test_the_pages_probes_call_the_page_only(manifests: list[Manifest]) -> None:
    """The page stays ready while the API is down."""
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    (port,) = container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/_stcore/health", "port": port["name"]}
    assert port["containerPort"] == 8501


def test_the_page_finds_the_api(manifests: list[Manifest]) -> None:
    """API_URL is the name that KubeRay derives from the RayService for the Service, or for the gateway."""
    rayservice = only(manifests, "RayService")
    name, strategy = rayservice["metadata"]["name"], rayservice["spec"]["upgradeStrategy"]
    address = f"http://{name}-serve-svc:8000"
    if options := strategy.get("clusterUpgradeOptions"):
        address = f"http://{name}-gateway-{options['gatewayClassName']}"
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    assert {"name": "API_URL", "value": address} in container["env"]


def test_the_page_reads_what_the_replicas_write(manifests: list[Manifest]) -> None:
    """Every pod mounts one volume, which many nodes may write, at the data folder of the image; the page reads only."""
    claim = only(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, template in pods(manifests).items():
        (volume,) = (volume for volume in template["spec"]["volumes"] if volume["name"] == "data")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = template["spec"]["containers"]
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "data")
        assert (mount["mountPath"], mount.get("readOnly", False)) == ("/data", name == "page")
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (environment["PREDICTION_LOG"], environment["FEEDBACK_FOLDER"]) == ("/data/predictions", "/data/feedback")
    assert "SERVE_APP_DATA=/data" in (ROOT / "Dockerfile").read_text()


def test_only_the_autoscaler_sets_the_pages_replicas(manifests: list[Manifest]) -> None:
    """The Deployment has no `replicas`, which would reset the number with every `kubectl apply`."""
    assert "replicas" not in only(manifests, "Deployment")["spec"]
    target = only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "page"}
    (container,) = pods(manifests)["page"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"]
