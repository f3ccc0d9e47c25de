"""Draw learning curve, confusion matrix, reliability diagram and mistakes as PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_app.errors import DatasetError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess
from serve_app.training.data import MAX_PIXELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # of thumbnails
MAX_TICK_LABELS = 30  # more class names overlap
THUMBNAIL = ImageTransform(resize_px=192, crop_px=192, mean=(0, 0, 0), std=(1, 1, 1))


@contextmanager
def _png(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure (size in inches) and write it to ``path`` afterwards; raise DatasetError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DatasetError(
            f"{path}: plots need matplotlib; run: make setup EXTRAS=train, or pip install '.[train]' ({error})"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    figure.savefig(path, dpi=110)


def plot_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: a row per true class, shaded by its shares; small matrices show their counts."""
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3 + 0.45 * len(labels), 12)
    with _png(path, side + 0.6, side) as figure:
        axes = figure.subplots()
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class")
        axes.set(xlabel="predicted", ylabel="truth")
        if len(labels) <= MAX_TICK_LABELS:
            axes.set_xticks(range(len(labels)), labels, rotation=90)
            axes.set_yticks(range(len(labels)), labels)
            for row, column in np.argwhere(counts):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)


def plot_reliability(diagram: Sequence[Mapping[str, Any]], ece: float, path: Path) -> None:
    """Draw accuracy against confidence; a bar with more images is darker."""
    most = max(row["images"] for row in diagram)
    with _png(path, 5, 5) as figure:
        axes = figure.subplots()
        for row in diagram:
            width, shade = row["to"] - row["from"], 0.2 + 0.8 * row["images"] / most
            axes.bar(row["from"], row["accuracy"], width, align="edge", color="C0", alpha=shade, edgecolor="white")
        axes.plot([row["confidence"] for row in diagram], [row["accuracy"] for row in diagram], "o-", color="C1")
        axes.plot([0, 1], [0, 1], "--", color="gray")
        axes.set(xlabel="confidence (best score)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(f"expected calibration error {ece:.3f}")


def plot_mistakes(mistakes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the wrong predictions in the given order, with true class, predicted class and score."""
    rows = max(1, math.ceil(len(mistakes) / COLUMNS))
    with _png(path, 2 * COLUMNS, 2.3 * rows) as figure:
        if not mistakes:
            figure.text(0.5, 0.5, "no mistakes", ha="center")
        for position, mistake in enumerate(mistakes, 1):
            axes = figure.add_subplot(rows, COLUMNS, position)
            axes.imshow(preprocess(Path(mistake["path"]).read_bytes(), THUMBNAIL, MAX_PIXELS).pixels)
            axes.set_title(f"{mistake['label']}\n→ {mistake['predicted']} {mistake['score']:.0%}", fontsize=8)
            axes.set_axis_off()


def plot_curve(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and accuracy by epoch."""
    epochs = [row["epoch"] for row in history]
    with _png(path, 7, 4) as figure:
        left = figure.subplots()
        left.plot(epochs, [row["loss"] for row in history], label="training loss")
        left.set(xlabel="epoch", ylabel="loss")
        if "validation_loss" in history[0]:
            left.plot(epochs, [row["validation_loss"] for row in history], label="held-out loss")
            right = left.twinx()
            right.plot(epochs, [row["validation_top1"] for row in history], "C2", label="held-out accuracy")
            right.set(ylabel="accuracy", ylim=(0, 1))
            right.legend(loc="center right")
        left.legend(loc="center left")
