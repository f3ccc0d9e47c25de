"""A taught head names classes, draws class maps and finds similar photos."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import InvalidParameterError
from serve_app.heads.fit import fit
from serve_app.heads.taught import fold, references_of
from serve_app.messages import ActivationMap
from tests.support.heads import BACKBONE, WIDTH, example, examples_around, unfitted

CUPS = examples_around(["my cup", "other cup", "plate"], 6)


@pytest.fixture(scope="module")
def feature_map() -> np.ndarray:
    """What the network's last stage gives for one image: not negative."""
    return np.random.default_rng(5).gamma(0.5, 1, (WIDTH, 7, 7)).astype(np.float32)


def test_map_adds_up(feature_map: np.ndarray) -> None:
    """The mean of a class map plus the bias is the logit that the scores are made of."""
    head = fit(CUPS, BACKBONE).head
    result = head.classify(feature_map.mean((1, 2)), 3)
    logits = {}
    for class_id, label in enumerate(head.labels):
        drawn = head.class_map(feature_map, class_id)
        assert isinstance(drawn, ActivationMap)
        assert (drawn.label, drawn.values.shape, drawn.values.dtype) == (label, (7, 7), np.float32)
        assert drawn.values.mean() + drawn.bias == pytest.approx(drawn.logit, abs=1e-3)
        logits[class_id] = drawn.logit
    expected = np.exp([logits[c] for c in result.class_ids])
    np.testing.assert_allclose(result.scores, expected / expected.sum(), rtol=1e-3)


def test_standardization_and_temperature_fold_into_the_layer() -> None:
    random = np.random.default_rng(1)
    weight, bias, embedding = random.normal(size=(3, WIDTH)), random.normal(size=3), random.normal(size=WIDTH)
    mean, scale = random.normal(size=WIDTH), random.uniform(0.5, 2, WIDTH)
    folded_weight, folded_bias = fold(weight, bias, mean, scale, 1.7)
    expected = (weight @ ((embedding - mean) / scale) + bias) / 1.7
    np.testing.assert_allclose(folded_weight @ embedding + folded_bias, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 3), (10, 3)])
def test_top_k(asked: int, given: int) -> None:
    """Best first; margin and entropy are those of all classes, whatever is asked for."""
    head = unfitted(CUPS).head
    result, full = head.classify(CUPS[0].embedding, asked), head.classify(CUPS[0].embedding, 3)
    assert len(result.scores) == len(result.labels) == len(result.class_ids) == given
    assert result.labels == tuple(head.labels[c] for c in result.class_ids)
    assert list(full.scores) == sorted(full.scores, reverse=True)
    assert sum(full.scores) == pytest.approx(1)
    assert result.margin == pytest.approx(full.scores[0] - full.scores[1])
    assert result.entropy == full.entropy == pytest.approx(-sum(s * math.log(s) for s in full.scores if s), abs=1e-4)


def test_none_of_these_beyond_the_threshold() -> None:
    head = replace(unfitted(CUPS).head, max_distance=0.3)
    near = head.classify(CUPS[0].embedding * 3, 1)
    assert (near.none_of_these, near.distance) == (False, pytest.approx(0, abs=1e-5))
    far = head.classify(-CUPS[0].embedding, 1)
    assert far.none_of_these
    assert far.distance > 1
    assert not replace(head, max_distance=math.inf).classify(-CUPS[0].embedding, 1).none_of_these


def test_an_embedding_of_zeros_is_none_of_these() -> None:
    """A black photo may have no feature at all; the result is finite."""
    result = unfitted(CUPS).head.classify(np.zeros(WIDTH, np.float32), 3)
    assert result.none_of_these
    assert np.isfinite([*result.scores, result.distance, result.entropy]).all()


def test_similar_photos_come_nearest_first() -> None:
    head = unfitted(CUPS).head
    similar = head.similar(CUPS[4].embedding * 2, 5)
    assert (similar[0].example_id, similar[0].class_name) == (CUPS[4].id, "my cup")
    assert similar[0].distance == pytest.approx(0, abs=1e-5)
    distances = [each.distance for each in similar]
    assert distances == sorted(distances)
    assert len(head.similar(CUPS[4].embedding, 1000)) == len(CUPS)
    assert all(isinstance(each.distance, float) for each in similar)


@pytest.mark.parametrize("class_id", [-1, 3])
def test_a_class_that_the_head_lacks(class_id: int, feature_map: np.ndarray) -> None:
    with pytest.raises(InvalidParameterError, match="the largest is 2"):
        unfitted(CUPS).head.class_map(feature_map, class_id)


def test_a_single_class_has_no_margin_to_lose() -> None:
    only = [example("my cup", each.embedding) for each in CUPS[:6]]
    result = unfitted(only).head.classify(CUPS[0].embedding, 5)
    assert (result.labels, result.scores, result.margin, result.entropy) == (("my cup",), (1.0,), 1.0, 0.0)


def test_references_have_length_one() -> None:
    lengths = np.linalg.norm(references_of([each.embedding for each in CUPS]), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
