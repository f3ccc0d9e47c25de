"""The training program: learns, survives interruption, and refuses data it cannot use."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from serve_app.config import FeedbackConfig, WeightsConfig
from serve_app.errors import DatasetError
from serve_app.inference.card import load_card
from serve_app.inference.weights import load_model, sha256
from serve_app.observability.feedback_store import Feedback, Vote
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import LabeledImages, list_images, load_images
from serve_app.training.evaluate import evaluate
from serve_app.training.fit import fit, parse, parse_schedule
from serve_app.training.loop import Job, class_weights, train
from serve_app.training.recipe import Recipe, defaults
from serve_app.training.report import describe, divide, find, leaks
from serve_app.training.trainer import Trainer
from tests.conftest import LABELS, encode, make_picture

RECIPE = Recipe(((16, 1), (24, 2)), store_px=24, batch=8, peak_lr=0.05, validation=0.1, head_epochs=1, patience=9)
FIT = [sys.executable, "-m", "serve_app.training.fit"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


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
def images(folder: Path) -> LabeledImages:
    return load_images(*list_images(folder), RECIPE.store_px)


def job(images: LabeledImages, checkpoint: Path, recipe: Recipe = RECIPE) -> Job:
    return Job(images, divide(images, None, recipe.validation, recipe.seed), recipe, Augmentation(), 24, checkpoint)


def test_folder_becomes_one_tensor(images: LabeledImages) -> None:
    assert images.pixels.shape == (80, 3, 24, 24)
    assert images.pixels.dtype == torch.uint8
    assert images.labels == ("green", "red")
    assert images.targets.tolist() == [0] * 40 + [1] * 40
    assert images.digests[3] == sha256(images.paths[3])


def test_crops_follow_the_generator(images: LabeledImages) -> None:
    """The same state gives the same crops, another gives others; values stay in 0-255."""

    def crops(seed: int) -> torch.Tensor:
        return augment(images.pixels[:8], 20, Augmentation(), torch.Generator().manual_seed(seed))

    assert crops(1).shape == (8, 3, 20, 20)
    assert torch.equal(crops(1), crops(1))
    assert not torch.equal(crops(1), crops(2))
    assert float(crops(1).min()) >= 0
    assert float(crops(1).max()) <= 255


@pytest.fixture(scope="module")
def whole(images: LabeledImages, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Trained without a stop."""
    return train(job(images, tmp_path_factory.mktemp("whole") / "checkpoint.safetensors"))


@pytest.mark.parametrize("at", [5, 13])
def test_interrupted_training_ends_as_if_it_had_not_been(
    images: LabeledImages, whole: Trainer, tmp_path: Path, at: int
) -> None:
    """Stopped while the head trains or in the middle of an epoch, and resumed: the same weights, bit for bit."""

    class Stopped(Exception):  # noqa: N818 - stands for a kill, not for an error
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
            train(job(images, checkpoint))
    resumed = train(job(images, checkpoint))
    assert resumed.step_count == whole.step_count == 3 * (72 // 8)
    assert [row["validation_loss"] for row in resumed.history] == [row["validation_loss"] for row in whole.history]
    for name, value in whole.result.items():
        assert torch.equal(value, resumed.result[name]), name


def test_the_head_trains_alone_at_first(images: LabeledImages, tmp_path: Path) -> None:
    """In its epochs nothing else changes, the batch norms' statistics included; later everything does."""
    trainer = Trainer(images.labels, RECIPE, steps_per_epoch=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def changed() -> set[str]:
        trainer.step(images.pixels[:8].float(), images.targets[:8])
        now = trainer.model.state_dict()
        return {name for name in before if not torch.equal(now[name], before[name])}

    assert changed() == {"fc.weight", "fc.bias"}
    assert changed() == {"fc.weight", "fc.bias"}
    assert {"conv1.weight", "bn1.running_mean", "fc.weight"} <= changed()


def test_it_stops_when_it_gets_no_better_and_keeps_the_best(images: LabeledImages, tmp_path: Path) -> None:
    trainer = Trainer(images.labels, Recipe(((16, 9),), 24, patience=2), 1)
    for loss in (3.0, 1.0, 2.0):
        trainer.average["fc.bias"].fill_(loss)
        trainer.end_epoch({"validation_loss": loss})
        assert not trainer.stops()
    trainer.end_epoch({"validation_loss": 1.5})
    assert trainer.stops()
    assert trainer.result["fc.bias"].tolist() == [1.0, 1.0]


def test_training_can_start_from_other_weights(weights: WeightsConfig) -> None:
    """All layers are taken over; the last one only where the number of classes is the same."""
    state = load_model(weights)[0].state_dict()
    same, fewer = Trainer(LABELS, RECIPE, 9), Trainer(("a", "b"), RECIPE, 9)
    for trainer in (same, fewer):
        trainer.start_from(state)
        assert torch.equal(trainer.model.conv1.weight, state["conv1.weight"])
        assert torch.equal(trainer.average["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
    assert torch.equal(same.model.fc.weight, state["fc.weight"])
    assert fewer.model.fc.weight.shape == (2, 512)


def test_a_checkpoint_of_other_settings_is_refused(images: LabeledImages, tmp_path: Path) -> None:
    trainer = Trainer(images.labels, RECIPE, 9)
    trainer.save(tmp_path / "c.safetensors")
    other = Recipe(((16, 1),), store_px=24, data_sha256="0")
    with pytest.raises(ValueError, match=r"other settings \(schedule, .*data_sha256\)"):
        Trainer(images.labels, other, 9).resume(tmp_path / "c.safetensors")


def test_killed_and_run_again_it_goes_on_to_the_end(folder: Path, tmp_path: Path) -> None:
    """Kill -9 in the middle, the same command again: weights, calibrated, measured, with their curve drawn."""
    options = "--weights scratch --schedule 24:4 --store-px 24 --serve-px 24 --batch 8 --peak-lr 0.05"
    command = [*FIT, str(folder), str(tmp_path), *options.split()]
    path = tmp_path / "model.safetensors"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (tmp_path / "checkpoint.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    spec = WeightsConfig(source=str(path), sha256=sha256(path))
    card = load_card(spec)
    assert "resumed at step" in said
    assert f"sha256: {card.sha256}" in said
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (card.labels, card.transform.crop_px, card.training["seed"]) == (("green", "red"), 24, 0)
    assert card.training["command"].startswith("python -m serve_app.training.fit")
    assert card.calibration is not None
    assert card.calibration.images == card.metrics["held-out"]["images"] == 16
    assert evaluate(spec, folder)[0]["top1"] > 0.9


def test_too_few_images_are_refused(images: LabeledImages, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="72 training images do not fill one batch of 128"):
        train(job(images, tmp_path / "c", Recipe(((16, 1),), 24, validation=0.1)))


def test_missing_weights_to_start_from_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.safetensors"):
        fit(parse([str(folder), str(tmp_path), "--weights", "none.safetensors"]))


def test_schedule_text() -> None:
    assert parse_schedule("48:6,64:14") == ((48, 6), (64, 14))
    assert [RECIPE.crop_px(epoch) for epoch in range(3)] == [16, 24, 24]


@pytest.mark.parametrize("count", [20, 300, 50_000])
def test_defaults_suit_folders_of_any_size(weights: WeightsConfig, count: int) -> None:
    """From other weights: their crop, a batch that fills, most of the epochs for all layers."""
    chosen = defaults(count, load_card(weights))
    assert chosen.serve_px == 96
    assert 1 <= chosen.head_epochs < chosen.schedule[0][1] / 2
    assert chosen.schedule[0][1] * count <= 50_000 + 4 * count
    assert 0.02 <= chosen.validation <= 0.2


def test_unusable_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    """No classes, an empty class, one class, unknown classes, broken pictures: each says what and where."""
    with pytest.raises(DatasetError, match="one sub-folder of images per class"):
        find(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match="a: holds no images"):
        find(tmp_path)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "a" / name).write_bytes(b"text")
    with pytest.raises(DatasetError, match="one class only, 'a'"):
        find(tmp_path)
    files, labels = list_images(tmp_path)
    with pytest.raises(DatasetError, match=r"1\.jpg: not a JPEG(.*\n)*.*2\.jpg: not a JPEG(.*\n)*2 broken in all"):
        load_images(files, labels, 24)
    with pytest.raises(DatasetError, match="not classes of the model: green, red"):
        list_images(folder, labels=("cat",))


def test_broken_images_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "green" / "0.png").write_bytes(b"text")
    found = load_images(*list_images(tmp_path / "data"), 24, skip_broken=True)
    assert len(found.paths) == len(found.digests) == len(found.pixels) == 79
    assert found.targets.tolist() == [0] * 39 + [1] * 40


def test_feedback_joins_the_training_images(folder: Path, tmp_path: Path) -> None:
    """What people said last of an image trains with the rest; a class that DATA lacks is refused."""
    feedback = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))

    def say(label: str, request: str) -> None:
        values = {"time": 0, "correct": False, "version": None, "caller": None, "image": None}
        vote = Vote.model_validate({**values, "request_id": request, "index": 0, "label": label})
        feedback.keep(vote, (encode(make_picture(40, 40, 99), "PNG"), "png"))

    say("red", "1")
    say("green", "1")
    files = find(folder, tmp_path).files
    assert len(files) == 81
    assert files[-1][1] == 0
    say("blue", "2")
    with pytest.raises(DatasetError, match="classes that DATA lacks: blue"):
        find(folder, tmp_path)


def test_copies_and_uneven_classes_are_reported(folder: Path, tmp_path: Path) -> None:
    """A copy never watches what it trained; one in two classes, few images and uneven classes are named."""
    for part, names in (("train", range(30)), ("val", range(30, 40))):
        for i in names:
            for label in ("green", "red") if i < 2 or i > 30 else ("green",):
                target = tmp_path / part / label / f"{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / label / f"{i}.png", target)
    shutil.copy(folder / "green" / "3.png", tmp_path / "val" / "green" / "copy.png")
    shutil.copy(folder / "green" / "4.png", tmp_path / "train" / "red" / "wrong.png")
    listed = find(tmp_path)
    found = load_images(listed.files, listed.labels, 24)
    split = divide(found, listed.training, 0.5, 0)
    said = "\n".join(describe(found, split))
    assert (len(split.training), len(split.validation)) == (33, 19)
    assert not {found.digests[i] for i in split.training} & {found.digests[i] for i in split.validation}
    assert "1 held-out images are copies of training images and were left out" in said
    assert "1 images lie in more than one class: for example" in said
    assert "2 images are copies of others" in said
    assert leaks(tmp_path / "val", found)[0].startswith("warning: 20 test images are copies of others in DATA")
    balance = class_weights(found)
    assert balance is not None
    assert balance[1] > balance[0]
