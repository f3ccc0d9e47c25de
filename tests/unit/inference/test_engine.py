"""Stage 3: the engine gives plain torchvision's answers, in any batch, and exact heat maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, Explain
from tests.support.runtimes import CPU_RUNTIMES


@pytest.fixture(scope="module", params=CPU_RUNTIMES)
def engine(weights: WeightsConfig, request: pytest.FixtureRequest) -> ResNetEngine:
    return ResNetEngine(*load_weights(weights), EngineConfig(runtime=request.param))


def items(n: int, top_k: int = 6, explain: Explain = None) -> list[ClassifyRequest[np.ndarray]]:
    random = np.random.default_rng(n)
    return [ClassifyRequest(random.integers(0, 256, (96, 96, 3), np.uint8), top_k, explain) for _ in range(n)]


def by_class(ids: tuple[int, ...], scores: tuple[float, ...]) -> np.ndarray:
    return np.array([score for _, score in sorted(zip(ids, scores, strict=True))])


def test_equals_plain_torchvision(engine: ResNetEngine, weights: WeightsConfig) -> None:
    """Folding, uint8 input and another runtime change no score by more than 1e-5."""
    model, card = load_model(weights)
    batch = items(8)
    pixels = torch.stack([torch.from_numpy(item.image) for item in batch]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.transform.mean, card.transform.std))
    with torch.inference_mode():
        expected = model((pixels - mean) / std).softmax(1).numpy()
    for answer, scores in zip(engine.classify(batch), expected, strict=True):
        assert np.abs(by_class(answer.class_ids, answer.scores) - scores).max() < 1e-5
        assert answer.class_ids[0] == scores.argmax()


def test_a_batch_equals_singles(engine: ResNetEngine) -> None:
    """A batch of 16 gives each image the scores of a batch of one: the same bits with our kernels, else within 1e-4."""
    batch = items(16)
    for together, item in zip(engine.classify(batch), batch, strict=True):
        (single,) = engine.classify([item])
        scores = [by_class(each.class_ids, each.scores) for each in (together, single)]
        assert np.abs(scores[0] - scores[1]).max() <= (0 if engine.runtime in ("winograd", "amx") else 1e-4)


def test_map_adds_up(engine: ResNetEngine) -> None:
    """mean(CAM_c) + b_c == logit_c, for every class."""
    for class_id in range(6):
        (answer,) = engine.classify(items(1, explain=class_id))
        found = answer.activation_map
        assert found is not None
        assert found.class_id == class_id
        assert found.values.shape == (3, 3)
        assert abs(found.values.mean() + found.bias - found.logit) < 1e-3


def test_logits_of_maps_are_the_models(engine: ResNetEngine, weights: WeightsConfig) -> None:
    """The logit that the map adds up to is plain torchvision's."""
    model, card = load_model(weights)
    (item,) = items(1)
    pixels = torch.from_numpy(item.image).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.transform.mean, card.transform.std))
    with torch.inference_mode():
        logits = model((pixels - mean) / std)[0]
    for class_id in range(6):
        (answer,) = engine.classify([ClassifyRequest(item.image, 1, class_id)])
        assert answer.activation_map is not None
        assert abs(answer.activation_map.logit - float(logits[class_id])) < 1e-3


def test_explains_the_best_class_and_only_on_request(engine: ResNetEngine) -> None:
    first, second = items(2)
    answers = engine.classify([first, ClassifyRequest(second.image, 2, "top")])
    assert answers[0].activation_map is None
    assert answers[1].activation_map is not None
    assert answers[1].activation_map.class_id == answers[1].class_ids[0]


def test_each_image_gets_its_own_top_k(engine: ResNetEngine) -> None:
    """More classes than there are gives all; scores fall and add up to one."""
    batch = [ClassifyRequest(item.image, k) for item, k in zip(items(3), (1, 4, 1000), strict=True)]
    answers = engine.classify(batch)
    assert [len(answer.scores) for answer in answers] == [1, 4, 6]
    assert list(answers[2].scores) == sorted(answers[2].scores, reverse=True)
    assert sum(answers[2].scores) == pytest.approx(1, abs=1e-5)


def test_uncertainty_comes_from_all_scores(engine: ResNetEngine) -> None:
    """Margin and entropy do not depend on how many classes are asked for."""
    (item,) = items(1)
    one, all_ = (engine.classify([ClassifyRequest(item.image, k)])[0] for k in (1, 6))
    scores = np.array(all_.scores)
    assert one.margin == pytest.approx(scores[0] - scores[1], abs=1e-6)
    assert one.entropy == pytest.approx(float(-(scores * np.log(scores)).sum()), abs=1e-4)


def test_warm_up_runs(engine: ResNetEngine) -> None:
    engine.warm_up(4)


def test_weights_that_give_no_numbers_never_serve(weights: WeightsConfig) -> None:
    """A model that answers NaN fails while it loads, so the version before keeps serving."""
    arrays, card = load_weights(weights)
    arrays["fc.bias"][0] = np.nan
    with pytest.raises(EngineError, match="not finite"):
        ResNetEngine(arrays, card, EngineConfig(runtime="onnxruntime")).warm_up(2)
