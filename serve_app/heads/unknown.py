"""Distance from the taught photos, and the threshold for "none of these"."""

from __future__ import annotations

import numpy as np


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings, (..., 512), each scaled to length 1; one that is all zero stays zero."""
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    scaled: np.ndarray = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def distance_to(references: np.ndarray, embedding: np.ndarray) -> float:
    """Return the cosine distance of an embedding, (512,), from the nearest reference; references are (n, 512)."""
    return max(0.0, float(1 - (references @ unit(embedding)).max()))
