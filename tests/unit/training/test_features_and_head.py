"""What a recipe trains on and with: cached features of a backbone, and the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.torch_model import load_model, publish
from serve_app.training import features as features_module
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import ImageDataset, load_images
from serve_app.training.features import compute_features
from serve_app.training.head import Targets, add_detail, make_targets, train_head
from serve_app.training.initial import load_initial_weights
from serve_app.training.transfer import compare_half_precision
from serve_app.training.transfer_recipe import HeadConfig
from tests.support.photos import encode, make_picture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Pictures of 48 px, stored at 32."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [(folder / f"{seed}.png", seed % 2) for seed in range(32)]
    for seed, (path, _) in enumerate(files):
        path.write_bytes(encode(make_picture(48, 48, seed), "PNG"))
    return load_images(files, ("even", "odd"), 32)


def targets_of(class_ids: torch.Tensor, source_ids: torch.Tensor | None = None, **changes: float) -> Targets:
    """Return the targets of photos of two classes that all train."""
    options = {"smoothing": 0.1, "power": -0.5, "unknown_weight": 0.25, "source_prior": 0.0} | changes
    sources = torch.zeros_like(class_ids) if source_ids is None else source_ids
    return make_targets(class_ids, sources, torch.arange(len(class_ids)), 2, **options)


def test_targets_weigh_classes_and_spread_the_unknown() -> None:
    """Of 9 and 1 photos the weights are 1 to 3 (n ** -0.5); photos of no class get equal scores."""
    targets = targets_of(torch.tensor([0] * 9 + [1] + [-1]))
    assert targets.weights[9] / targets.weights[0] == pytest.approx(3)
    assert targets.weights[:10].mean() == pytest.approx(1)
    assert targets.weights[10] == 0.25
    assert targets.probabilities[[0, 9, 10]].flatten().tolist() == pytest.approx([0.95, 0.05, 0.05, 0.95, 0.5, 0.5])


def test_what_a_source_says_about_the_class_is_not_learned() -> None:
    """A source with 3 photos of class 0 and none of class 1 offsets the logits by the logarithms of 4/5 and 1/5."""
    class_ids, source_ids = torch.tensor([0, 0, 0, 1, 0, -1]), torch.tensor([0, 0, 0, 1, 1, 0])
    offsets = targets_of(class_ids, source_ids, source_prior=1.0).offsets
    assert offsets[0].exp().tolist() == pytest.approx([0.8, 0.2])
    assert offsets[3].exp().tolist() == pytest.approx([0.5, 0.5])
    assert offsets[5].tolist() == [0, 0]
    # Features that tell nothing but the source: without the offset the head takes it for the class.
    many, sources = torch.tensor([0, 0, 0, 1, 0, 1] * 20), torch.tensor([0, 0, 0, 0, 1, 1] * 20)
    features = torch.eye(2)[sources][None].half()
    config = HeadConfig(epochs=40, batch=32, peak_lr=0.1, dropout=0.0, weight_decay=0.0)
    leaning = [
        train_head(features, torch.arange(120), targets_of(many, sources, source_prior=prior, power=0.0), config, 0)(
            features[0, :1].float()
        )
        .softmax(1)[0, 0]
        .item()
        for prior in (0.0, 1.0)
    ]
    assert leaning[0] == pytest.approx(0.75, abs=0.05)
    assert leaning[1] == pytest.approx(0.5, abs=0.05)


def test_small_photos_get_the_features_of_sharp_ones() -> None:
    """They move by what lost detail does to other photos that train; their coarse view stays, and so do the others."""
    features = torch.randn(3, 4, 512).half()
    small = torch.tensor([False, False, True, False])
    moved = add_detail(features, small, torch.tensor([0, 1, 2]))
    way = (features[0, :2].float() - features[2, :2].float()).mean(0)
    assert torch.allclose(moved[:2, 2].float(), features[:2, 2].float() + way, atol=0.01)
    assert torch.equal(moved[2], features[2])
    assert torch.equal(moved[:, ~small], features[:, ~small])
    assert torch.equal(add_detail(features, small, torch.tensor([2])), features)  # no sharp photo shows the way


def test_the_head_takes_features_as_they_are() -> None:
    """Features of very different scale are learned, and the standardization is inside the weights."""
    torch.manual_seed(0)
    class_ids = torch.arange(200) % 2
    features = torch.randn(1, 200, 4)
    features[0, :, 0] += 4 * class_ids
    features = features * torch.tensor([0.01, 1, 100, 0]) + torch.tensor([0.02, 0, -300, 1])
    targets = targets_of(class_ids)
    head = train_head(features.half(), torch.arange(200), targets, HeadConfig(epochs=20, batch=32, peak_lr=0.05), 0)
    assert (head(features[0].half().float()).argmax(1) == class_ids).float().mean() > 0.9
    again = train_head(features.half(), torch.arange(200), targets, HeadConfig(epochs=20, batch=32, peak_lr=0.05), 0)
    assert torch.equal(head.weight, again.weight)


def test_an_interrupted_cache_continues(
    dataset: ImageDataset, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is missing, or in a file that was cut, is computed again; the result is the same, bit for bit."""
    init = load_initial_weights(str(backbone))
    assert init is not None
    monkeypatch.setattr(features_module, "BATCH", 8)
    monkeypatch.setattr(features_module, "SAVE_EVERY", 1)
    batches = 0
    backbone_of: Callable[..., Any] = features_module._Backbone.__call__

    def compute(folder: Path, fail_at: int = 0) -> torch.Tensor:
        def counted(self: Any, crops: torch.Tensor) -> Any:
            nonlocal batches
            batches += 1
            if batches == fail_at:
                raise KeyboardInterrupt
            return backbone_of(self, crops)

        monkeypatch.setattr(features_module._Backbone, "__call__", counted)
        return compute_features(init.model, dataset, 2, 16, Augmentation(), 0, folder, False)

    whole = compute(tmp_path / "whole")
    assert batches == 12
    assert whole.shape == (3, 32, 512)
    batches = 0
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cut", fail_at=6)
    batches = 0
    assert torch.equal(whole, compute(tmp_path / "cut"))
    assert batches == 7
    assert len({tuple(view.flatten()[:50].tolist()) for view in whole}) == 3
    batches = 0
    compute(tmp_path / "cut")
    assert batches == 0
    arrays = sorted((tmp_path / "cut").glob("*.npy"))
    arrays[0].unlink()
    arrays[1].write_bytes(arrays[1].read_bytes()[:1000])
    assert torch.equal(whole, compute(tmp_path / "cut"))
    assert batches == 8


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
