"""The head as it serves: classes, class map and similar photos of one embedding, in microseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serve_app.errors import InvalidParameterError
from serve_app.heads.unknown import distance_to, unit
from serve_app.messages import ActivationMap
from serve_app.model_card import ModelRef


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What a head says about one embedding; the fields are those of ``ClassifyResult`` where both have them."""

    class_ids: tuple[int, ...]  # best first
    labels: tuple[str, ...]  # names of ``class_ids``
    scores: tuple[float, ...]  # calibrated softmax probabilities of ``class_ids``
    margin: float  # best minus second best probability; 1 with a single class
    entropy: float  # of all probabilities, in nats
    abstain_below: float  # best scores under it count as "not sure"
    none_of_these: bool  # the photo is farther from the taught photos than ``max_distance``
    distance: float  # from the taught photos, 0-2
    max_distance: float  # infinite if too few photos were taught to set it


class Similar(NamedTuple):
    """A taught photo that resembles the one to classify."""

    example_id: str
    class_name: str
    distance: float  # 1 - cosine of the embeddings, 0-2


@dataclass(frozen=True, slots=True, eq=False)
class TaughtHead:
    """A linear layer on raw embeddings of one backbone, and the photos that it was taught with.

    Standardization and temperature are folded into ``weight`` and ``bias``. Therefore the mean of a class map plus the
    class's bias is the class's logit, as for the built-in head
    (tests/unit/heads/test_taught.py::test_map_adds_up).
    """

    labels: tuple[str, ...]  # C class names, by class id
    weight: np.ndarray  # float32, (C, 512)
    bias: np.ndarray  # float32, (C,)
    references: np.ndarray  # float32, (n, 512): embeddings of the taught photos, each of length 1
    reference_classes: np.ndarray  # int64, (n,): their class ids
    reference_ids: tuple[str, ...]  # their example ids
    max_distance: float  # farther embeddings are none of the classes; infinite without a threshold
    abstain_below: float
    backbone: ModelRef  # whose embeddings these are; those of other weights mean nothing here

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return self.weight.nbytes + self.bias.nbytes + self.references.nbytes + self.reference_classes.nbytes

    def classify(self, embedding: np.ndarray, top_k: int) -> HeadResult:
        """Return the ``top_k`` best classes of an embedding, float32, (512,); all classes if there are fewer."""
        logits = self.weight @ embedding + self.bias
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        order = np.argsort(-scores, kind="stable")
        best = order[:top_k]
        distance = distance_to(self.references, embedding)
        return HeadResult(
            class_ids=tuple(best.tolist()),
            labels=tuple(self.labels[class_id] for class_id in best),
            scores=tuple(scores[best].tolist()),
            margin=float(scores[order[0]] - scores[order[1]]) if len(order) > 1 else 1.0,
            entropy=float(-(scores * np.log(np.maximum(scores, np.finfo(np.float32).tiny))).sum()),
            abstain_below=self.abstain_below,
            none_of_these=distance > self.max_distance,
            distance=distance,
            max_distance=self.max_distance,
        )

    def class_map(self, feature_map: np.ndarray, class_id: int) -> ActivationMap:
        """Return where the evidence for a class lies, from the last feature map: float32, (512, h, w).

        Raises:
            InvalidParameterError: The head has no such class (422).
        """
        if not 0 <= class_id < len(self.labels):
            raise InvalidParameterError(
                f"explain_class: {class_id} is not a class id of this head; the largest is {len(self.labels) - 1}"
            )
        values = np.tensordot(self.weight[class_id], feature_map, 1)
        bias = float(self.bias[class_id])
        logit = float(self.weight[class_id] @ feature_map.mean((1, 2)) + self.bias[class_id])
        return ActivationMap(class_id, self.labels[class_id], values, bias, logit)

    def similar(self, embedding: np.ndarray, k: int) -> list[Similar]:
        """Return the ``k`` taught photos that are nearest to an embedding, the nearest first."""
        distances = 1 - self.references @ unit(embedding)
        nearest = np.argsort(distances, kind="stable")[:k]
        return [
            Similar(self.reference_ids[i], self.labels[self.reference_classes[i]], max(0.0, float(distances[i])))
            for i in nearest
        ]


def fold(
    weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias for raw embeddings, from those for embeddings that are standardized by mean and scale.

    All logits are divided by the temperature.
    """
    folded = weight / scale / temperature
    return folded.astype(np.float32), (bias / temperature - folded @ mean).astype(np.float32)


def is_taught_with(head: TaughtHead, model: ModelRef) -> bool:
    """Return whether a head belongs to the weights that made an embedding."""
    return head.backbone.sha256 == model.sha256


def finite_distance(distance: float) -> float | None:
    """Return a distance for JSON, which has no infinity."""
    return distance if math.isfinite(distance) else None


def references_of(embeddings: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return embeddings as the rows of ``TaughtHead.references``."""
    return unit(np.asarray(embeddings, np.float32))
