"""The settings that differ between two installations. Capacity is set in ec2.yaml, the service in configs/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Image = Annotated[str, Field(pattern=r"^[\w./:-]+@sha256:[0-9a-f]{64}$")]
EXPECTED = {
    "image": "an image by digest, REPOSITORY@sha256:…",
    "page_image": "an image by digest, REPOSITORY@sha256:…",
    "ami": "the id of an AMI, ami-…; settings.example.yaml says how to find the current one",
    "subnets": "a list of two or more subnet-…",
    "public_url": "the clients' address, https://NAME, without a path",
    "monthly_budget": "whole US dollars",
}


class ClusterError(Exception):
    """One sentence for the operator: what is wrong, where, and what to do."""


class Settings(BaseModel):
    """One installation in one AWS account and region; settings.example.yaml explains each field."""

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
    public_url: str | None = Field(default=None, pattern=r"^https://[\w.-]+$")
    alarm_email: str | None = Field(default=None, pattern=r"^[^@\s]+@[^@\s]+$")
    monthly_budget: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.certificate is None) != (self.client_cidr is None):
            raise ValueError("certificate and client_cidr belong together: set both for a load balancer, or neither")
        if self.public_url and not self.certificate:
            raise ValueError("public_url needs a load balancer: set certificate and client_cidr too, or remove it")
        if self.monthly_budget and not self.alarm_email:
            raise ValueError("monthly_budget needs an address: set alarm_email too, or remove it")
        return self

    @property
    def registry(self) -> str:
        """Host of the registry from which nodes pull the image."""
        return self.image.partition("/")[0]

    @property
    def cluster(self) -> str:
        """Name of the image's Ray cluster, `NAME-DIGEST`: each image runs on nodes of its own."""
        return f"{self.name}-{self.image.rpartition(':')[2][:12]}"


def read_settings(path: Path, overrides: Sequence[str] | None = None) -> Settings:
    """Read a settings file, YAML as in settings.example.yaml; each override, `NAME=VALUE`, replaces one setting.

    Raises:
        ClusterError: The file cannot be read, or a setting is missing, unknown or malformed.
    """
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"cannot read the settings ({reason}): copy cluster/settings.example.yaml there") from None
    if not isinstance(values, dict):
        raise ClusterError(f"{path}: not a mapping: write one `name: value` per line, as in settings.example.yaml")
    for override in overrides or ():
        name, equals, value = override.partition("=")
        if not equals:
            raise ClusterError(f"--set {override}: no value: write --set NAME=VALUE")
        values[name] = yaml.safe_load(value)
    try:
        return Settings(**values)
    except ValidationError as error:
        # An element of a list counts as its setting; dict.fromkeys drops the repetitions.
        problems = dict.fromkeys(_describe(item["loc"], item["type"], item["msg"]) for item in error.errors())
        raise ClusterError(f"{path}: " + "; ".join(problems)) from None


def _describe(location: tuple[int | str, ...], kind: str, message: str) -> str:
    if not location:  # a check of the settings as a group
        return message.removeprefix("Value error, ")
    name = str(location[0])
    if kind == "extra_forbidden":
        return f"{name} is not a setting: remove it, or use one of {', '.join(Settings.model_fields)}"
    problem = "is missing" if kind == "missing" else "is malformed"
    return f"{name} {problem}: expected {EXPECTED.get(name, 'a value like the one in settings.example.yaml')}"
