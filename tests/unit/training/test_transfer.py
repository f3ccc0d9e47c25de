"""`serve-app train --recipe`: several sources, cached activations, judgment by sources that were left out."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import WeightsConfig
from serve_app.errors import DatasetError, WeightsError
from serve_app.inference.card import load_card
from serve_app.inference.weights import load_model, sha256
from serve_app.training import activations as activations_module
from serve_app.training.activations import compute_activations
from serve_app.training.augment import Augmentation, augment
from serve_app.training.class_map import Photo, left_out, list_photos
from serve_app.training.data import ImageDataset, load_images
from serve_app.training.evaluate import evaluate
from serve_app.training.initial import load_initial_weights
from serve_app.training.judge import Answers, calibrate_on, make_folds
from serve_app.training.last_stage import make_targets, pooled, train_head, tune_last_stage
from serve_app.training.transfer_recipe import HeadConfig, LastStageConfig, load_recipe
from tests.support.photos import encode, make_picture

TINTS = {"green": (0, 200, 0), "red": (200, 0, 0), "blue": (0, 0, 200), "gray": (128, 128, 128)}
COLUMNS = ("archive", "folder", "source", "class")
MAP = [
    ("near", "green", "near", "green"),
    ("near", "red", "near", "red"),
    ("near", "blue", "near", "blue"),  # has no other source
    ("near", "gray", "near", ""),
    ("far.tar", "far/green", "far", "green"),
    ("far.tar", "far/red", "far", "red"),
    ("far.tar", "far/gray", "far", "dropped"),
]
RECIPE: dict[str, Any] = {
    "version": "tint-1",
    "class_map": "map.csv",
    "px": 32,
    "views": 2,
    "head": {"epochs": 20, "batch": 16},
    "last_stage": {"epochs": 1, "batch": 16},
    "unknown_weight": 0.5,
    "judge": {"leave_out": [["near"], ["far"]], "keep_right": 0.9},
    "classes": {"green": "Things that are green.", "red": "Things that are red.", "blue": "Things that are blue."},
    "left_out": {"dropped": "taken for gray"},
    "licenses": {"photos": "drawn by the test"},
    "notes": "Knows three colors.",
}


def draw(folder: Path, color: str, side: int, seeds: range) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        picture = Image.blend(make_picture(side, side, seed), Image.new("RGB", (side, side), TINTS[color]), 0.6)
        (folder / f"{seed}.png").write_bytes(encode(picture, "PNG"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and an archive of photos, of different sizes, with their map."""
    root = tmp_path_factory.mktemp("sources")
    for color in TINTS:
        draw(root / "near" / color, color, 48, range(16))
    for color in ("green", "red", "gray"):
        draw(root / "unpacked" / "far" / color, color, 16, range(100, 116))
    with tarfile.open(root / "far.tar", "w") as tar:
        tar.add(root / "unpacked" / "far", "far")
    write_map(root, MAP)
    return root


def write_map(root: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with (root / "map.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return root / "map.csv"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under torchvision's names, in half precision, without the last layer."""
    torch.manual_seed(0)
    state = {k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def dataset(data: Path) -> ImageDataset:
    labels = ("green", "red")
    files = [(path, i) for i, label in enumerate(labels) for path in sorted((data / "near" / label).iterdir())]
    return load_images(files, labels, 32)


def write_recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False))
    return path


@pytest.mark.usefixtures("torch_runtime")
def test_a_recipe_gives_weights_that_know_the_classes(data: Path, backbone: Path, tmp_path: Path) -> None:
    """One command trains, judges by left-out sources and writes a card that says all of it."""
    recipe = write_recipe(data)
    arguments = ["train", str(data), str(tmp_path), "--recipe", str(recipe), "--weights", str(backbone)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "without far: top-1" in result.stdout
    spec = WeightsConfig(source=str(tmp_path / "model.safetensors"), sha256=sha256(tmp_path / "model.safetensors"))
    card = load_card(spec)
    assert card.labels == ("green", "red", "blue")
    assert (card.version, card.transform.crop_px, card.notes) == ("tint-1", 32, "Knows three colors.")
    assert card.descriptions == RECIPE["classes"]
    assert (card.left_out, card.licenses) == (RECIPE["left_out"], RECIPE["licenses"])
    assert card.training["sources"] == {"near": 48, "far": 32}
    assert card.training["init"] == {"backbone": "backbone.safetensors", "sha256": sha256(backbone)}
    assert card.calibration is not None
    assert card.metrics["left-out sources"]["images"] == 64
    assert card.calibration.images == 64 + card.metrics["same source"]["images"]
    assert card.calibration.unknown_images == 32
    assert card.calibration.right_kept is not None
    assert card.calibration.right_kept >= 0.9
    assert set(card.metrics["without near"]["classes"]) == {"green", "red"}
    assert set(card.metrics["same source"]["classes"]) == {"blue"}
    draw(tmp_path / "new" / "green", "green", 40, range(200, 210))
    draw(tmp_path / "new" / "blue", "blue", 40, range(200, 210))
    assert evaluate(spec, tmp_path / "new")[0]["top1"] > 0.9


def test_options_that_the_recipe_decides_are_refused(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(data)
    arguments = ["train", str(data), str(tmp_path), "--recipe", str(recipe), "--peak-lr", "0.1", "--workers", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--workers, --peak-lr: has no effect with --recipe" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": {"green": "only one"}}, r"recipe\.yaml: classes: .*at least 2"),
        ({"augmentation": {"blurr": 1}}, "augmentation: .*blurr"),
        ({"class_map": "none.csv"}, r"class_map: no such file: .*none\.csv"),
        ({"head": {"epochs": 0}}, r"head\.epochs: "),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The message names the file and the field."""
    write_map(tmp_path, MAP)
    with pytest.raises(DatasetError, match=message):
        load_recipe(write_recipe(tmp_path, **changes))


def test_sources_are_listed_with_their_classes(data: Path, tmp_path: Path) -> None:
    """A class that the recipe leaves out counts as unknown; archives are unpacked once."""
    photos = list_photos(data, data / "map.csv", {"green", "red"}, tmp_path)
    assert len(photos) == 7 * 16
    assert {(p.source, p.label) for p in photos} == {(s, c) for s in ("near", "far") for c in ("green", "red", "")}
    (tmp_path / "far.tar" / "far" / "green" / "100.png").unlink()
    assert len(list_photos(data, data / "map.csv", {"green", "red"}, tmp_path)) == 7 * 16 - 1


def test_a_wrong_class_map_is_refused(data: Path, tmp_path: Path) -> None:
    """Missing columns, folders, archives, photos and classes each get an error that names the line."""

    def list_all(rows: list[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS) -> None:
        list_photos(data, write_map(tmp_path, rows, columns), {"green"}, tmp_path)

    with pytest.raises(DatasetError, match="lacks the columns source, class"):
        list_all([], ("archive", "folder"))
    with pytest.raises(DatasetError, match=r"line 2: no such folder or archive: .*nowhere"):
        list_all([("nowhere", "green", "a", "green")])
    with pytest.raises(DatasetError, match=r"line 3: no images in .*none"):
        list_all([MAP[0], ("near", "none", "a", "green")])
    with pytest.raises(DatasetError, match="no photos of green"):
        list_all([MAP[1]])
    (data / "cut.tar").write_bytes((data / "far.tar").read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"line 2: .*cut\.tar is not a complete tar archive"):
        list_all([("cut.tar", "far/green", "far", "green")])


def photos_of(*rows: tuple[str, str]) -> list[Photo]:
    return [Photo(Path(f"{i}.jpg"), source, f"{source}/{label}", label) for i, (source, label) in enumerate(rows)]


def test_only_classes_with_another_source_are_left_out() -> None:
    """A class that only the left-out source has keeps its photos, so that it competes."""
    photos = photos_of(("a", "cat"), ("b", "cat"), ("a", "dog"), ("a", ""))
    assert left_out(photos, ("a",)) == [True, False, False, False]
    assert left_out(photos, ("a", "b")) == [False, False, False, False]


def test_folds_never_judge_what_they_train_on() -> None:
    """Judged photos, and folders of photos of no class, do not train in the same fold; all others do."""
    photos = photos_of(*[("a", "cat"), ("b", "cat"), ("a", "dog")] * 20, *[("a", ""), ("b", "")] * 5)
    folds = make_folds(photos, [("a",), ("b",)], 0)
    for fold in folds:
        parts = [set(rows.tolist()) for rows in (fold.training, fold.judged, fold.same_source, fold.unknown)]
        assert sum(map(len, parts)) == len(photos) == len(set().union(*parts))
        judged, same_source, unknown = ([photos[i] for i in part] for part in parts[1:])
        assert {p.label for p in judged} == {"cat"}
        assert len(judged) == 20
        assert {p.label for p in same_source} == {"dog"}
        assert {p.label for p in unknown} == {""}
        assert not {p.folder for p in unknown} & {photos[i].folder for i in parts[0]}
    with pytest.raises(DatasetError, match="judge: c has no photos of a class that other sources have too"):
        make_folds(photos, [("a",), ("c",)], 0)
    assert {*folds[0].same_source.tolist()}.isdisjoint(folds[1].same_source.tolist())
    assert sum(len(fold.unknown) for fold in folds) == 10


def test_the_threshold_keeps_right_answers_and_rejects_unknown_things() -> None:
    """It lies where the chosen share of right answers is kept; what that does to unknown photos is counted."""
    random = np.random.default_rng(0)
    best = random.uniform(0.5, 1, 1000)
    judged = Answers(np.stack([best, 1 - best], 1).astype(np.float32), np.arange(1000))
    unknown = Answers(np.full((100, 2), 0.5, np.float32), np.arange(1000, 1100))
    targets = (random.random(1000) > best).astype(np.int64)
    calibration = calibrate_on([judged], [unknown], targets, 0.9, "0" * 64)
    assert calibration.temperature == pytest.approx(1, abs=0.15)
    assert calibration.right_kept == pytest.approx(0.9, abs=0.002)
    assert (calibration.unknown_images, calibration.unknown_abstained) == (100, 1.0)
    assert calibration.ece < 0.05


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


@pytest.mark.usefixtures("torch_runtime")
def test_half_precision_on_disk_changes_no_score_by_a_percent(data: Path, backbone: Path, tmp_path: Path) -> None:
    """The published float16 file, read as float32, gives the scores of the float32 model."""
    from serve_app.inference.weights import publish

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
