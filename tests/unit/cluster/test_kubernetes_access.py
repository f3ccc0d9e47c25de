"""cluster/kubernetes, as kustomize renders it: closed to other pods, locked down, and each part finds the others."""

from __future__ import annotations

import re

import yaml

from tests.support.kubernetes import MANIFESTS, Manifest, admitted, groups, matches, only, pods
from tests.support.paths import ROOT


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


def test_ray_requires_a_token(manifests: list[Manifest]) -> None:
    """KubeRay sets the mode in `env`, which wins over the `disabled` of configs/ray.env in `envFrom`, and the token."""
    rayservice = only(manifests, "RayService")
    assert rayservice["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_only_nodes_with_a_gpu_pull_the_image_with_cuda() -> None:
    """Every image that a pod names has its digest in kustomization.yaml."""
    rayservice = next(yaml.safe_load_all((MANIFESTS / "rayservice.yaml").read_text()))
    images = {name: group["template"]["spec"]["containers"][0]["image"] for name, group in groups([rayservice]).items()}
    assert images == {"head": "serve-cpu", "cpu": "serve-cpu", "gpu": "serve"}
    pinned = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["images"]
    assert [image["name"] for image in pinned] == ["serve", "serve-cpu", "page"]


def test_a_sidecar_reads_the_logs(manifests: list[Manifest]) -> None:
    """With the component, Fluent Bit reads Ray's folder alone, from before Ray starts until after its end."""
    with_components = "clusterUpgradeOptions" in only(manifests, "RayService")["spec"]["upgradeStrategy"]
    for name, template in pods(manifests).items():
        sidecars = template["spec"].get("initContainers", [])
        assert len(sidecars) == (with_components and name != "page")
        for sidecar in sidecars:
            assert sidecar["restartPolicy"] == "Always"
            assert sidecar["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp", "readOnly": True}]
            (paths,) = (each.partition("path=")[2] for each in sidecar["args"] if each.startswith("--prop=path="))
            assert all(path.startswith("/tmp/ray/session_latest/logs/") for path in paths.split(","))
            assert sidecar["securityContext"] == template["spec"]["containers"][0]["securityContext"]


def test_images_are_named_by_digest(manifests: list[Manifest]) -> None:
    """Ray nodes and page each have one image, pinned by digest."""
    images = {template["spec"]["containers"][0]["image"] for template in pods(manifests).values()}
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"ghcr\.io/OWNER/REPOSITORY/(serve|page)@sha256:[0-9a-f]{64}", image)


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
