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
IMAGES = {"serve": "sha256:s", "serve-cpu": "sha256:c", "page": "sha256:p"}


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


def test_every_image_runs_before_any_is_signed_and_is_built_once() -> None:
    """Every step from the build to the run is skipped for an image of this commit that is signed."""
    images = RELEASE["jobs"]["images"]
    names = [each.get("id") or each.get("name") or each["uses"].split("@")[0] for each in images["steps"]]
    order = ["facts", "build", "Run it; the API classifies an image", "digest"]
    assert [name for name in names if name in order] == order
    for each in images["steps"][names.index("facts") + 1 : names.index("digest")]:
        assert each["if"] == "${{ !steps.facts.outputs.signed }}"
    assert RELEASE["jobs"]["sign"]["needs"] == "images"
    signing = [str(each) for each in RELEASE["jobs"]["sign"]["steps"]]
    assert [word for each in signing for word in ("pip-audit", "cosign sign") if word in each] == [
        "pip-audit",
        "cosign sign",
    ]


def test_the_images_are_those_of_the_dockerfile_and_one_without_cuda() -> None:
    """Each has its own output; the one without CUDA takes torch from the index that the other jobs use."""
    images = RELEASE["jobs"]["images"]
    matrix = {each["image"]: each for each in images["strategy"]["matrix"]["include"]}
    assert list(matrix) == list(images["outputs"]) == list(IMAGES)
    stages = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {each["target"] for each in matrix.values()} <= set(stages)
    assert {name: each.get("index") for name, each in matrix.items() if "index" in each} == {
        "serve-cpu": RELEASE["jobs"]["wheel"]["env"]["WHEEL_INDEX"]
    }
    arguments = step(RELEASE, "images", "build-push-action")["with"]["build-args"]
    assert {line.split("=")[0] for line in arguments.splitlines()} <= set(
        re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    )
    assert "PYTHON_DIGEST=${{ steps.facts.outputs.base }}" in arguments


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("target", "suffix"), [("serve", ""), ("serve", "-cpu"), ("page", "")])
def test_a_commit_with_a_signed_image_gets_no_other(tmp_path: Path, target: str, suffix: str, signed: bool) -> None:
    """The base image's digest is looked up for a build, which pins it and records it in a label."""
    stub = (
        f"docker() {{ case $4 in ghcr.io/owner/repo/{target}:signed-abc{suffix}) "
        + ('echo \'{"digest": "sha256:s"}\'' if signed else "return 1")
        + ';; python:3.11-slim) echo \'{"digest": "sha256:b"}\';; *) return 1;; esac; }'
    )
    done = run_step(step(RELEASE, "images", "signed=$signed"), tmp_path, stub, TARGET=target, SUFFIX=suffix)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())
    assert (found["name"], found["base"]) == (f"ghcr.io/owner/repo/{target}", "sha256:b")
    assert found.get("signed") == ("sha256:s" if signed else None)


@pytest.mark.parametrize("ref_type", ["branch", "tag"])
@pytest.mark.parametrize("signed", [True, False])
def test_only_versions_become_tags(tmp_path: Path, ref_type: str, signed: bool) -> None:
    """A branch may be called feature/x, which is no valid tag of an image; verification comes first."""
    cosign = f"cosign() {{ echo cosign $*; [ $1 = sign ] && touch {tmp_path}/signed || [ -e {tmp_path}/signed ]; }}"
    if signed:
        (tmp_path / "signed").touch()
    stub = f"docker() {{ echo docker $*; }}; {cosign}"
    found = step(RELEASE, "sign", "GITHUB_STEP_SUMMARY")
    variables = {"DIGESTS": json.dumps(IMAGES), "SIGNER": "^x", "GITHUB_REF_TYPE": ref_type, "GITHUB_REF_NAME": "v1"}
    done = run_step(found, tmp_path, stub, **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cosign verify")
    assert [line for line in lines if line.startswith("cosign sign")] == (
        [] if signed else ["cosign sign --yes ghcr.io/owner/repo/serve@sha256:s"]
    )
    tags = [line.split()[5:] for line in lines if line.startswith("docker")]
    repository = "ghcr.io/owner/repo"
    expected = [
        [f"{repository}/serve:{{}}", f"{repository}/serve@sha256:s"],
        [f"{repository}/serve:{{}}-cpu", f"{repository}/serve@sha256:c"],
        [f"{repository}/page:{{}}", f"{repository}/page@sha256:p"],
    ]
    names = ["signed-abc", *(["v1"] if ref_type == "tag" else [])]
    assert tags == [[tag.format(name), digest] for tag, digest in expected for name in names]
    pinned = yaml.safe_load((tmp_path / "summary").read_text().split("```")[1].removeprefix("yaml"))["images"]
    assert {each["name"]: each["digest"] for each in pinned} == IMAGES
    manifests = yaml.safe_load((ROOT / "cluster" / "kubernetes" / "kustomization.yaml").read_text())["images"]
    assert [each["name"] for each in pinned] == [each["name"] for each in manifests]


def test_ci_has_the_python_of_the_images() -> None:
    """In every job that sets up Python."""
    (version,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-slim$", (ROOT / "Dockerfile").read_text(), re.M)
    versions = {each["with"]["python-version"] for _, each in STEPS if "setup-python" in each.get("uses", "")}
    assert versions == {version}


def test_commands_contain_no_expression() -> None:
    """Values reach a shell through its environment, where they cannot become code."""
    assert not [job for job, step in STEPS if "${{" in step.get("run", "")]
