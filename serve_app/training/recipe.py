"""The hyperparameters of a training run, and defaults for datasets of any size."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.model_card import ModelCard

HEAD_EPOCHS, EPOCHS = 4, 20  # for a small dataset, when fine-tuning
IMAGES_SEEN = 40_000  # over all epochs of a larger dataset, when fine-tuning
SCRATCH_SCHEDULE = ((96, 10), (128, 10))
SCRATCH_STORE_PX, SCRATCH_SERVE_PX = 144, 160
FINE_TUNING_PATIENCE = 5
STORE_MARGIN = 1.15  # stored side over crop side, so that crops can shift


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, besides augmentation and the side of served images.

    A checkpoint stores it. A run resumes only with an equal recipe.

    Attributes:
        schedule: (crop_px, epochs) in order; epochs with small crops cost less.
        store_px: Side at which images are kept in memory, in px.
        batch: Images per step, of all workers together.
        peak_lr: Learning rate after warm-up; a cosine takes it to zero.
        warm_up: Fraction of the steps over which the learning rate rises.
        momentum: Nesterov momentum of SGD.
        weight_decay: For convolution and linear weights; norms and biases have none.
        label_smoothing: Probability spread over all classes.
        ema: Decay per step of the weights' moving average, which is published.
        validation: Fraction of the images held out for early stopping and calibration.
        seed: Seed of initial weights, split, order and augmentation.
        bf16: Compute in bfloat16.
        init_sha256: Hash of the weights that training starts from; None starts from scratch.
        head_epochs: First epochs of ``schedule`` that train the last layer only.
        head_lr: Learning rate in those epochs.
        patience: Epochs without a better validation loss before training stops and takes the best epoch; 0 never
            stops.
        data_sha256: Fingerprint of the images and their labels.
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
        """Number of epochs in the schedule."""
        return sum(epochs for _, epochs in self.schedule)

    def crop_px(self, epoch: int) -> int:
        """Return the side of the training crops in ``epoch``, counted from 0."""
        for px, epochs in self.schedule:
            if epoch < epochs:
                return px
            epoch -= epochs
        raise IndexError("epoch is past the schedule")


@dataclass(frozen=True)
class Hyperparameters:
    """The settings whose default depends on the dataset; `serve-app train` overrides each by its option.

    Attributes:
        schedule, store_px, batch, peak_lr, validation, head_epochs, patience: See Recipe.
        serve_px: Side of the images that the service will feed the model, in px.
        crop_area: See Augmentation.area.
    """

    schedule: tuple[tuple[int, int], ...]
    store_px: int
    serve_px: int
    batch: int
    peak_lr: float
    validation: float
    head_epochs: int
    patience: int
    crop_area: tuple[float, float]


def default_hyperparameters(images: int, init: ModelCard | None) -> Hyperparameters:
    """Choose hyperparameters: few epochs at a low learning rate from other weights, many from scratch.

    Args:
        images: Number of images.
        init: Card of the weights that training starts from; None starts from scratch.
    """
    validation = max(0.02, min(0.2, 1000 / images))
    if init is None:
        batch = 128 if images >= 4096 else 32
        peak_lr = 0.1 * batch / 128
        return Hyperparameters(
            SCRATCH_SCHEDULE, SCRATCH_STORE_PX, SCRATCH_SERVE_PX, batch, peak_lr, validation, 0, 0, (0.25, 1.5)
        )
    px, batch = init.transform.crop_px, 128 if images >= 20_000 else 32
    epochs = max(3, min(EPOCHS, IMAGES_SEEN // images))
    head_epochs = max(1, HEAD_EPOCHS * epochs // EPOCHS)
    schedule, peak_lr = ((px, head_epochs + epochs),), 0.04 * batch / 128
    return Hyperparameters(
        schedule, int(px * STORE_MARGIN), px, batch, peak_lr, validation, head_epochs, FINE_TUNING_PATIENCE, (0.4, 1.2)
    )
