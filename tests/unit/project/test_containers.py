"""Dockerfile and compose.yaml: what they promise and can be seen without a container engine."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
APIS = {"api": "cpu", "api-gpu": "gpu"}
SECRET = re.compile(r"secret|token|passw|api_?key|credential|private", re.IGNORECASE)


def instructions(stage: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions of one stage, each as its keyword and the rest."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    (found,) = [part for part in re.split(r"^FROM ", text, flags=re.MULTILINE) if part.split("\n")[0].endswith(stage)]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in found.splitlines()[1:] if line.strip()]


def env_file(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_open_to_the_network_unless_asked_for(name: str) -> None:
    """Every published port is bound to this machine's loopback address by default."""
    assert [port.split(":-")[0] for port in SERVICES[name]["ports"]] == ["${BIND"]
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_containers_can_do_little(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, bounded memory and processes."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert not {"privileged", "cap_add", "user", "network_mode", "pid", "ulimits"} & set(service)


def test_one_profile_starts_one_api() -> None:
    """Plain `docker compose up` takes the CPU's; `--profile gpu` the GPU's, under the same name in the network."""
    assert {name: SERVICES[name].get("profiles") for name in SERVICES if name != "page"} == {
        name: [profile] for name, profile in APIS.items()
    }
    assert env_file(".env") == {"COMPOSE_PROFILES": "cpu"}
    assert SERVICES["api-gpu"]["networks"]["default"]["aliases"] == ["api"]
    assert SERVICES["page"]["environment"]["API_URL"] == "http://api:8000"


def test_the_page_waits_for_a_healthy_api() -> None:
    for name in APIS:
        assert SERVICES["page"]["depends_on"][name] == {"condition": "service_healthy", "required": False}


@pytest.mark.parametrize(("name", "config"), [("api", "configs/local.yaml"), ("api-gpu", "configs/gpu.yaml")])
def test_compose_serves_the_same_files_as_a_laptop(name: str, config: str) -> None:
    """The launcher of `make run` and its config files; only the address differs."""
    command = SERVICES[name]["command"].split()
    assert command[:6] == ["python", "-m", "serve_app", "run", "--host", "0.0.0.0"]
    named = command[command.index("--config") + 1] if "--config" in command else "configs/local.yaml"
    assert named == config
    assert (ROOT / config).exists()
    assert "./configs:/app/configs:ro" in SERVICES[name]["volumes"]
    assert SERVICES[name]["env_file"] == "configs/ray.env"


def test_the_image_repeats_nothing_of_ray_env() -> None:
    """It contains the file, and its command is `serve-app run`, which reads the file."""
    serve = instructions("AS serve")
    environment = " ".join(rest for keyword, rest in serve if keyword == "ENV")
    assert not [name for name in env_file("configs/ray.env") if name in environment]
    assert ("COPY", "configs configs") in serve
    (command,) = (rest for keyword, rest in serve if keyword == "CMD" and "run" in rest)
    assert json.loads(command)[:4] == ["python", "-m", "serve_app", "run"]


@pytest.mark.parametrize("stage", ["AS serve", "AS page"])
def test_images_run_as_a_user_and_say_whether_they_are_well(stage: str) -> None:
    found = instructions(stage)
    assert [rest for keyword, rest in found if keyword == "USER"] == ["ray"]
    assert [keyword for keyword, _ in found].count("HEALTHCHECK") == 1
    labels = next(rest for keyword, rest in found if keyword == "LABEL")
    for name in ("title", "description", "revision", "base.name", "base.digest"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_no_secret_goes_into_a_layer() -> None:
    """Of the folder only named files reach the engine, and no argument or variable is made to hold a secret."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied: set[str] = set()
    for stage in ("AS base", "AS requirements", "AS page", "AS serve"):
        for keyword, rest in instructions(stage):
            if keyword == "COPY" and "--from" not in rest:
                copied |= set(rest.split()[:-1])
            if keyword in ("ARG", "ENV"):
                assert not SECRET.search(rest), rest
    assert copied == allowed
    assert not any(SECRET.search(str(service.get("environment", ""))) for service in SERVICES.values())


def test_the_page_gets_none_of_the_service() -> None:
    sources = [rest for keyword, rest in instructions("AS page") if keyword == "COPY"]
    assert not any("serve_app" in rest or "serve.txt" in rest for rest in sources)


def test_what_the_images_install_is_pinned() -> None:
    """Every requirement of the images stands in constraints.txt with one version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in project["dependencies"] + extras["aws"] + extras["page"]:
        assert normal(re.split(r"[\[=<>;\s]", requirement)[0]) in pinned, requirement


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
