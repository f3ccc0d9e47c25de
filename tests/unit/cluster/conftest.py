"""One made-up installation: its settings file, its stack's outputs, the config that Ray gets for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import launcher
from cluster.settings import Settings

WriteSettings = Callable[..., Path]


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
