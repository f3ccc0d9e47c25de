"""Examples -> a head and a report that tells the truth about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from serve_app.heads.examples import Example
from serve_app.heads.report import HeadReport
from serve_app.heads.taught import TaughtHead
from serve_app.model_card import ModelRef


class Fitted(NamedTuple):
    """What a fit returns."""

    head: TaughtHead
    report: HeadReport


def fit(examples: Sequence[Example], backbone: ModelRef, *, seed: int = 0) -> Fitted:
    """Fit a head on examples and measure it on photos that it did not see.

    Args:
        examples: At least one; classes get their ids in the order of their names.
        backbone: The weights that made the embeddings.
        seed: Of the folds; the same examples and seed give the same head.

    Raises:
        InvalidParameterError: There is no example, or an embedding is not 512 finite numbers (422).
    """
    raise NotImplementedError
