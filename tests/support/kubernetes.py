"""cluster/kubernetes as kustomize renders it: objects by kind, pods by name, and who may connect to a pod."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

MANIFESTS = ROOT / "cluster" / "kubernetes"
Manifest = dict[str, Any]


def render(folder: Path, components: list[str]) -> list[Manifest]:
    """Return the objects that `kubectl apply -k` sends, with some components; the folder takes a kustomization."""
    source = os.path.relpath(MANIFESTS, folder)
    kustomization = {"resources": [source], "components": [f"{source}/{name}" for name in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    rendered = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
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


def matches(selector: Manifest, template: Manifest) -> bool:
    """Return whether a selector of labels, and of nothing else, selects a pod."""
    labels = template["metadata"]["labels"]
    return set(selector) == {"matchLabels"} and selector["matchLabels"].items() <= labels.items()


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
