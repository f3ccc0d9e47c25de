"""The demo model: its file, its card, and the recipe that made it."""

from __future__ import annotations

import csv

import torch
from safetensors.torch import load_file

from frontend.components.samples import load_samples
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.card import DEMO, load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.torch_model import load_model, to_arrays
from serve_app.messages import ClassifyRequest
from serve_app.paths import PACKAGE
from serve_app.preprocessing.transform import preprocess
from serve_app.training.transfer import IN_CARD
from serve_app.training.transfer_recipe import load_recipe


def test_the_demo_model_is_shipped_whole() -> None:
    """At least 120 described classes, its hash matches, and its file is as small as promised."""
    model, card = load_model(WeightsConfig(source="demo"))
    assert model.fc.out_features == len(card.labels) >= 120
    assert DEMO.stat().st_size < 25e6
    assert card.transform.crop_px == 224
    assert all(card.descriptions[label].endswith(".") for label in card.labels)
    assert {"data", "sources", "command", "seed", "minutes", "recipe", "init"} <= set(card.training)
    assert card.left_out
    assert {"left-out sources", "same source"} <= set(card.metrics)


def test_the_demo_recipe_is_the_one_in_the_card() -> None:
    """Rerunning the shipped recipe would give these classes: card and recipe file name the same ones."""
    card = load_card(WeightsConfig(source="demo"))
    recipe = load_recipe(PACKAGE / "training" / "recipes" / "demo-2.yaml")
    assert (card.version, card.labels) == (recipe.version, tuple(recipe.classes))
    assert (card.descriptions, card.left_out) == (recipe.classes, recipe.left_out)
    assert card.training["recipe"] == recipe.model_dump(mode="json", exclude=IN_CARD | {"class_map"})
    with recipe.class_map.open(newline="") as file:
        mapped = {row["class"] for row in csv.DictReader(file)} - {""}
    assert mapped == {*recipe.classes, *recipe.left_out}


def test_half_precision_on_disk_changed_no_score_of_the_demo_by_a_percent() -> None:
    """Training compared the scores of the float32 weights with those of the float16 file, read as float32."""
    model, card = load_model(WeightsConfig(source="demo"))
    stored = {name: value.dtype for name, value in load_file(DEMO).items() if ".running_" not in f".{name}"}
    assert {dtype for name, dtype in stored.items() if not name.endswith("tracked")} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert card.training["float16"]["images"] >= 100
    assert 0 < card.training["float16"]["largest_score_difference"] < 0.01


def test_the_samples_of_the_page_get_the_right_class() -> None:
    """A visitor's first click shows a right answer, and a sure one."""
    model, card = load_model(WeightsConfig(source="demo"))
    requests = [
        ClassifyRequest(preprocess(each.photo.data, card.transform, 10**6).pixels, 1) for each in load_samples()
    ]
    results = ResNetEngine(to_arrays(model), card, EngineConfig(runtime="torch")).classify(requests)
    expected = ("cat", "cup", "bee", "horse", "pyramid", "red panda")
    assert tuple(result.labels[0] for result in results) == expected
    assert min(result.scores[0] for result in results) > card.calibration.abstain_below
