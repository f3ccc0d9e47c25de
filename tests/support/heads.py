"""Heads and examples for tests: clusters of made-up embeddings, and heads that need no fit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.heads.examples import Example, new_example_id
from serve_app.heads.fit import Fitted
from serve_app.heads.report import ClassReport, HeadReport
from serve_app.heads.suggestions import Suggestion
from serve_app.heads.taught import TaughtHead, references_of
from serve_app.model_card import ModelRef

BACKBONE = ModelRef(name="demo", version="1", sha256="a" * 64)
WIDTH = 512


def centers(classes: int, seed: int = 0) -> np.ndarray:
    """Return a center per class, as pooled features are: not negative, most of them small."""
    return np.random.default_rng(seed).gamma(0.5, 1.0, (classes, WIDTH)).astype(np.float32)


def examples_around(
    labels: Sequence[str], photos: int, spread: float = 0.5, seed: int = 0, around: np.ndarray | None = None
) -> list[Example]:
    """Return ``photos`` examples of each label around the label's center; the mirror image is close to its photo."""
    random = np.random.default_rng(seed)
    middle = centers(len(labels)) if around is None else around
    made = []
    for label, center in zip(labels, middle, strict=True):
        for _ in range(photos):
            embedding = np.maximum(center + spread * random.normal(size=WIDTH), 0).astype(np.float32)
            mirrored = np.maximum(embedding + 0.1 * spread * random.normal(size=WIDTH), 0).astype(np.float32)
            made.append(example(label, embedding, mirrored))
    return made


def example(label: str, embedding: np.ndarray, mirrored: np.ndarray | None = None, kept_photo: bool = False) -> Example:
    """Return an example of a photo whose hash is made from its embedding."""
    return Example(
        id=new_example_id(),
        class_name=label,
        embedding=embedding,
        mirrored=embedding if mirrored is None else mirrored,
        photo_sha256=hashlib.sha256(embedding.tobytes()).hexdigest(),
        added="2026-01-01T00:00:00+00:00",
        kept_photo=kept_photo,
    )


def suggestion(
    example: Example, *, caller: str | None = "bob", days: float = 1, kept_photo: bool = False
) -> Suggestion:
    """Return the suggestion of an example that is like another one and has an id of its own."""
    own = replace(example, id=new_example_id(), kept_photo=kept_photo)
    return Suggestion(own, BACKBONE, caller, int(time.time() + days * 86400))


def unfitted(examples: Sequence[Example], seed: int = 0) -> Fitted:
    """Return a head with random weights for these examples, with an empty report; quicker than a fit."""
    labels = tuple(sorted({each.class_name for each in examples}))
    random = np.random.default_rng(seed)
    head = TaughtHead(
        labels=labels,
        weight=random.normal(size=(len(labels), WIDTH)).astype(np.float32),
        bias=random.normal(size=len(labels)).astype(np.float32),
        references=references_of([each.embedding for each in examples]),
        reference_classes=np.array([labels.index(each.class_name) for each in examples]),
        reference_ids=tuple(each.id for each in examples),
        max_distance=0.5,
        abstain_below=0.4,
        backbone=BACKBONE,
    )
    counts = {label: sum(each.class_name == label for each in examples) for label in labels}
    classes = tuple(ClassReport(name=label, photos=counts[label], accuracy=None) for label in labels)
    return Fitted(head, HeadReport(kind="classes", photos=len(examples), accuracy=None, classes=classes))
