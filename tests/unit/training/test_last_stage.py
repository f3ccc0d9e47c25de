"""What a recipe trains on and with: cached activations of a backbone, the head, stage 4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.torch_model import load_model, publish
from serve_app.training import activations as activations_module
from serve_app.training.activations import compute_activations
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import ImageDataset, load_images
from serve_app.training.initial import load_initial_weights
from serve_app.training.last_stage import make_targets, pooled, train_head, tune_last_stage
from serve_app.training.transfer import compare_half_precision
from serve_app.training.transfer_recipe import HeadConfig, LastStageConfig
from tests.support.photos import encode, make_picture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Pictures of 48 px, stored at 32."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [(folder / f"{seed}.png", seed % 2) for seed in range(32)]
    for seed, (path, _) in enumerate(files):
        path.write_bytes(encode(make_picture(48, 48, seed), "PNG"))
    return load_images(files, ("even", "odd"), 32)


def test_targets_weigh_classes_and_spread_the_unknown() -> None:
    """Of 9 and 1 photos the weights are 1 to 3 (n ** -0.5); photos of no class get equal scores."""
    class_ids = torch.tensor([0] * 9 + [1] + [-1])
    targets = make_targets(class_ids, torch.arange(11), 2, 0.1, -0.5, 0.25)
    assert targets.weights[9] / targets.weights[0] == pytest.approx(3)
    assert targets.weights[:10].mean() == pytest.approx(1)
    assert targets.weights[10] == 0.25
    assert targets.probabilities[[0, 9, 10]].flatten().tolist() == pytest.approx([0.95, 0.05, 0.05, 0.95, 0.5, 0.5])


def test_the_head_takes_features_as_they_are() -> None:
    """Features of very different scale are learned, and the standardization is inside the weights."""
    torch.manual_seed(0)
    class_ids = torch.arange(200) % 2
    features = torch.randn(1, 200, 4)
    features[0, :, 0] += 4 * class_ids
    features = features * torch.tensor([0.01, 1, 100, 0]) + torch.tensor([0.02, 0, -300, 1])
    targets = make_targets(class_ids, torch.arange(200), 2, 0.1, -0.5, 0)
    head = train_head(features.half(), torch.arange(200), targets, HeadConfig(epochs=20, batch=32, peak_lr=0.05), 0)
    assert (head(features[0].half().float()).argmax(1) == class_ids).float().mean() > 0.9
    again = train_head(features.half(), torch.arange(200), targets, HeadConfig(epochs=20, batch=32, peak_lr=0.05), 0)
    assert torch.equal(head.weight, again.weight)


def test_tuning_improves_stage_4_and_keeps_its_statistics() -> None:
    """Weights of stage and head change, the loss falls, batch-norm statistics stay; the originals are untouched."""
    torch.manual_seed(0)
    stage, head = resnet18().eval().layer4, nn.Linear(512, 2)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    class_ids = torch.arange(32) % 2
    maps = [(np.random.default_rng(0).random((32, 256, 4, 4)) + class_ids.numpy()[:, None, None, None]).astype("f2")]
    rows, targets = torch.arange(32), make_targets(class_ids, torch.arange(32), 2, 0.0, 0.0, 0)
    config = LastStageConfig(epochs=4, batch=8)
    tuned, tuned_head = tune_last_stage(stage, head, maps, rows, targets, config, 0)
    with torch.inference_mode():
        old, new = (targets.loss(h(pooled(s, maps[0], rows))) for s, h in ((stage, head), (tuned, tuned_head)))
    assert new < old - 0.1
    for name, value in tuned.state_dict().items():
        assert torch.equal(value, before[name]) == name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(stage.state_dict()[name], before[name])


def test_an_interrupted_cache_continues(
    dataset: ImageDataset, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed before the interruption is not computed again, and the result is the same, bit for bit."""
    init = load_initial_weights(str(backbone))
    assert init is not None
    monkeypatch.setattr(activations_module, "BATCH", 8)
    monkeypatch.setattr(activations_module, "SAVE_EVERY", 1)
    batches = 0
    stages: Callable[..., Any] = activations_module._Stages.__call__

    def compute(folder: Path, fail_at: int = 0) -> Any:
        def counted(self: Any, crops: torch.Tensor, mirrored: bool) -> Any:
            nonlocal batches
            batches += 1
            if batches == fail_at:
                raise KeyboardInterrupt
            return stages(self, crops, mirrored)

        monkeypatch.setattr(activations_module._Stages, "__call__", counted)
        return compute_activations(init.model, dataset, 2, Augmentation(), 0, folder, False)

    whole = compute(tmp_path / "whole")
    assert batches == 8
    batches = 0
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cut", fail_at=6)
    batches = 0
    resumed = compute(tmp_path / "cut")
    assert batches == 3
    assert torch.equal(whole.features, resumed.features)
    assert all(np.array_equal(a, b) for a, b in zip(whole.maps, resumed.maps, strict=True))
    assert not np.array_equal(whole.maps[0], whole.maps[1])
    batches = 0
    compute(tmp_path / "cut")
    assert batches == 0


def test_white_backgrounds_and_low_resolution_are_drawn(dataset: ImageDataset) -> None:
    """On white, the border is lighter than the photo; enlarged small photos have less detail."""
    plain = {"area": (1.0, 1.0), "aspect": 1.0, "rotate_deg": 0, "color": 0, "sharpness": (0, 0), "noise": 0, "gray": 0}

    def crops(**changes: float) -> torch.Tensor:
        options = Augmentation(**plain, flip=False, **changes)
        return augment(dataset.pixels, 32, options, torch.Generator().manual_seed(0))

    same, white, coarse = crops(), crops(white=1.0), crops(low_resolution=1.0)
    assert (same - dataset.pixels).abs().max() < 1
    border = torch.cat((white[:, :, 0], white[:, :, :, -1]), 2)
    assert (border == 255).float().mean() > 0.3
    assert (same == 255).float().mean() < 0.1
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (same, coarse)]
    assert detail[1] < 0.8 * detail[0]


def test_a_backbone_needs_the_names_of_a_resnet_18(backbone: Path, tmp_path: Path) -> None:
    """Missing and additional tensors are named."""
    path = tmp_path / "wrong.safetensors"
    save_file({"layer9.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"not the backbone of a ResNet-18 .* bn1\.bias"):
        load_initial_weights(str(path))
    path.write_bytes(backbone.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not the backbone of a ResNet-18: SafetensorError"):
        load_initial_weights(str(path))


def test_half_precision_on_disk_changes_no_score_by_a_percent(backbone: Path, tmp_path: Path) -> None:
    """The published float16 file, read as float32, gives the scores of the float32 model."""
    torch.manual_seed(1)
    init = load_initial_weights(str(backbone))
    assert init is not None
    card = {"name": "resnet18", "version": "v", "labels": [str(i) for i in range(1000)]}
    transform = {"resize_px": 64, "crop_px": 64, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    digest = publish(init.model.state_dict(), {**card, "transform": transform}, tmp_path).sha256
    read, _ = load_model(WeightsConfig(source=str(tmp_path / "model.safetensors"), sha256=digest))
    images = torch.randn(4, 3, 64, 64)
    assert all(p.dtype == torch.float32 for p in read.parameters())
    with torch.inference_mode():
        difference = (read(images).softmax(1) - init.model(images).softmax(1)).abs().max()
    assert 0 < difference < 0.01
    found = compare_half_precision(init.model, torch.randint(0, 256, (4, 3, 64, 64)))
    assert found["images"] == 4
    assert 0 < found["largest_score_difference"] < 0.01
