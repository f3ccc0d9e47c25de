"""What embeddings cost: CPU time of batches of eight with and without them: `python -m benchmarks.embedding_cost`.

Batches with and without alternate, so that other programs of the machine disturb both alike. The results are pickled,
as they are on their way to the next stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Requests
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, Features

BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the median CPU time per image of each kind, and the median of the rounds' ratios, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--runtime", default="winograd")
    parser.add_argument("--weights", default="demo")
    given = parser.parse_args(arguments)
    config = EngineConfig.model_validate({"runtime": given.runtime})
    engine = ResNetEngine(*load_weights(WeightsConfig(source=given.weights)), config)
    engine.warm_up(BATCH)
    side = engine.card.transform.crop_px
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    kinds: tuple[Features, ...] = (None, "pooled", "map")
    times: dict[Features, list[float]] = {kind: [] for kind in kinds}
    plain = [ClassifyRequest(crop, 10) for crop in crops]
    for number in range(given.rounds):
        for kind in kinds[number % 3 :] + kinds[: number % 3]:
            times[kind].append(_cpu_ms(engine, [dataclasses.replace(each, features=kind) for each in plain]))
    print(
        json.dumps(
            {
                str(kind): {
                    "ms_per_image": round(median(times[kind]) / BATCH, 3),
                    "ratio": round(median(np.divide(times[kind], times[None])), 4),
                }
                for kind in kinds
            }
        )
    )


def _cpu_ms(engine: ResNetEngine, requests: Requests) -> float:
    start = time.process_time()
    pickle.dumps(engine.classify(requests), protocol=5)
    return (time.process_time() - start) * 1000


if __name__ == "__main__":
    main()
