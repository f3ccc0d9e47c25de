"""Rules for the GitHub workflows that the linters of `make check` do not check."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
Workflow = dict[str, Any]


def read(path: Path) -> Workflow:
    return yaml.load(path.read_text(), yaml.BaseLoader)  # the default loader reads the key `on` as True


WORKFLOWS = {path.stem: read(path) for path in FILES}
JOBS = [(f"{name}.{job}", spec) for name, workflow in WORKFLOWS.items() for job, spec in workflow["jobs"].items()]
STEPS = [(job, step) for job, spec in JOBS for step in spec.get("steps", [])]


def test_there_are_three_workflows() -> None:
    """The rules below apply to all of them."""
    assert list(WORKFLOWS) == ["ci", "deploy", "release"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_job_declares_its_permissions(name: str) -> None:
    """The workflow itself has none; every job has a time limit; runs of a workflow do not overlap."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert job["permissions"]
        assert "uses" in job or int(job["timeout-minutes"]) <= 90


def test_actions_are_pinned() -> None:
    """Each action is pinned by commit, with its version as a comment, to one commit in all workflows."""
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for line in re.findall(r"uses: (.*)", path.read_text()):
            if not line.startswith("./"):
                pin = re.fullmatch(r"(?P<action>[\w/-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
                assert pin, f"{path.name}: {line}"
                pins.setdefault(pin["action"], set()).add(line)
    assert "actions/checkout" in pins
    assert all(len(lines) == 1 for lines in pins.values()), pins


def test_the_checkout_stores_no_token() -> None:
    """Later steps cannot read the checkout's token from .git/config."""
    checkouts = [step for _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == sum("steps" in spec for _, spec in JOBS)
    assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)


def test_aws_is_accessed_with_a_role() -> None:
    """No access key is stored; the account number, which role and settings contain, is masked in the log."""
    text = "".join(path.read_text() for path in FILES)
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"AWS_ROLE", "CLUSTER_SETTINGS"}
    (login,) = (step for _, step in STEPS if "configure-aws-credentials" in step.get("uses", ""))
    assert login["with"]["mask-aws-account-id"] == "true"
    assert not {key for key in login["with"] if "key" in key}
    assert WORKFLOWS["deploy"]["jobs"]["production"]["environment"]["name"] == "production"


def test_commands_exist() -> None:
    """The make targets, scripts and modules that a step names are in the repository."""
    makefile = (ROOT / "Makefile").read_text()
    commands = "\n".join(step["run"] for _, step in STEPS if "run" in step)
    for target in re.findall(r"\bmake (\w+)", commands):
        assert f"\n{target}:" in makefile, target
    scripts = re.findall(r"^\.ci/\S+", commands, re.M)
    assert {*scripts} == {".ci/run", ".ci/wheel"}
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script
    for module in re.findall(r"python -m ([\w.]+)", commands):
        path = ROOT / module.replace(".", "/")
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), module


def test_changes_of_the_images_trigger_a_deployment() -> None:
    """Every path pattern matches a file, and files that go into the images match a pattern."""
    patterns = WORKFLOWS["deploy"]["on"]["push"]["paths"]
    for pattern in patterns:
        assert any(ROOT.glob(pattern)), pattern
    code = ("serve_app/app.py", "frontend/app.py", "configs/production.yaml")
    for path in (*code, "constraints.txt", "pyproject.toml", "LICENSE"):
        assert any(Path(path).match(pattern.replace("**", "*")) for pattern in patterns), path


def test_a_failed_deployment_is_rolled_back() -> None:
    """If the test after the move of the clients fails, the same command launches the previous commit."""
    steps = WORKFLOWS["deploy"]["jobs"]["production"]["steps"]
    up, test, mark, back = steps[-4:]
    assert test["id"] == "test"
    assert "curl --fail" in test["run"]
    assert "serve:production" in mark["run"]
    assert back["if"] == "${{ failure() && steps.test.outcome == 'failure' && steps.before.outputs.commit != '' }}"
    command = r"\.venv/bin/python -m cluster up --yes --set \"image=.*\" --set \"page_image=.*\""
    assert re.search(command, up["run"])
    assert re.search(command, back["run"])
    assert back["run"].index("git checkout") < back["run"].index("cluster up")


def test_commands_contain_no_expression() -> None:
    """Values reach a shell through its environment, where they cannot become code."""
    assert not [job for job, step in STEPS if "${{" in step.get("run", "")]
