"""What differs between two installations: addresses and ids. Capacity is in ec2.yaml, the service in configs/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Image = Annotated[str, Field(pattern=r"^[\w./:-]+@sha256:[0-9a-f]{64}$")]
HINTS = {
    "image": "an image by digest, REPOSITORY@sha256:…",
    "page_image": "an image by digest, REPOSITORY@sha256:…",
    "ami": "a pinned image id, ami-…; settings.example.yaml says how to find today's",
    "subnets": "a list of two or more subnet-…",
}


class ClusterError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


class Settings(BaseModel):
    """One installation in one AWS account and region."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{1,20}$")
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    image: Image
    page_image: Image | None = None
    ami: str = Field(pattern=r"^ami-[0-9a-f]{8,17}$")
    vpc: str = Field(pattern=r"^vpc-[0-9a-f]{8,17}$")
    subnets: tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...] = Field(min_length=2)
    certificate: str | None = Field(default=None, pattern=r"^arn:[\w-]+:acm:")
    client_cidr: str | None = Field(default=None, pattern=r"^[0-9.]+/\d+$")

    @model_validator(mode="after")
    def _load_balancer_is_whole(self) -> Self:
        if (self.certificate is None) != (self.client_cidr is None):
            raise ValueError("certificate and client_cidr belong together: give both for a load balancer, or neither")
        return self

    @property
    def cluster(self) -> str:
        """The Ray cluster's name: every image gets nodes of its own, so an update never touches what serves."""
        return f"{self.name}-{self.image.rpartition(':')[2][:12]}"


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a settings file.

    Args:
        path: YAML; ``settings.example.yaml`` shows every name.
        overrides: ``name=value``, each replaces what the file says.

    Raises:
        ClusterError: The file cannot be read, or a setting is missing, unknown or malformed.
    """
    try:
        found = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"settings cannot be read ({reason}): copy cluster/settings.example.yaml there") from None
    if not isinstance(found, dict):
        raise ClusterError(f"{path}: not a mapping: write one `name: value` per line, as in settings.example.yaml")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ClusterError(f"--set {override}: no value: write --set NAME=VALUE")
        found[name] = yaml.safe_load(value)
    try:
        return Settings(**found)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(dict(each)) for each in error.errors())
        raise ClusterError(f"{path}: " + "; ".join(sentences)) from None


def _sentence(error: dict[str, object]) -> str:
    location = error["loc"]
    name = str(location[0]) if isinstance(location, tuple) and location else ""
    if not name:
        return str(error["msg"]).removeprefix("Value error, ")
    what = {"missing": "is missing", "extra_forbidden": "is no setting"}.get(str(error["type"]), "is malformed")
    if error["type"] == "extra_forbidden":
        return f"{name} {what}: there are {', '.join(Settings.model_fields)}"
    return f"{name} {what}: wanted is {HINTS.get(name, 'a value like the one in settings.example.yaml')}"
