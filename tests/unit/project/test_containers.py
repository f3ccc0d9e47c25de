"""Dockerfile and compose.yaml: the guarantees that can be checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from serve_app.exposure import PUBLISHED_ON
from tests.support.paths import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
APIS = {"api": "cpu", "api-gpu": "gpu"}
SECRET = re.compile(r"secret|token|passw|api_?key|credential|private", re.IGNORECASE)


def instructions(stage: str) -> list[tuple[str, str]]:
    """Return one stage's instructions in the Dockerfile as pairs of keyword and arguments."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    parts = re.split(r"^FROM ", text, flags=re.MULTILINE)
    (block,) = [part for part in parts if part.split("\n")[0].endswith(stage)]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in block.splitlines()[1:] if line.strip()]


def env_file(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback_by_default(name: str) -> None:
    """A published port is open to the network only where BIND says so."""
    assert [port.split(":-")[0] for port in SERVICES[name]["ports"]] == ["${BIND"]
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_no_privileges(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, limited memory and processes."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert not {"privileged", "cap_add", "user", "network_mode", "pid", "ulimits"} & set(service)


def test_one_profile_starts_one_api() -> None:
    """`docker compose up` starts the CPU's, `--profile gpu` the GPU's; the page reaches both under the name `api`."""
    assert {name: SERVICES[name].get("profiles") for name in SERVICES if name != "page"} == {
        name: [profile] for name, profile in APIS.items()
    }
    assert env_file(".env") == {"COMPOSE_PROFILES": "cpu"}
    assert SERVICES["api-gpu"]["networks"]["default"]["aliases"] == ["api"]
    assert SERVICES["page"]["environment"]["API_URL"] == "http://api:8000"


def test_the_page_waits_for_a_healthy_api() -> None:
    """Holds for the API of either profile."""
    for name in APIS:
        assert SERVICES["page"]["depends_on"][name] == {"condition": "service_healthy", "required": False}


@pytest.mark.parametrize(("name", "config"), [("api", "configs/local.yaml"), ("api-gpu", "configs/gpu.yaml")])
def test_compose_serves_the_same_files_as_a_laptop(name: str, config: str) -> None:
    """Both APIs run `serve_app run` with a file of configs/; only the address differs from `make run`."""
    command = SERVICES[name]["command"].split()
    assert command[:6] == ["python", "-m", "serve_app", "run", "--host", "0.0.0.0"]
    served = command[command.index("--config") + 1] if "--config" in command else "configs/local.yaml"
    assert served == config
    assert (ROOT / config).exists()
    assert "./configs:/app/configs:ro" in SERVICES[name]["volumes"]
    assert SERVICES[name]["env_file"] == "configs/ray.env"
    assert SERVICES[name]["environment"] == {PUBLISHED_ON: "${BIND:-127.0.0.1}"}  # keyless on loopback only


def test_the_page_reads_the_data_folder_of_the_api() -> None:
    """One volume at the image's SERVE_APP_DATA: the API writes prediction log and votes, the page only reads them."""
    environment = " ".join(rest for keyword, rest in instructions("AS serve") if keyword == "ENV")
    assert "SERVE_APP_DATA=/data" in environment
    assert all("data:/data" in SERVICES[name]["volumes"] for name in APIS)
    assert SERVICES["page"]["volumes"] == ["data:/data:ro"]
    for name, key in (("PREDICTION_LOG", "prediction_log"), ("FEEDBACK_FOLDER", "feedback")):
        for file in ("local", "gpu", "production"):
            (app,) = yaml.safe_load((ROOT / "configs" / f"{file}.yaml").read_text())["applications"]
            (ingress,) = (each for each in app["deployments"] if each["name"] == "Ingress")
            assert SERVICES["page"]["environment"][name] == f"/data/{ingress['user_config'][key]['folder']}"


def test_the_image_repeats_nothing_of_ray_env() -> None:
    """It contains the file, and its command is `serve-app run`, which reads the file."""
    serve = instructions("AS serve")
    environment = " ".join(rest for keyword, rest in serve if keyword == "ENV")
    assert not [name for name in env_file("configs/ray.env") if name in environment]
    assert ("COPY", "configs configs") in serve
    (command,) = (rest for keyword, rest in serve if keyword == "CMD" and "run" in rest)
    assert json.loads(command)[:4] == ["python", "-m", "serve_app", "run"]


@pytest.mark.parametrize("stage", ["AS serve", "AS page"])
def test_images_have_a_user_a_health_check_and_labels(stage: str) -> None:
    """Both images run as `ray`, report their health, and name their commit, base image and license."""
    lines = instructions(stage)
    assert [rest for keyword, rest in lines if keyword == "USER"] == ["ray"]
    assert [keyword for keyword, _ in lines].count("HEALTHCHECK") == 1
    labels = next(rest for keyword, rest in lines if keyword == "LABEL")
    for name in ("title", "description", "licenses", "revision", "base.name", "base.digest"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_the_pages_health_check_follows_its_base_path() -> None:
    """On EC2 the page is served below /page, where its health is too."""
    (check,) = (rest for keyword, rest in instructions("AS page") if keyword == "HEALTHCHECK")
    command = check.partition("CMD ")[2].replace("wget", "echo")
    for path, url in (
        ("", "http://127.0.0.1:8501/_stcore/health"),
        ("page", "http://127.0.0.1:8501/page/_stcore/health"),
    ):
        environment = {**os.environ, "STREAMLIT_SERVER_BASE_URL_PATH": path}
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == url


def test_no_secret_goes_into_a_layer() -> None:
    """Only the files that are copied reach the engine, and no build argument or variable is named like a secret."""
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
    assert {path.split("/")[0] for path in copied} == allowed
    assert not any(SECRET.search(str(service.get("environment", ""))) for service in SERVICES.values())


def test_the_page_works_with_the_code_that_its_image_contains(tmp_path: Path) -> None:
    """Every module of the page imports with the copied files alone, without pydantic, torch and ray."""
    for keyword, rest in instructions("AS page"):
        *sources, target = rest.split()
        if keyword == "COPY" and sources[0].startswith(("frontend", "serve_app")):
            (tmp_path / target).mkdir(exist_ok=True)
            for source in sources:
                path = ROOT / source
                if path.is_dir():
                    shutil.copytree(path, tmp_path / target, dirs_exist_ok=True)
                else:
                    shutil.copy(path, tmp_path / target)
    assert not (tmp_path / "serve_app" / "config.py").exists()
    paths = [path for path in (tmp_path / "frontend").rglob("*.py") if path.name not in ("__init__.py", "app.py")]
    modules = [".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in paths]
    program = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('pydantic', 'torch', 'ray', 'fastapi')))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "ours = [module for name, module in sys.modules.items() if name.startswith(('serve_app', 'frontend'))]\n"
        "print(*(module.__file__ for module in ours), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # An editable installation finds in the repository what the copy lacks.
    assert [path for path in done.stdout.splitlines() if not path.startswith(f"{tmp_path}/")] == []


def test_requirements_of_the_images_are_pinned() -> None:
    """constraints.txt has a version for every requirement that an image installs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in extras["api"] + extras["aws"] + extras["tracing"] + extras["page"]:
        assert canonicalize_name(re.split(r"[\[=<>;\s]", requirement)[0]) in pinned, requirement
