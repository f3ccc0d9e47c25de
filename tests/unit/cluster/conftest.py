"""One made-up installation on EC2 (settings, the stack's outputs, Ray's config), and the manifests of Kubernetes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import launcher
from cluster.settings import Settings
from tests.support.kubernetes import Manifest, render

WriteSettings = Callable[..., Path]
VARIANTS = {"new-cluster": [], "components": ["durable-head", "incremental", "logs", "monitoring", "private-images"]}


@pytest.fixture(scope="session", params=VARIANTS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The objects that `kubectl apply -k` sends: as shipped, and with every component."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which renders the manifests, is missing")
    return render(tmp_path_factory.mktemp(request.param), VARIANTS[request.param])


@pytest.fixture
def settings() -> Settings:
    return Settings(
        name="classify",
        region="us-east-1",
        image="registry.example.com/serve@sha256:" + "0123456789abcdef" * 4,
        ami="ami-0123456789abcdef0",
        vpc="vpc-0123456789abcdef0",
        subnets=("subnet-0123456789abcdef0", "subnet-0123456789abcdef1"),
    )


@pytest.fixture
def write_settings(settings: Settings, tmp_path: Path) -> WriteSettings:
    """Writes the settings to a file, with changes; None leaves a setting out."""

    def write(**changes: Any) -> Path:
        values = settings.model_dump(mode="json") | changes
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return path

    return write


@pytest.fixture
def outputs() -> dict[str, str]:
    return {
        "Bucket": "bucket",
        "DataAddress": "fs-0123456789abcdef0.efs.us-east-1.amazonaws.com",
        "Endpoint": "eice-0123456789abcdef0",
        "LogGroup": "/classify/serve",
        "SecurityGroup": "sg-0123456789abcdef0",
        "HeadProfile": "head",
        "WorkerProfile": "worker",
    }


@pytest.fixture
def config(settings: Settings, outputs: dict[str, str]) -> dict[str, Any]:
    return launcher.render_config(settings, outputs, Path("/key.pem"), settings.cluster)
