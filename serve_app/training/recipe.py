"""What is trained and how: everything that decides the result, and defaults for folders of any size."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.model_card import ModelCard

HEAD_EPOCHS, EPOCHS = 4, 20  # of a small folder, from other weights
IMAGES_SEEN = 40_000  # over all epochs of a larger one
SCRATCH = ((96, 10), (128, 10))
SCRATCH_PX = 160
STORED = 1.15  # side of stored images over that of crops: room to shift


@dataclass(frozen=True)
class Recipe:
    """What decides the result, apart from the data.

    Attributes:
        schedule: (crop_px, epochs) in order: small crops first are cheaper epochs.
        store_px: Side at which images are kept in memory, in px.
        batch: Images per step, of all workers together.
        peak_lr: Learning rate after warm-up; cosine to zero from there.
        warm_up: Share of all steps that the learning rate rises over.
        momentum: Of SGD (Nesterov).
        weight_decay: On convolution and fc weights; never on norms and biases.
        label_smoothing: Probability spread over the other classes.
        ema: Decay per step of the weights' moving average, which is what is published.
        validation: Share of the images kept out of training to watch progress and to calibrate.
        seed: Of initial weights, split, order and augmentation.
        bf16: Compute in bfloat16 where the processor is faster at it.
        init_sha256: Of the weights that training starts from; none starts from scratch.
        head_epochs: Of those in ``schedule``, how many at first train the last layer alone.
        head_lr: Learning rate in those.
        patience: Epochs without a better validation loss until it stops, and goes back to the best; 0 never stops.
        data_sha256: Of the images and their labels.
        workers: Processes that share a batch.
    """

    schedule: tuple[tuple[int, int], ...]
    store_px: int
    batch: int = 128
    peak_lr: float = 0.1
    warm_up: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema: float = 0.998
    validation: float = 0.02
    seed: int = 0
    bf16: bool = False
    init_sha256: str | None = None
    head_epochs: int = 0
    head_lr: float = 0.1
    patience: int = 0
    data_sha256: str | None = None
    workers: int = 1

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(epochs for _, epochs in self.schedule)

    def crop_px(self, epoch: int) -> int:
        """The side of the training crops in ``epoch`` (from 0)."""
        for px, epochs in self.schedule:
            if epoch < epochs:
                return px
            epoch -= epochs
        raise IndexError("epoch is past the schedule")


@dataclass(frozen=True)
class Defaults:
    """What a run does where its command does not say.

    Attributes:
        schedule, store_px, batch, peak_lr, validation, head_epochs, patience: See Recipe.
        serve_px: Side at which the weights want their images.
        area: See Augmentation.
    """

    schedule: tuple[tuple[int, int], ...]
    store_px: int
    serve_px: int
    batch: int
    peak_lr: float
    validation: float
    head_epochs: int
    patience: int
    area: tuple[float, float]


def defaults(images: int, start: ModelCard | None) -> Defaults:
    """Choose for so many images: from other weights gently and briefly, from scratch at length.

    Args:
        images: All of them.
        start: Of the weights that training starts from.
    """
    validation = max(0.02, min(0.2, 1000 / images))
    if start is None:
        batch = 128 if images >= 4096 else 32
        return Defaults(SCRATCH, 144, SCRATCH_PX, batch, 0.1 * batch / 128, validation, 0, 0, (0.25, 1.5))
    px, batch = start.transform.crop_px, 128 if images >= 20_000 else 32
    epochs = max(3, min(EPOCHS, IMAGES_SEEN // images))
    head = max(1, HEAD_EPOCHS * epochs // EPOCHS)
    schedule = ((px, head + epochs),)
    return Defaults(schedule, int(px * STORED), px, batch, 0.04 * batch / 128, validation, head, 5, (0.4, 1.2))
