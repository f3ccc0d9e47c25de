"""`serve-app train` learns, resumes after an interruption, and refuses data that it cannot use."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import FeedbackConfig, WeightsConfig
from serve_app.errors import DatasetError, TrainingError
from serve_app.inference.card import load_card
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import sha256
from serve_app.observability.feedback_store import Feedback, Vote
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import ImageDataset, fingerprint, list_images, load_images
from serve_app.training.evaluate import evaluate
from serve_app.training.loop import TrainingRun, class_weights, train_loop
from serve_app.training.recipe import Recipe, default_hyperparameters
from serve_app.training.split import describe_dataset, list_dataset, split_images, warn_of_leaks
from serve_app.training.train import TrainOptions, train
from serve_app.training.trainer import Trainer
from tests.support.photos import encode, make_picture
from tests.support.weights import LABELS

RECIPE = Recipe(
    ((16, 1), (24, 2)), store_px=24, serve_px=24, batch=8, peak_lr=0.05, validation=0.1, head_epochs=1, patience=9
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in color, forty noisy pictures each."""
    root = tmp_path_factory.mktemp("data")
    for label, tint in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (root / label).mkdir()
        for i in range(40):
            picture = Image.blend(make_picture(32, 32, i), Image.new("RGB", (32, 32), tint), 0.5)
            (root / label / f"{i}.png").write_bytes(encode(picture, "PNG"))
    return root


@pytest.fixture(scope="module")
def dataset(folder: Path) -> ImageDataset:
    return load_images(*list_images(folder), RECIPE.store_px)


def training_run(dataset: ImageDataset, checkpoint: Path, recipe: Recipe = RECIPE) -> TrainingRun:
    split = split_images(dataset, None, recipe.validation, recipe.seed)
    return TrainingRun(dataset, split, recipe, checkpoint)


def test_folder_becomes_one_tensor(dataset: ImageDataset) -> None:
    """Pixels, class ids and hashes are in the order of the files."""
    assert dataset.pixels.shape == (80, 3, 24, 24)
    assert dataset.pixels.dtype == torch.uint8
    assert dataset.labels == ("green", "red")
    assert dataset.targets.tolist() == [0] * 40 + [1] * 40
    assert dataset.digests[3] == sha256(dataset.paths[3])
    assert dataset.fingerprint == fingerprint(dataset.files, dataset.labels)


def test_crops_follow_the_generator(dataset: ImageDataset) -> None:
    """Equal seeds give equal crops, different seeds give different crops; values stay in 0-255."""

    def crops(seed: int) -> torch.Tensor:
        return augment(dataset.pixels[:8], 20, Augmentation(), torch.Generator().manual_seed(seed))

    assert crops(1).shape == (8, 3, 20, 20)
    assert torch.equal(crops(1), crops(1))
    assert not torch.equal(crops(1), crops(2))
    assert float(crops(1).min()) >= 0
    assert float(crops(1).max()) <= 255


@pytest.fixture(scope="module")
def uninterrupted(dataset: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return train_loop(training_run(dataset, tmp_path_factory.mktemp("uninterrupted") / "checkpoint.safetensors"))


@pytest.mark.parametrize("at", [5, 13])
def test_a_resumed_run_equals_an_uninterrupted_one(
    dataset: ImageDataset, uninterrupted: Trainer, tmp_path: Path, at: int
) -> None:
    """Stopped in the head epochs or in the middle of an epoch, a resumed run ends in the same weights, bit for bit."""

    class Stopped(Exception):  # noqa: N818 - stands for a killed process, not for an error
        pass

    class Stopping(Trainer):
        def step(self, crops: torch.Tensor, targets: torch.Tensor) -> float:
            loss = super().step(crops, targets)
            if self.step_count == at:
                self.save(checkpoint)
                raise Stopped
            return loss

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.training.loop.Trainer", Stopping)
        with pytest.raises(Stopped):
            train_loop(training_run(dataset, checkpoint))
    resumed = train_loop(training_run(dataset, checkpoint))
    assert resumed.step_count == uninterrupted.step_count == 3 * (72 // 8)
    assert [row["validation_loss"] for row in resumed.history] == [
        row["validation_loss"] for row in uninterrupted.history
    ]
    for name, value in uninterrupted.result.items():
        assert torch.equal(value, resumed.result[name]), name


def test_only_the_last_layer_trains_at_first(dataset: ImageDataset) -> None:
    """In the head epochs nothing else changes, batch-norm statistics included; later every layer changes."""
    trainer = Trainer(dataset.labels, RECIPE, steps_per_epoch=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def changed() -> set[str]:
        trainer.step(dataset.pixels[:8].float(), dataset.targets[:8])
        now = trainer.model.state_dict()
        return {name for name in before if not torch.equal(now[name], before[name])}

    assert changed() == {"fc.weight", "fc.bias"}
    assert changed() == {"fc.weight", "fc.bias"}
    assert {"conv1.weight", "bn1.running_mean", "fc.weight"} <= changed()


def test_early_stopping_keeps_the_best_epoch(dataset: ImageDataset) -> None:
    """Two epochs without a better validation loss stop training; the result is the average of the best epoch."""
    trainer = Trainer(dataset.labels, Recipe(((16, 9),), 24, 24, patience=2), 1)
    for loss in (3.0, 1.0, 2.0):
        trainer.average.module.fc.bias.data.fill_(loss)
        trainer.end_epoch({"validation_loss": loss})
        assert not trainer.stops()
    trainer.end_epoch({"validation_loss": 1.5})
    assert trainer.stops()
    assert trainer.result["fc.bias"].tolist() == [1.0, 1.0]


def test_training_can_start_from_other_weights(weights: WeightsConfig) -> None:
    """Model and moving average get all layers; the last one only if the number of classes is equal."""
    state = load_model(weights)[0].state_dict()
    same, fewer = Trainer(LABELS, RECIPE, 9), Trainer(("a", "b"), RECIPE, 9)
    for trainer in (same, fewer):
        trainer.start_from(state)
        assert torch.equal(trainer.model.conv1.weight, state["conv1.weight"])
        assert torch.equal(trainer.average.module.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])
    assert torch.equal(same.model.fc.weight, state["fc.weight"])
    assert fewer.model.fc.weight.shape == (2, 512)


def test_a_checkpoint_of_other_settings_is_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    """The error names the settings that differ."""
    trainer = Trainer(dataset.labels, RECIPE, 9)
    trainer.save(tmp_path / "c.safetensors")
    other = replace(RECIPE, serve_px=32, augmentation=Augmentation(area=(0.5, 1)), data_sha256="0")
    with pytest.raises(TrainingError, match=r"other settings \(serve_px, augmentation, data_sha256\)"):
        Trainer(dataset.labels, other, 9).resume(tmp_path / "c.safetensors")


@pytest.mark.usefixtures("torch_runtime")
def test_a_killed_command_resumes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGKILL the same command resumes and ends with calibrated, measured weights and a learning curve."""
    options = "--weights demo --schedule 24:2 --head-epochs 1 --store-px 24 --serve-px 24 --batch 8"
    arguments = ["train", str(folder), str(tmp_path), *options.split()]
    path = tmp_path / "model.safetensors"
    command = [sys.executable, "-m", "serve_app", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert any("epoch 1 ·" in line for line in process.stdout)  # its checkpoint is written by now
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    monkeypatch.setattr(sys, "argv", ["serve-app", *arguments])
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    spec = WeightsConfig(source=str(path), sha256=sha256(path))
    card = load_card(spec)
    assert "resumed at step" in result.stdout
    assert f"sha256: {card.sha256}" in result.stdout
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (card.labels, card.transform.crop_px, card.training["seed"]) == (("green", "red"), 24, 0)
    assert card.training["recipe"]["workers"] == 1
    assert date.fromisoformat(card.training["date"]) <= date.today()
    assert card.training["command"] == shlex.join(["serve-app", *arguments])
    assert card.calibration is not None
    assert card.calibration.images == card.metrics["held-out"]["images"] == 16
    assert evaluate(spec, folder)[0]["top1"] > 0.9


def test_too_few_images_for_a_batch_are_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="72 training images do not fill one batch of 128"):
        train_loop(training_run(dataset, tmp_path / "c", Recipe(((16, 1),), 24, 24, validation=0.1)))


def test_missing_weights_to_start_from_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.safetensors"):
        train(TrainOptions(folder, tmp_path, weights="none.safetensors"))


def test_the_schedule_gives_each_epoch_its_crop() -> None:
    assert [RECIPE.crop_px(epoch) for epoch in range(3)] == [16, 24, 24]


@pytest.mark.parametrize("count", [20, 300, 50_000])
def test_defaults_suit_folders_of_any_size(weights: WeightsConfig, count: int) -> None:
    """Fine-tuning keeps the crop of the weights, trains all layers in most epochs, and bounds the images seen."""
    chosen = default_hyperparameters(count, load_card(weights).transform.crop_px)
    assert chosen.serve_px == 96
    assert 1 <= chosen.head_epochs < chosen.schedule[0][1] / 2
    assert chosen.schedule[0][1] * count <= 50_000 + 4 * count
    assert 0.02 <= chosen.validation <= 0.2


def test_unusable_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    """Missing classes, an empty class, a single class, unknown classes and broken images each get an error."""
    with pytest.raises(DatasetError, match="one sub-folder of images per class"):
        list_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match="a: contains no images"):
        list_dataset(tmp_path)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "a" / name).write_bytes(b"text")
    with pytest.raises(DatasetError, match="only one class, 'a'"):
        list_dataset(tmp_path)
    files, labels = list_images(tmp_path)
    with pytest.raises(DatasetError, match=r"1\.jpg: not a JPEG(.*\n)*.*2\.jpg: not a JPEG(.*\n)*2 images are broken"):
        load_images(files, labels, 24)
    with pytest.raises(DatasetError, match="the model has no such classes: green, red"):
        list_images(folder, labels=("cat",))


def test_broken_images_can_be_skipped(folder: Path, tmp_path: Path) -> None:
    """The other images keep their classes."""
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "green" / "0.png").write_bytes(b"text")
    loaded = load_images(*list_images(tmp_path / "data"), 24, skip_broken=True)
    assert len(loaded.paths) == len(loaded.digests) == len(loaded.pixels) == 79
    assert loaded.targets.tolist() == [0] * 39 + [1] * 40


def test_feedback_joins_the_training_images(folder: Path, tmp_path: Path) -> None:
    """An image trains with the class of the last vote on it; a class that DATA lacks is refused."""
    feedback = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))

    def vote_for(label: str, request: str) -> None:
        values = {"time": 0, "correct": False, "version": None, "caller": None, "image": None}
        vote = Vote.model_validate({**values, "request_id": request, "index": 0, "label": label})
        feedback.keep(vote, (encode(make_picture(40, 40, 99), "PNG"), "png"))

    vote_for("red", "1")
    vote_for("green", "1")
    files = list_dataset(folder, tmp_path).files
    assert len(files) == 81
    assert files[-1][1] == 0
    vote_for("blue", "2")
    with pytest.raises(DatasetError, match="classes that DATA lacks: blue"):
        list_dataset(folder, tmp_path)


def test_copies_and_uneven_classes_are_reported(folder: Path, tmp_path: Path) -> None:
    """Held-out copies of training images are dropped; copies, contradictions and uneven classes are reported."""
    for part, names in (("train", range(30)), ("val", range(30, 40))):
        for i in names:
            for label in ("green", "red") if i < 2 or i > 30 else ("green",):
                target = tmp_path / part / label / f"{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / label / f"{i}.png", target)
    shutil.copy(folder / "green" / "3.png", tmp_path / "val" / "green" / "copy.png")
    shutil.copy(folder / "green" / "4.png", tmp_path / "train" / "red" / "wrong.png")
    listed = list_dataset(tmp_path)
    loaded = load_images(listed.files, listed.labels, 24)
    split = split_images(loaded, listed.training, 0.5, 0)
    report = "\n".join(describe_dataset(loaded, split))
    assert (len(split.training), len(split.validation)) == (33, 19)
    assert not {loaded.digests[i] for i in split.training} & {loaded.digests[i] for i in split.validation}
    assert "1 held-out images are copies of training images and were left out" in report
    assert "1 images are in more than one class, for example" in report
    assert "2 images are copies of others" in report
    assert warn_of_leaks(tmp_path / "val", loaded)[0].startswith("warning: 20 test images are copies of other images")
    balance = class_weights(loaded)
    assert balance is not None
    assert balance[1] > balance[0]
