"""A checkpoint that a power cut or a full disk has damaged costs its training, and refuses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from serve_app.training.data import list_images, load_images
from serve_app.training.loop import TrainingRun, train_loop
from serve_app.training.recipe import Recipe
from serve_app.training.split import split_images
from serve_app.training.trainer import Trainer
from tests.support.faults import POWER_CUT, DiskRecorder, full_disk
from tests.support.photos import encode

RECIPE = Recipe(((16, 1),), store_px=16, serve_px=16, batch=4, peak_lr=0.05, validation=0.0)


@pytest.fixture
def run(tmp_path: Path) -> TrainingRun:
    """Two steps on eight pictures of two classes."""
    for label, color in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(4):
            picture = Image.new("RGB", (16, 16), (*color[:2], i))
            (tmp_path / "data" / label / f"{i}.png").write_bytes(encode(picture, "PNG"))
    dataset = load_images(*list_images(tmp_path / "data"), RECIPE.store_px)
    split = split_images(dataset, None, RECIPE.validation, RECIPE.seed)
    return TrainingRun(dataset, split, RECIPE, tmp_path / "checkpoint.safetensors")


def test_damaged_checkpoint_starts_from_the_beginning(
    run: TrainingRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty, zeros, or cut in the middle: the run says so and trains all steps. Its checkpoint is on disk."""
    disk = DiskRecorder(monkeypatch)
    trainer = train_loop(run)
    assert (disk.renamed, disk.unsafe, disk.unnamed) == ({"checkpoint.safetensors"}, [], [])
    whole = run.checkpoint.read_bytes()
    for content in (*POWER_CUT, whole[: len(whole) // 2]):
        run.checkpoint.write_bytes(content)
        with pytest.raises(SafetensorError):
            trainer.resume(run.checkpoint)
    trainer = train_loop(run)
    assert (trainer.step_count, len(trainer.history)) == (2, 1)
    assert "cannot be read" in capsys.readouterr().out


def test_full_disk_keeps_the_old_checkpoint(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(run.dataset.labels, RECIPE, 2)
    trainer.save(run.checkpoint)
    whole = run.checkpoint.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(run.checkpoint)
    assert run.checkpoint.read_bytes() == whole
    assert [path.name for path in run.checkpoint.parent.glob(".*")] == []
