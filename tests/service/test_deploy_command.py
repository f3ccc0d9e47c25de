"""The deploy command against a running service, under load: what it says happens, and nothing else does."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve_app.config import WeightsConfig
from serve_app.inference.weights import publish
from serve_app.release.plan import Effect, plan
from serve_app.release.rollout import Cluster, previous_config
from serve_app.release.serve_config import Config
from tests.conftest import LABELS, MEAN, STD, make_photo, publish_random
from tests.support.configs import changed, tuned, write
from tests.support.constant_load import ConstantLoad
from tests.support.paths import ROOT
from tests.support.running import Running
from tests.support.weights import publish_demo

RATE = 15


class Command:
    """Runs the deploy command with a config."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running, self._folder = running, folder

    def __call__(self, config: Config, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serve_app.release.deploy", str(write(config, self._folder))]
        command += ["--address", self._running.dashboard]
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture
def deploy(running: Running, cluster: Cluster, tmp_path: Path) -> Command:
    return Command(running, tmp_path)


@pytest.fixture
def load(running: Running) -> ConstantLoad:
    return ConstantLoad(f"{running.api}/v1/classify", make_photo(), RATE)


def replicas(cluster: Cluster) -> dict[str, set[str]]:
    """Ids of the replicas of each stage."""
    deployments = cluster.state()["applications"]["classify"]["deployments"]
    return {name: {each["replica_id"] for each in one["replicas"]} for name, one in deployments.items()}


def test_the_dry_run_is_right(cluster: Cluster, deploy: Command, load: ConstantLoad) -> None:
    """Live change, more replicas, restart of one stage: the replicas that it says stay, stay, and no request fails."""
    config = previous_config(cluster.state())
    more = tuned(changed(config, "Preprocessor", num_replicas=2), "Ingress", top_k=3, max_inflight_groups=3)
    restarted = changed(more, "Classifier", ray_actor_options={"num_cpus": 0, "resources": {}})
    steps = [
        (more, {"Ingress": Effect.RECONFIGURE, "Preprocessor": Effect.SETTINGS, "Classifier": Effect.NOTHING}),
        (restarted, {"Ingress": Effect.NOTHING, "Preprocessor": Effect.NOTHING, "Classifier": Effect.RESTART}),
    ]
    with load.running():
        for wanted, effects in steps:
            before = replicas(cluster)
            assert {each.where.split(".")[1]: each.effect for each in plan(cluster.state(), wanted)} == effects
            dry = deploy(wanted, "--dry-run")
            assert (dry.returncode, dry.stderr) == (0, "")
            assert replicas(cluster) == before, "a dry run changes nothing"
            done = deploy(wanted)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(dry.stdout)
            after = replicas(cluster)
            for stage, effect in effects.items():
                stayed = before[stage] <= after[stage]
                assert stayed == (effect is not Effect.RESTART), stage
                assert effect is not Effect.RESTART or not before[stage] & after[stage], stage
            assert len(after["Preprocessor"]) == 2
    assert load.failed() == []


def nan_weights(folder: Path) -> WeightsConfig:
    """Weights whose numbers are none, correctly signed."""
    spec = publish_random(folder)
    state = load_file(spec.source)
    state["fc.bias"] = torch.full_like(state["fc.bias"], torch.nan)
    transform = {"resize_px": 112, "crop_px": 96, "mean": MEAN, "std": STD}
    card = publish(state, {"name": "resnet18", "version": "nan", "labels": LABELS, "transform": transform}, folder)
    return WeightsConfig(source=spec.source, sha256=card.sha256)


def wrong_hash(folder: Path) -> Config:
    spec = publish_random(folder)
    Path(spec.source).write_bytes(Path(spec.source).read_bytes()[:-1] + b"\x01")
    return {"args": {"weights": spec.model_dump()}}


def not_a_number(folder: Path) -> Config:
    return {"args": {"weights": nan_weights(folder).model_dump()}}


def does_not_start(_folder: Path) -> Config:
    return {
        "import_path": "tests.service.broken_start:build_app",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
    }


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (wrong_hash, "sha256 is"),
        (not_a_number, "scores that are not finite"),
        (does_not_start, "RuntimeError: this version does not start"),
    ],
)
def test_a_broken_version_never_answers(
    cluster: Cluster,
    deploy: Command,
    load: ConstantLoad,
    tmp_path: Path,
    broken: Callable[[Path], Config],
    reason: str,
) -> None:
    """The command says why and exits with 1; the old version has answered every request meanwhile."""
    before = previous_config(cluster.state())
    wanted = copy.deepcopy(before)
    wanted["applications"][0].update(broken(tmp_path / "broken"))
    with load.running():
        done = deploy(wanted)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.endswith("; the previous config is live\n")
    assert len(done.stderr.splitlines()) == 1
    assert previous_config(cluster.state()) == before
    assert load.failed() == []
    assert set(load.versions()) == {"demo-1"}
    assert {outcome.label for outcome in load.outcomes} == {load.outcomes[0].label}
    assert len(load.outcomes) > RATE * 3


def measured(folder: Path, version: str, top1: float) -> Config:
    """Publish the demo model with a card that states its accuracy on some images."""
    metrics = {"held-out": {"images": 100, "top1": top1, "fingerprint": "f" * 64}}
    return publish_demo(folder / version, version, bias=top1 / 100, metrics=metrics).model_dump()


def test_weights_that_are_known_to_be_worse_need_force(cluster: Cluster, deploy: Command, tmp_path: Path) -> None:
    """By the cards of what is served and what is to be; nothing changes before somebody says so."""
    config = previous_config(cluster.state())
    good, worse = (measured(tmp_path, version, top1) for version, top1 in (("good", 0.9), ("worse", 0.8)))
    done = deploy(tuned(config, "Classifier", weights=good))
    assert done.returncode == 0, done.stderr
    before = previous_config(cluster.state())
    refused = deploy(tuned(config, "Classifier", weights=worse))
    assert refused.returncode == 2
    assert "on held-out worse is right in 80.00%, good (served) in 90.00%: it is worse; --force" in refused.stderr
    assert refused.stderr.endswith("nothing was changed\n")
    assert previous_config(cluster.state()) == before
    forced = deploy(tuned(config, "Classifier", weights=worse), "--force")
    assert forced.returncode == 0, forced.stderr
    assert "answered by worse" in forced.stdout
