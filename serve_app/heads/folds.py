"""Near duplicates among taught photos, and folds that never separate them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_FOLDS = 10
MIN_INDEPENDENT = 3  # photos of a class, counting near duplicates as one, below which its accuracy is not measured
NOT_MEASURED = -1  # fold of a photo that every fit sees


def similarities(crops: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Return how alike photos are: cosines, (n, n), of the crops, or of one crop and the other's mirror image.

    Both arguments hold embeddings of length 1, (n, 512).
    """
    across = crops @ mirrored.T
    alike: np.ndarray = np.maximum(crops @ crops.T, np.maximum(across, across.T))
    return alike


def group_duplicates(alike: np.ndarray, digests: Sequence[str], threshold: float) -> np.ndarray:
    """Return the group of each photo, int, (n,): photos of one group are near duplicates, directly or through others.

    Args:
        alike: See ``similarities``.
        digests: SHA-256 of the files; equal files are duplicates.
        threshold: Cosine from which two photos are near duplicates.
    """
    from scipy.sparse.csgraph import connected_components

    _, equal = np.unique(np.asarray(digests), return_inverse=True)
    groups: np.ndarray = connected_components((alike >= threshold) | (equal[:, None] == equal), directed=False)[1]
    return groups


def assign_folds(targets: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return the fold of each photo, int, (n,), or NOT_MEASURED.

    A group is in one fold. Each class is spread over the folds as evenly as its groups allow, and the folds have about
    the same size. A class with fewer than MIN_INDEPENDENT groups stays in every fit, because a fit without it could
    not name it.
    """
    classes = int(targets.max()) + 1
    independent = np.array([len(np.unique(groups[targets == c])) for c in range(classes)])
    measured = independent >= MIN_INDEPENDENT
    folds = np.full(len(targets), NOT_MEASURED)
    if not measured.any():
        return folds
    count = min(MAX_FOLDS, int(independent.max()))
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in random.permutation(int(groups.max()) + 1)]
    held = np.zeros((count, classes), int)  # photos by fold and class
    for rows in sorted(members, key=len, reverse=True):
        if not measured[targets[rows]].all():
            continue
        of_classes = held[:, targets[rows]].sum(1)
        fold = min(range(count), key=lambda fold: (of_classes[fold], held[fold].sum()))
        folds[rows] = fold
        np.add.at(held[fold], targets[rows], 1)
    return folds
