"""Time the CPU runtimes and rank them, in a process of its own: a serving replica needs one of them in memory, not all.

``python -m serve_app.inference.runtimes.timing TRANSFORM BATCH_SIZES`` reads safetensors from stdin and prints names.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors.numpy import load, save

from serve_app.inference.child import ChildError, begin_child, run_child
from serve_app.inference.network import Arrays
from serve_app.inference.runtimes.base import Runtime, RuntimeFactory
from serve_app.inference.runtimes.factories import runtime_factories
from serve_app.model_card import ImageTransform

log = logging.getLogger("serve_app")
ROUNDS = 4
LAST = "torch"  # not timed, see rank_runtimes
DROP_RATIO = 1.5  # a runtime that takes this many times the best time so far is timed in one round only


def rank_in_child(arrays: Arrays, transform: ImageTransform, batch_sizes: Sequence[int]) -> list[str]:
    """Return the names of the CPU runtimes, the fastest on one core first; see ``rank_runtimes``.

    Without a measurement, they come in the order of ``runtime_factories``.
    """
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    arguments = transform.model_dump_json(), json.dumps(list(batch_sizes))
    try:
        names: list[str] = json.loads(run_child(__name__, *arguments, stdin=content))
    except (ChildError, OSError, ValueError) as error:  # such as a runtime that ends its process
        log.warning("the runtimes could not be timed (%s)", error)
        names = [*runtime_factories(arrays, transform)]
    return names


def rank_runtimes(factories: Mapping[str, RuntimeFactory], crop_px: int, batch_sizes: Sequence[int]) -> list[str]:
    """Time runtimes on one core and rank those that run here, the fastest first.

    Their features are not compared: ``build_runtime`` does that with each before it serves, and takes the next one.
    Times are compared by their geometric mean over the batch sizes, so that 10 % of a small batch's time count as much
    as 10 % of a large one's. ``torch`` comes last without a measurement: importing it takes longer than timing the
    others, and it was the slowest on every CPU measured.
    """
    samples = [np.random.default_rng(n).integers(0, 256, (n, crop_px, crop_px, 3), np.uint8) for n in batch_sizes]
    seconds: dict[str, float] = {}
    for name, build in factories.items():
        if name == LAST:
            continue
        try:
            runtime = build(1)
            for sample in samples:  # a first call allocates its buffers
                runtime(sample)
            best = _time_per_image(runtime, samples, 1)
            if best < DROP_RATIO * min(seconds.values(), default=best):
                best = min(best, _time_per_image(runtime, samples, ROUNDS - 1))
        except ImportError as error:
            log.info("engine %s: cannot run here (%s)", name, error)
        except Exception as error:
            log.warning("engine %s: not used, it fails: %s", name, error)
        else:
            seconds[name] = best
    log.info("ms per image: %s", {name: round(s * 1000, 1) for name, s in seconds.items()})
    return [*sorted(seconds, key=lambda name: seconds[name]), *(name for name in factories if name == LAST)]


def main(transform: str, batch_sizes: str) -> None:
    """Rank the runtimes for the weights on stdin and print their names as a JSON list."""
    logging.basicConfig(level=logging.INFO)
    parsed = ImageTransform.model_validate_json(transform)
    factories = runtime_factories(load(sys.stdin.buffer.read()), parsed)
    sys.stdout.write(json.dumps(rank_runtimes(factories, parsed.crop_px, json.loads(batch_sizes))) + "\n")


def _time_per_image(runtime: Runtime, samples: Sequence[np.ndarray], rounds: int) -> float:
    """Return CPU seconds per image: the best round of each sample, and their geometric mean.

    A runtime with one thread works in the thread that calls it. Its CPU time does not grow with other work on the
    machine, so a start on a busy machine chooses, and keeps on disk, what a quiet one would.
    """

    def seconds(sample: np.ndarray) -> float:
        start = time.thread_time()
        runtime(sample)
        return time.thread_time() - start

    best = [min(seconds(sample) for _ in range(rounds)) / len(sample) for sample in samples]
    return math.prod(best) ** (1 / len(samples))


if __name__ == "__main__":
    begin_child()
    main(*sys.argv[1:])
