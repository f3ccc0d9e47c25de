"""`serve-app deploy` against a running service under load: only the announced changes happen."""

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
from serve_app.inference.torch_model import publish
from serve_app.release.plan import Effect, plan
from serve_app.release.rollout import ServeApi, previous_config
from serve_app.release.serve_config import Config
from tests.support.configs import changed, tuned, write
from tests.support.constant_load import ConstantLoad
from tests.support.paths import ROOT
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.weights import LABELS, MEAN, STD, TINY_VERSION, publish_copy, publish_random, tiny

RATE = 15


class Command:
    """Runs `serve-app deploy` with a config."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running, self._folder = running, folder

    def __call__(self, config: Config, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serve_app", "deploy", str(write(config, self._folder))]
        command += ["--address", self._running.dashboard]
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture
def deploy(running: Running, cluster: ServeApi, tmp_path: Path) -> Command:
    return Command(running, tmp_path)


@pytest.fixture
def load(running: Running) -> ConstantLoad:
    return ConstantLoad(f"{running.api}/v1/classify", make_photo(), RATE)


def replicas(cluster: ServeApi) -> dict[str, set[str]]:
    """Deployment -> ids of its replicas."""
    deployments = cluster.state()["applications"]["classify"]["deployments"]
    return {name: {replica["replica_id"] for replica in live["replicas"]} for name, live in deployments.items()}


def test_the_dry_run_predicts_which_replicas_stay(cluster: ServeApi, deploy: Command, load: ConstantLoad) -> None:
    """A live change, more replicas and a restart of one stage affect the predicted replicas only; no request fails."""
    more = tuned(
        changed(previous_config(cluster.state()), "Preprocessor", num_replicas=2),
        "Ingress",
        top_k=3,
        max_inflight_groups=3,
    )
    restarted = changed(more, "Classifier", ray_actor_options={"num_cpus": 0, "resources": {}})
    unchanged = dict.fromkeys(("Ingress", "Preprocessor", "Classifier", "Teacher"), Effect.NOTHING)
    steps = [
        (more, unchanged | {"Ingress": Effect.RECONFIGURE, "Preprocessor": Effect.SETTINGS}),
        (restarted, unchanged | {"Classifier": Effect.RESTART}),
    ]
    with load.running():
        for config, effects in steps:
            before = replicas(cluster)
            assert {change.where.split(".")[1]: change.effect for change in plan(cluster.state(), config)} == effects
            dry = deploy(config, "--dry-run")
            assert (dry.returncode, dry.stderr) == (0, "")
            assert replicas(cluster) == before, "a dry run changes nothing"
            done = deploy(config)
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
    """Weights of NaN with a correct hash."""
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


def weights_of_nan(folder: Path) -> Config:
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
        (weights_of_nan, "are not finite numbers"),
        (does_not_start, "RuntimeError: this version does not start"),
    ],
)
def test_a_broken_version_never_answers(
    cluster: ServeApi,
    deploy: Command,
    load: ConstantLoad,
    tmp_path: Path,
    broken: Callable[[Path], Config],
    reason: str,
) -> None:
    """The command exits with 1 and the reason; the old version answers every request."""
    before = previous_config(cluster.state())
    config = copy.deepcopy(before)
    config["applications"][0].update(broken(tmp_path / "broken"))
    with load.running():
        done = deploy(config)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.endswith("; the previous config is live\n")
    assert len(done.stderr.splitlines()) == 1
    assert previous_config(cluster.state()) == before
    assert load.failed() == []
    assert set(load.versions()) == {TINY_VERSION}
    assert {outcome.label for outcome in load.outcomes} == {load.outcomes[0].label}
    assert len(load.outcomes) > RATE * 3


def measured(folder: Path, version: str, top1: float) -> Config:
    """Publish the tiny model with a card that states its accuracy on some images."""
    metrics = {"held-out": {"images": 100, "top1": top1, "fingerprint": "f" * 64}}
    return publish_copy(tiny(), folder / version, version, bias=top1 / 100, metrics=metrics).model_dump()


def test_worse_weights_need_force(cluster: ServeApi, deploy: Command, tmp_path: Path) -> None:
    """Weights whose card shows a lower accuracy than the served model change nothing without --force."""
    config = previous_config(cluster.state())
    good, worse = (measured(tmp_path, version, top1) for version, top1 in (("good", 0.9), ("worse", 0.8)))
    done = deploy(tuned(config, "Classifier", weights=good))
    assert done.returncode == 0, done.stderr
    before = previous_config(cluster.state())
    refused = deploy(tuned(config, "Classifier", weights=worse))
    assert refused.returncode == 2
    assert "accuracy on held-out: worse 80.00%, good (served) 90.00%; the new weights are worse" in refused.stderr
    assert refused.stderr.endswith("nothing was changed\n")
    assert previous_config(cluster.state()) == before
    forced = deploy(tuned(config, "Classifier", weights=worse), "--force")
    assert forced.returncode == 0, forced.stderr
    assert "answered by worse" in forced.stdout
