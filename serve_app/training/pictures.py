"""Numbers of training and evaluation -> PNG files."""

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

COLUMNS = 6
MOST_NAMES = 30  # more labels than these nobody can read
THUMBNAIL = ImageTransform(resize_px=192, crop_px=192, mean=(0, 0, 0), std=(1, 1, 1))


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches that becomes a PNG file when it is done.

    Raises:
        DatasetError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DatasetError(f"{path}: pictures need matplotlib: pip install '.[train]' ({error})") from error
    made = Figure(figsize=(width, height), layout="constrained")
    yield made
    made.savefig(path, dpi=110)


def draw_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Rows are the truth, each shaded by its shares; small matrices show their counts."""
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3 + 0.45 * len(labels), 12)
    with figure(path, side + 0.6, side) as made:
        axes = made.subplots()
        made.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class")
        axes.set(xlabel="predicted", ylabel="truth")
        if len(labels) <= MOST_NAMES:
            axes.set_xticks(range(len(labels)), labels, rotation=90)
            axes.set_yticks(range(len(labels)), labels)
            for row, column in np.argwhere(counts):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)


def draw_reliability(diagram: Sequence[Mapping[str, Any]], ece: float, path: Path) -> None:
    """What best scores promise against what they keep; each bar's darkness is its share of the images."""
    most = max(each["images"] for each in diagram)
    with figure(path, 5, 5) as made:
        axes = made.subplots()
        for each in diagram:
            width, shade = each["to"] - each["from"], 0.2 + 0.8 * each["images"] / most
            axes.bar(each["from"], each["accuracy"], width, align="edge", color="C0", alpha=shade, edgecolor="white")
        axes.plot([each["confidence"] for each in diagram], [each["accuracy"] for each in diagram], "o-", color="C1")
        axes.plot([0, 1], [0, 1], "--", color="gray")
        axes.set(xlabel="best score", ylabel="share that was right", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(f"expected calibration error {ece:.3f}")


def draw_mistakes(mistakes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The wrong answers that were given with most confidence, worst first."""
    rows = max(1, math.ceil(len(mistakes) / COLUMNS))
    with figure(path, 2 * COLUMNS, 2.3 * rows) as made:
        if not mistakes:
            made.text(0.5, 0.5, "no mistakes", ha="center")
        for place, each in enumerate(mistakes, 1):
            axes = made.add_subplot(rows, COLUMNS, place)
            axes.imshow(preprocess(Path(each["path"]).read_bytes(), THUMBNAIL, MAX_PIXELS).pixels)
            axes.set_title(f"{each['label']}\n→ {each['predicted']} {each['score']:.0%}", fontsize=8)
            axes.set_axis_off()


def draw_curve(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and accuracy by epoch."""
    epochs = [row["epoch"] for row in history]
    with figure(path, 7, 4) as made:
        left = made.subplots()
        left.plot(epochs, [row["loss"] for row in history], label="training loss")
        left.set(xlabel="epoch", ylabel="loss")
        if "validation_loss" in history[0]:
            left.plot(epochs, [row["validation_loss"] for row in history], label="held-out loss")
            right = left.twinx()
            right.plot(epochs, [row["validation_top1"] for row in history], "C2", label="held-out accuracy")
            right.set(ylabel="accuracy", ylim=(0, 1))
            right.legend(loc="center right")
        left.legend(loc="center left")
