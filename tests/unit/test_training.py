"""The training program: learns, survives interruption, and refuses data it cannot use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from serve_app.cards import load_card
from serve_app.config import WeightsSpec
from serve_app.errors import DatasetError
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import LabelledImages, load_image_folder
from serve_app.training.evaluate import evaluate
from serve_app.training.fit import fit, parse_schedule
from serve_app.training.trainer import Recipe, Trainer
from serve_app.weights import load_model, sha256
from tests.conftest import LABELS, encode, make_picture

RECIPE = Recipe(((16, 2), (24, 2)), store_px=24, batch=8, peak_lr=0.05, validation=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in colour, forty noisy pictures each."""
    root = tmp_path_factory.mktemp("data")
    for label, tint in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (root / label).mkdir()
        for i in range(40):
            picture = Image.blend(make_picture(32, 32, i), Image.new("RGB", (32, 32), tint), 0.5)
            (root / label / f"{i}.png").write_bytes(encode(picture, "PNG"))
    return root


@pytest.fixture(scope="module")
def images(folder: Path) -> LabelledImages:
    return load_image_folder(folder, RECIPE.store_px)


def test_folder_becomes_one_tensor(images: LabelledImages) -> None:
    assert images.pixels.shape == (80, 3, 24, 24)
    assert images.pixels.dtype == torch.uint8
    assert images.labels == ("green", "red")
    assert images.targets.tolist() == [0] * 40 + [1] * 40


def test_crops_follow_the_generator(images: LabelledImages) -> None:
    """The same state gives the same crops, another gives others; values stay in 0-255."""

    def crops(seed: int) -> torch.Tensor:
        return augment(images.pixels[:8], 20, Augmentation(), torch.Generator().manual_seed(seed))

    assert crops(1).shape == (8, 3, 20, 20)
    assert torch.equal(crops(1), crops(1))
    assert not torch.equal(crops(1), crops(2))
    assert float(crops(1).min()) >= 0
    assert float(crops(1).max()) <= 255


def test_interrupted_training_ends_as_if_it_had_not_been(images: LabelledImages, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch and resumed: the same weights, bit for bit."""

    class Stopped(Exception):  # noqa: N818 - stands for a kill, not for an error
        pass

    class Stopping(Trainer):
        def step(self, crops: torch.Tensor, targets: torch.Tensor) -> float:
            loss = super().step(crops, targets)
            if self.step_count == 13:
                self.save(checkpoint)
                raise Stopped
            return loss

    checkpoint = tmp_path / "checkpoint.safetensors"
    whole = fit(images, RECIPE, Augmentation(), 24, tmp_path / "whole.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.training.fit.Trainer", Stopping)
        with pytest.raises(Stopped):
            fit(images, RECIPE, Augmentation(), 24, checkpoint)
    resumed = fit(images, RECIPE, Augmentation(), 24, checkpoint)
    assert resumed.step_count == whole.step_count == 4 * (72 // 8)
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_training_can_start_from_other_weights(weights: WeightsSpec) -> None:
    """All layers are taken over; the last one only where the number of classes is the same."""
    state = load_model(weights)[0].state_dict()
    same, fewer = Trainer(LABELS, RECIPE, 9), Trainer(("a", "b"), RECIPE, 9)
    for trainer in (same, fewer):
        trainer.start_from(state)
        assert torch.equal(trainer.model.conv1.weight, state["conv1.weight"])
        assert torch.equal(trainer.average["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
    assert torch.equal(same.model.fc.weight, state["fc.weight"])
    assert fewer.model.fc.weight.shape == (2, 512)


def test_a_checkpoint_of_other_settings_is_refused(images: LabelledImages, tmp_path: Path) -> None:
    trainer = Trainer(images.labels, RECIPE, 9)
    trainer.save(tmp_path / "c.safetensors")
    other = Recipe(((16, 1),), store_px=24)
    with pytest.raises(ValueError, match="other settings"):
        Trainer(images.labels, other, 9).resume(tmp_path / "c.safetensors")


def test_command_line_trains_publishes_and_evaluates(folder: Path, tmp_path: Path) -> None:
    """From a folder to weights with a card that says how; they classify the folder well."""
    options = "--schedule 24:12 --store-px 24 --serve-px 24 --batch 8 --peak-lr 0.05 --version tint-1"
    command = [sys.executable, "-m", "serve_app.training.fit", str(folder), str(tmp_path), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "model.safetensors"
    spec = WeightsSpec(source=str(path), sha256=sha256(path))
    card = load_card(spec)
    assert (card.version, card.labels, card.transform.crop_px) == ("tint-1", ("green", "red"), 24)
    assert card.training["command"].startswith("python -m serve_app.training.fit")
    assert card.training["seed"] == 0
    result, *_ = evaluate(spec, folder)
    assert result["images"] == 80
    assert result["top1"] > 0.9


def test_too_few_images_are_refused(images: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="72 training images do not fill one batch of 128"):
        fit(images, Recipe(((16, 1),), 24, validation=0.1), Augmentation(), 24, tmp_path / "c")


def test_missing_weights_to_start_from_are_named(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_app.training.fit", str(folder), str(tmp_path), "--init", "none.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "none.safetensors" in done.stderr


def test_schedule_text() -> None:
    assert parse_schedule("48:6,64:14") == ((48, 6), (64, 14))
    assert [RECIPE.crop_px(epoch) for epoch in range(4)] == [16, 16, 24, 24]


def test_unusable_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    """No classes, an empty class, unknown classes, broken pictures: each says what and where."""
    with pytest.raises(DatasetError, match="one sub-folder of images per class"):
        load_image_folder(tmp_path, 24)
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match="a: holds no images"):
        load_image_folder(tmp_path, 24)
    (tmp_path / "a" / "1.jpg").write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"1\.jpg: not a JPEG"):
        load_image_folder(tmp_path, 24)
    with pytest.raises(DatasetError, match="not classes of the model: green, red"):
        load_image_folder(folder, 24, labels=("cat",))
