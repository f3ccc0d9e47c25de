"""A fit names classes that it can tell apart, and says what it does not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import InvalidParameterError
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted, fit
from tests.support.heads import BACKBONE, WIDTH, centers, example, examples_around

THREE = ("cup", "fork", "plate")
EASY = examples_around(THREE, 10)
HARD = examples_around(THREE, 10, spread=6.0)


@pytest.fixture(scope="module")
def easy() -> Fitted:
    return fit(EASY, BACKBONE)


@pytest.fixture(scope="module")
def hard() -> Fitted:
    return fit(HARD, BACKBONE)


def predicted(fitted: Fitted, examples: list[Example]) -> list[str]:
    return [fitted.head.classify(each.embedding, 1).labels[0] for each in examples]


def test_further_photos_get_their_class(easy: Fitted) -> None:
    further = examples_around(THREE, 5, seed=9)
    assert predicted(easy, further) == [each.class_name for each in further]
    assert easy.head.labels == THREE
    assert easy.head.backbone == BACKBONE
    accuracy = easy.report.accuracy
    assert accuracy is not None
    assert (accuracy.photos, accuracy.correct, accuracy.accuracy, accuracy.high) == (30, 30, 1.0, 1.0)
    assert 0.7 < accuracy.low < 0.95, "30 right photos do not prove 100 %"
    assert (easy.report.label_errors, easy.report.most_confused, easy.report.notes) == ((), None, ())


def test_the_same_photos_give_the_same_head(easy: Fitted) -> None:
    again = fit(EASY, BACKBONE)
    np.testing.assert_array_equal(again.head.weight, easy.head.weight)
    assert again.report.model_copy(update={"fit_s": 0}) == easy.report.model_copy(update={"fit_s": 0})


def test_labels_at_random_are_seen_through() -> None:
    """Photos whose classes mean nothing: the accuracy is that of guessing, although the fit itself has no mistake."""
    random = np.random.default_rng(3)
    photos = examples_around(["same"], 45)
    shuffled = [replace(each, class_name=THREE[i % 3]) for i, each in enumerate(random.permutation(photos))]
    fitted = fit(shuffled, BACKBONE)
    accuracy = fitted.report.accuracy
    assert accuracy is not None
    assert accuracy.accuracy < 0.6
    assert accuracy.low < 1 / 3 < accuracy.high


def test_the_report_adds_up(hard: Fitted) -> None:
    report = hard.report
    confusion = np.array(report.confusion)
    assert report.accuracy is not None
    assert confusion.sum() == report.accuracy.photos == 30
    assert np.trace(confusion) == report.accuracy.correct < 30
    for class_id, each in enumerate(report.classes):
        assert each.accuracy is not None
        assert (each.photos, each.accuracy.correct) == (10, confusion[class_id, class_id])
        assert each.accuracy.high - each.accuracy.low > report.accuracy.high - report.accuracy.low
    between = confusion + confusion.T
    assert report.most_confused is not None
    first, second = (THREE.index(name) for name in report.most_confused.class_names)
    assert report.most_confused.photos == between[first, second] == np.triu(between, 1).max()


def test_temperature_calibrates_out_of_fold_scores(hard: Fitted) -> None:
    calibration = hard.report.calibration
    assert calibration is not None
    assert calibration.ece < 0.35
    assert calibration.temperature > 0


def test_duplicates_do_not_make_a_head_look_better() -> None:
    """Each photo of a hopeless task ten times: duplicates are in one fold, so the accuracy stays that of guessing."""
    random = np.random.default_rng(4)
    photos = examples_around(["same"], 24)
    labeled = [replace(each, class_name=THREE[i % 3]) for i, each in enumerate(random.permutation(photos))]
    repeated = [replace(each, id=f"{each.id}-{copy}") for each in labeled for copy in range(10)]
    accuracy = fit(repeated, BACKBONE).report.accuracy
    assert accuracy is not None
    assert (accuracy.photos, accuracy.accuracy < 0.6) == (240, True)


@pytest.mark.parametrize("kind", ["near duplicate", "mirror image"])
def test_near_duplicates_do_not_make_a_head_look_better(kind: str) -> None:
    random = np.random.default_rng(4)
    labeled = [replace(each, class_name=THREE[i % 3]) for i, each in enumerate(examples_around(["same"], 24))]
    copies = []
    for each in labeled:
        embedding = each.embedding + 0.01 * random.normal(size=WIDTH).astype(np.float32)
        crop, mirrored = (each.mirrored, embedding) if kind == "mirror image" else (embedding, each.mirrored)
        copies.append(example(each.class_name, crop, mirrored))
    report = fit([*labeled, *copies], BACKBONE).report
    assert report.accuracy is not None
    assert report.accuracy.accuracy < 0.6
    assert any("24 photos are near duplicates" in note for note in report.notes)


def test_one_class_is_an_outlier_detector() -> None:
    """It says so; photos of the class are known, others are none of these, and no accuracy is made up."""
    fitted = fit(examples_around(["cup"], 20), BACKBONE)
    report = fitted.report
    assert (report.kind, report.accuracy, report.calibration, report.confusion) == ("one_class", None, None, ())
    assert any("outlier detector" in note for note in report.notes)
    further = examples_around(["cup"], 20, seed=8)
    kept = [not fitted.head.classify(each.embedding, 1).none_of_these for each in further]
    assert sum(kept) >= 16
    for other in centers(5, seed=77):
        result = fitted.head.classify(other, 3)
        assert (result.none_of_these, result.labels, result.scores) == (True, ("cup",), (1.0,))


@pytest.mark.parametrize("photos", [1, 2])
def test_two_photos_of_a_class_are_too_few(photos: int) -> None:
    """A sentence takes the place of the number; the class is taught all the same, and the others are measured."""
    few = examples_around(["spoon"], photos, around=centers(4)[3:])
    fitted = fit([*EASY, *few], BACKBONE)
    spoon = fitted.report.classes[THREE.index("plate") + 1]
    assert (spoon.name, spoon.photos, spoon.accuracy) == ("spoon", photos, None)
    assert spoon.note is not None
    assert "too few" in spoon.note
    assert fitted.report.accuracy is not None
    assert fitted.report.accuracy.photos == 30
    assert fitted.report.photos_to_add[0].class_name == "spoon"
    further = examples_around(["spoon"], 3, seed=8, around=centers(4)[3:])
    assert predicted(fitted, further) == ["spoon"] * 3


def test_two_photos_of_every_class() -> None:
    """A head, and no number at all."""
    fitted = fit(examples_around(THREE, 2), BACKBONE)
    report = fitted.report
    assert (report.accuracy, report.calibration, report.strength) == (None, None, None)
    assert any("No class has 3 different photos" in note for note in report.notes)
    assert predicted(fitted, examples_around(THREE, 2, seed=8)) == [name for name in THREE for _ in range(2)]


def test_ten_copies_of_one_photo_are_one_photo() -> None:
    same = [replace(EASY[0], class_name="copies", id=str(number)) for number in range(10)]
    report = fit([*EASY[10:], *same], BACKBONE).report
    copies = next(each for each in report.classes if each.name == "copies")
    assert copies.accuracy is None
    assert copies.note is not None
    assert "10 photos, but only 1 different" in copies.note


def test_one_photo_teaches_without_any_number() -> None:
    fitted = fit(EASY[:1], BACKBONE)
    assert fitted.head.max_distance == np.inf
    assert fitted.report.unknown is None
    assert any("none of these" in note for note in fitted.report.notes)


def test_no_photo_is_an_error() -> None:
    with pytest.raises(InvalidParameterError, match="add at least one"):
        fit([], BACKBONE)


@pytest.mark.parametrize("values", [np.full(WIDTH, np.nan), np.full(WIDTH, np.inf), np.zeros(3)])
def test_an_embedding_that_is_none(values: np.ndarray) -> None:
    with pytest.raises(InvalidParameterError, match="512 finite numbers"):
        fit([*EASY, example("cup", values.astype(np.float32))], BACKBONE)


def test_flipped_labels_are_named_with_the_right_class() -> None:
    flipped = [replace(each, class_name="plate") if i in (1, 4) else each for i, each in enumerate(EASY)]
    errors = fit(flipped, BACKBONE).report.label_errors
    assert {error.example_id for error in errors} == {EASY[1].id, EASY[4].id}
    assert {(error.class_name, error.suggested) for error in errors} == {("plate", "cup")}


def test_the_same_photo_in_two_classes_is_named() -> None:
    copy = replace(EASY[0], id="copy", class_name="plate")
    (pair,) = fit([*EASY, copy], BACKBONE).report.near_duplicates
    assert set(pair.example_ids) == {EASY[0].id, "copy"}
    assert set(pair.class_names) == {"cup", "plate"}
    assert pair.similarity == 1


def test_advice_points_to_photos(hard: Fitted) -> None:
    """Three pieces of advice for different classes; the first is about the class that fails most."""
    advice = hard.report.photos_to_add
    assert len({each.class_name for each in advice}) == len(advice) == 3
    shares = {each.name: each.accuracy.accuracy for each in hard.report.classes if each.accuracy}
    assert shares[advice[0].class_name] == min(shares.values())
    by_id = {each.id: each.class_name for each in HARD}
    for each in advice:
        assert each.like
        assert {by_id[example_id] for example_id in each.like} == {each.class_name}
