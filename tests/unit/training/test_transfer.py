"""`serve-app train --recipe`: several sources, cached activations, judgment by sources that were left out."""

from __future__ import annotations

import csv
import tarfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import WeightsConfig
from serve_app.errors import DatasetError
from serve_app.inference.card import load_card
from serve_app.inference.weights import sha256
from serve_app.training.class_map import Photo, left_out, limit_unknown, list_photos
from serve_app.training.evaluate import evaluate
from serve_app.training.judge import Answers, calibrate_on, make_folds
from serve_app.training.transfer_recipe import load_recipe
from tests.support.photos import encode, make_picture

TINTS = {"green": (0, 200, 0), "red": (200, 0, 0), "blue": (0, 0, 200), "gray": (128, 128, 128)}
KINDS = ("cat", "tree")
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
    "small_photos": {"sources": ["far"], "px": 16},
    "source_prior": 0.3,
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
    assert date.fromisoformat(card.training["date"]) <= date.today()
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
    ("sources", "message"),
    [(["far", "fra"], "the map has no source fra, but far, near"), (["far", "near"], "all sources are small")],
)
def test_small_photos_are_those_of_some_sources(
    data: Path, backbone: Path, tmp_path: Path, sources: list[str], message: str
) -> None:
    recipe = write_recipe(tmp_path, class_map=str(data / "map.csv"), small_photos={"sources": sources})
    arguments = ["train", str(data), str(tmp_path), "--recipe", str(recipe), "--weights", str(backbone)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert f"small_photos: {message}" in result.stderr


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


def test_unknown_photos_are_few_of_each_folder() -> None:
    """Photos of a class all stay, in their order."""
    photos = [Photo(Path(f"{i}.jpg"), "a", kind, "cat" if kind == "cat" else "") for kind in KINDS for i in range(9)]
    kept = limit_unknown(photos, 2, 0)
    assert Counter(photo.folder for photo in kept) == {"cat": 9, "tree": 2}
    assert kept == [photo for photo in photos if photo in kept]


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
