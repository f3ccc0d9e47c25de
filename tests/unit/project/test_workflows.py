"""The workflows keep the house rules that their linters (`make check`) do not know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
Workflow = dict[str, Any]


def read(path: Path) -> Workflow:
    return yaml.load(path.read_text(), yaml.BaseLoader)  # `on` stays a word


WORKFLOWS = {path.stem: read(path) for path in FILES}
JOBS = [(f"{name}.{job}", rules) for name, flow in WORKFLOWS.items() for job, rules in flow["jobs"].items()]
STEPS = [(job, step) for job, rules in JOBS for step in rules.get("steps", [])]


def test_the_three_workflows_are_there() -> None:
    assert list(WORKFLOWS) == ["ci", "deploy", "release"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_is_permitted_at_large(name: str) -> None:
    """A workflow has no permission, each job names its own; two runs do not meet."""
    flow = WORKFLOWS[name]
    assert flow["permissions"] == {}
    assert flow["concurrency"]["group"]
    for rules in flow["jobs"].values():
        assert rules["permissions"]
        assert "uses" in rules or int(rules["timeout-minutes"]) <= 90


def test_actions_are_pinned() -> None:
    """By commit, with the version as a comment, and the same one everywhere."""
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for line in re.findall(r"uses: (.*)", path.read_text()):
            if not line.startswith("./"):
                pin = re.fullmatch(r"(?P<action>[\w/-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
                assert pin, f"{path.name}: {line}"
                pins.setdefault(pin["action"], set()).add(line)
    assert "actions/checkout" in pins
    assert all(len(lines) == 1 for lines in pins.values()), pins


def test_the_checkout_leaves_no_token_behind() -> None:
    checkouts = [step for _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(WORKFLOWS)
    assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)


def test_aws_is_reached_by_a_role() -> None:
    """No key; the role's name and the cluster's addresses hold the account's number, so the log masks them."""
    text = "".join(path.read_text() for path in FILES)
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"AWS_ROLE", "CLUSTER_SETTINGS"}
    (login,) = (step for _, step in STEPS if "configure-aws-credentials" in step.get("uses", ""))
    assert login["with"]["mask-aws-account-id"] == "true"
    assert not {key for key in login["with"] if "key" in key}
    assert WORKFLOWS["deploy"]["jobs"]["production"]["environment"]["name"] == "production"


def test_commands_exist() -> None:
    """Make targets, scripts, modules and paths that a step names are in the repository."""
    makefile = (ROOT / "Makefile").read_text()
    commands = "\n".join(step["run"] for _, step in STEPS if "run" in step)
    for target in re.findall(r"\bmake (\w+)", commands):
        assert f"\n{target}:" in makefile, target
    for script in re.findall(r"^\.\S+/run$", commands, re.M):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"python -m ([\w.]+)", commands):
        path = ROOT / module.replace(".", "/")
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), module


def test_a_deployment_watches_what_matters() -> None:
    """Every pattern matches something, and all that goes into the images is among them."""
    patterns = WORKFLOWS["deploy"]["on"]["push"]["paths"]
    for pattern in patterns:
        assert any(ROOT.glob(pattern)), pattern
    for path in ("serve_app/app.py", "frontend/app.py", "configs/production.yaml", "constraints.txt", "pyproject.toml"):
        assert any(Path(path).match(pattern.replace("**", "*")) for pattern in patterns), path


def test_a_failed_deployment_goes_back() -> None:
    """Once clients were moved, a failed test launches the commit before, by the same command."""
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


def test_no_expression_is_pasted_into_a_command() -> None:
    """Values reach a shell through its environment, where they cannot become code."""
    assert not [job for job, step in STEPS if "${{" in step.get("run", "")]
