"""Distance from the taught photos, and the threshold for "none of these"."""

from __future__ import annotations

import math

import numpy as np

KEPT = 0.93  # share of photos of the taught classes that the threshold shall keep
MIN_PHOTOS = 5  # fewer independent photos set no threshold


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings, (..., 512), each scaled to length 1; one that is all zero stays zero."""
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    scaled: np.ndarray = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def distance_to(references: np.ndarray, embedding: np.ndarray) -> float:
    """Return the cosine distance of an embedding, (512,), from the nearest reference; references are (n, 512)."""
    return max(0.0, float(1 - (references @ unit(embedding)).max()))


def distances_between(references: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the distance of each taught photo from the nearest one that is no near duplicate of it: float32, (n,)."""
    alike = references @ references.T
    alike[groups[:, None] == groups] = -1
    distances: np.ndarray = np.maximum(1 - alike.max(1), 0)
    return distances


def choose_threshold(distances: np.ndarray, groups: np.ndarray) -> float:
    """Return the distance beyond which a photo is none of the classes; infinite if too few photos set it.

    The threshold is the conformal quantile (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with conformal
    p-values"): a further photo of the taught classes is as likely to have any rank among the taught ones. Near
    duplicates count once.
    """
    _, first = np.unique(groups, return_index=True)
    ranked = np.sort(distances[first])
    if len(ranked) < MIN_PHOTOS:
        return math.inf
    return float(ranked[min(len(ranked), math.ceil(KEPT * (len(ranked) + 1))) - 1])
