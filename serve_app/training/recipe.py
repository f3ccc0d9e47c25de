"""The hyperparameters of a training run, and defaults for datasets of any size."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.training.augment import Augmentation

HEAD_EPOCHS, EPOCHS = 4, 20  # for a small dataset, when fine-tuning
IMAGES_SEEN = 40_000  # over all epochs of a larger dataset, when fine-tuning
SCRATCH_SCHEDULE = ((96, 10), (128, 10))
SCRATCH_STORE_PX, SCRATCH_SERVE_PX = 144, 160
FINE_TUNING_PATIENCE = 5
STORE_MARGIN = 1.15  # stored side over crop side, so that crops can shift


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run.

    A checkpoint stores it. A run resumes only with an equal recipe.
    """

    schedule: tuple[tuple[int, int], ...]  # (crop_px, epochs) in order; epochs with small crops cost less
    store_px: int  # side at which images are kept in memory
    serve_px: int  # side of the images that the service will feed the model
    augmentation: Augmentation = field(default_factory=Augmentation)
    batch: int = 128  # images per step, of all workers together
    peak_lr: float = 0.1  # learning rate after warm-up; a cosine takes it to zero
    warm_up: float = 0.1  # fraction of the steps over which the learning rate rises
    momentum: float = 0.9  # Nesterov momentum of SGD
    weight_decay: float = 5e-4  # for convolution and linear weights; norms and biases have none
    label_smoothing: float = 0.1  # probability spread over all classes
    ema: float = 0.998  # decay per step of the weights' moving average, which is published
    validation: float = 0.02  # fraction of the images held out for early stopping and calibration
    seed: int = 0  # of initial weights, split, order and augmentation
    bf16: bool = False  # compute in bfloat16
    init_sha256: str | None = None  # hash of the weights that training starts from; None starts from scratch
    head_epochs: int = 0  # first epochs of the schedule, which train the last layer only
    head_lr: float = 0.1  # learning rate in those epochs
    patience: int = 0  # epochs without a better validation loss before the best one is taken; 0 never stops
    data_sha256: str | None = None  # fingerprint of the images and their labels
    workers: int = 1  # processes that share a batch

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
    """The settings whose default depends on the dataset; `serve-app train` overrides each by its option. See Recipe."""

    schedule: tuple[tuple[int, int], ...]
    store_px: int
    serve_px: int  # side of the images that the service will feed the model
    batch: int
    peak_lr: float
    validation: float
    head_epochs: int
    patience: int
    crop_area: tuple[float, float]  # see Augmentation.area


def default_hyperparameters(images: int, init_px: int | None) -> Hyperparameters:
    """Choose hyperparameters: few epochs at a low learning rate from other weights, many from scratch.

    ``init_px`` is the side of the images that the initial weights were trained for; None trains from scratch.
    """
    validation = max(0.02, min(0.2, 1000 / images))
    if init_px is None:
        batch = 128 if images >= 4096 else 32
        peak_lr = 0.1 * batch / 128
        return Hyperparameters(
            SCRATCH_SCHEDULE, SCRATCH_STORE_PX, SCRATCH_SERVE_PX, batch, peak_lr, validation, 0, 0, (0.25, 1.5)
        )
    px, batch = init_px, 128 if images >= 20_000 else 32
    epochs = max(3, min(EPOCHS, IMAGES_SEEN // images))
    head_epochs = max(1, HEAD_EPOCHS * epochs // EPOCHS)
    schedule, peak_lr = ((px, head_epochs + epochs),), 0.04 * batch / 128
    return Hyperparameters(
        schedule, int(px * STORE_MARGIN), px, batch, peak_lr, validation, head_epochs, FINE_TUNING_PATIENCE, (0.4, 1.2)
    )
