"""Rules for the GitHub workflows that the linters of `make check` do not check."""

from __future__ import annotations

import json
import os
import re
import subprocess
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
    """The workflow itself has none; every job has a time limit."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {}
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


DEPLOY, RELEASE = WORKFLOWS["deploy"], WORKFLOWS["release"]


def step(workflow: Workflow, job: str, words: str) -> Any:
    """Return the only step of a job whose text contains some words."""
    (found,) = [each for each in workflow["jobs"][job]["steps"] if words in str(each)]
    return found


def run_step(found: Any, folder: Path, stubs: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step's commands as a runner does, with shell functions in place of some programs."""
    for name in ("output", "summary"):
        (folder / name).touch()
    files = {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary")}
    github = {"GITHUB_REPOSITORY": "Owner/Repo", "GITHUB_SHA": "abc", "RUNNER_TEMP": str(folder), **files}
    command = ["bash", "-e", "-c", stubs + "\n" + found["run"]]
    variables = {**os.environ, **github, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_nothing_ships_that_ci_has_not_passed() -> None:
    """Version tags and main run ci as part of their workflow; other branches run it on push, so none runs it twice."""
    assert WORKFLOWS["ci"]["on"]["push"] == {"branches-ignore": ["main"]}
    assert DEPLOY["jobs"]["release"]["needs"] == ["ci", "plan"]
    assert DEPLOY["jobs"]["production"]["needs"] == "release"
    assert RELEASE["jobs"]["images"]["needs"] == "ci"
    for workflow in (DEPLOY, RELEASE):
        assert workflow["jobs"]["ci"]["uses"] == "./.github/workflows/ci.yml"


def test_a_fork_without_aws_deploys_nothing() -> None:
    """Its jobs are skipped, not red; a run that waits for its approval does not keep newer runs from testing."""
    assert DEPLOY["jobs"]["plan"]["if"] == "vars.AWS_REGION != ''"
    assert "concurrency" not in DEPLOY
    assert DEPLOY["jobs"]["production"]["concurrency"] == {"group": "production", "cancel-in-progress": "false"}


@pytest.mark.parametrize(
    ("rules", "passes"), [("required_reviewers branch_policy", True), ("branch_policy", False), ("", False)]
)
def test_an_environment_without_reviewers_is_refused(tmp_path: Path, rules: str, passes: bool) -> None:
    """GitHub creates an environment that does not exist, without protection, when a job names it."""
    found = step(DEPLOY, "plan", "protection_rules")
    done = run_step(found, tmp_path, f"gh() {{ [ -n '{rules}' ] && echo '{rules}'; }}")
    assert (done.returncode == 0) == passes, done.stdout


@pytest.mark.parametrize(
    ("live", "event", "changed"),
    [
        ("HEAD", "push", False),  # what runs is this commit
        ("HEAD", "workflow_dispatch", True),  # somebody asks for it
        (None, "push", True),  # nothing runs yet
        ("4b825dc642cb6eb9a060e54bf8d69288fbee4904", "push", True),  # git's empty tree: everything differs
    ],
)
def test_main_is_deployed_if_it_differs_from_what_runs(
    tmp_path: Path, live: str | None, event: str, changed: bool
) -> None:
    """The commit that runs is in the label of the image tagged `production`."""
    labels = json.dumps({"linux/amd64": {"config": {"Labels": {"org.opencontainers.image.revision": live}}}})
    stub = f"docker() {{ echo '{labels}'; }}" if live else "docker() { echo 'not found' >&2; return 1; }"
    done = run_step(step(DEPLOY, "plan", "imagetools"), tmp_path, stub, GITHUB_EVENT_NAME=event)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == ("changed=true\n" if changed else "")


def test_the_compared_paths_are_what_images_and_nodes_are_made_of() -> None:
    """Every path exists; the sources of both images and of the cluster are among them."""
    (paths,) = re.findall("paths='(.*)'", step(DEPLOY, "plan", "imagetools")["run"])
    assert all((ROOT / path).exists() for path in paths.split())
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert {path.split("/")[0] for path in copied} | {"cluster", "Dockerfile"} <= set(paths.split())


def test_images_run_before_they_are_signed_and_are_built_once() -> None:
    """Every step from the build to the signature is skipped for a commit that has signed images."""
    steps = RELEASE["jobs"]["images"]["steps"]
    names = [each.get("id") or each.get("name") or each["uses"].split("@")[0] for each in steps]
    order = ["facts", "serve", "page", "Run both images and classify an image"]
    order += ["Check the Python packages for known vulnerabilities", "Sign both images, and remember that they are"]
    assert [name for name in names if name in order] == order
    for each in steps[names.index("facts") + 1 : names.index(order[-1]) + 1]:
        assert each.get("if") == "${{ !steps.facts.outputs.serve }}" or "cosign-installer" in each["uses"]


@pytest.mark.parametrize("signed", [True, False])
def test_a_commit_with_signed_images_gets_no_others(tmp_path: Path, signed: bool) -> None:
    """The base image's digest is looked up for a build, which pins it and records it in a label."""
    stub = (
        "docker() { case $4 in *:signed-abc) "
        + ('echo \'{"digest": "sha256:s"}\'' if signed else "return 1")
        + ';; python:3.11-slim) echo \'{"digest": "sha256:b"}\';; esac; }'
    )
    done = run_step(step(RELEASE, "images", 'signed-$GITHUB_SHA") && page'), tmp_path, stub)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())
    assert (found["name"], found["base"]) == ("ghcr.io/owner/repo", "sha256:b")
    assert (found.get("serve"), found.get("page")) == (("sha256:s",) * 2 if signed else (None, None))
    for target in ("serve", "page"):
        arguments = next(each for each in RELEASE["jobs"]["images"]["steps"] if each.get("id") == target)["with"]
        assert "PYTHON_DIGEST=${{ steps.facts.outputs.base }}" in arguments["build-args"]


@pytest.mark.parametrize("ref_type", ["branch", "tag"])
def test_only_versions_become_tags(tmp_path: Path, ref_type: str) -> None:
    """A branch may be called feature/x, which is no valid tag of an image; verification comes first."""
    stub = 'for name in docker cosign; do eval "$name() { echo $name \\$*; }"; done'
    names = {"NAME": "n", "SERVE": "sha256:s", "PAGE": "sha256:p", "SIGNER": "^x"}
    found = step(RELEASE, "images", "GITHUB_STEP_SUMMARY")
    done = run_step(found, tmp_path, stub, GITHUB_REF_TYPE=ref_type, GITHUB_REF_NAME="v1", **names)
    verify, *tags = done.stdout.splitlines()
    assert verify.startswith("cosign verify")
    assert [line.split()[5:] for line in tags] == (
        [["n/serve:v1", "n/serve@sha256:s"], ["n/page:v1", "n/page@sha256:p"]] if ref_type == "tag" else []
    )
    assert "digest: sha256:s" in (tmp_path / "summary").read_text()


def test_ci_has_the_python_of_the_images() -> None:
    """In every job that sets up Python."""
    (version,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-slim$", (ROOT / "Dockerfile").read_text(), re.M)
    versions = {each["with"]["python-version"] for _, each in STEPS if "setup-python" in each.get("uses", "")}
    assert versions == {version}


def test_commands_contain_no_expression() -> None:
    """Values reach a shell through its environment, where they cannot become code."""
    assert not [job for job, step in STEPS if "${{" in step.get("run", "")]
