"""Classify any number of images into a folder of Parquet files: ``python -m serve_app.batch.predict SOURCE OUT``.

SOURCE is a folder, a pattern in quotes ('photos/**/*.jpg'), a zip or a bucket's prefix (s3://bucket/photos); OUT a
folder or a prefix. Run it again after whatever stopped it: it goes on where it was, and each image has one row in the
end. An image that cannot be classified is a row with an error. Progress goes to stderr, one JSON summary to stdout.

Exit code 0: all images have their row. 1: it failed on the way; run it again. 2: nothing can be done. 75: another run
is at work there. 130: stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tqdm

from serve_app.batch.results import BusyError, Done, Job, Output
from serve_app.batch.sources import open_source
from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig, parse
from serve_app.errors import ServiceError
from serve_app.files import whole
from serve_app.inference.card import load_card

SHARD = 128


class Progress:
    """How far it is: on the terminal, and in a file for whoever wants to follow."""

    def __init__(self, images: int, before: Iterable[Done], file: Path | None) -> None:
        """Count what an earlier run has done."""
        self.errors: Counter[str] = Counter()
        self.done = self.resumed = 0
        self._images, self._file, self._start = images, file, time.monotonic()
        for part in before:
            self._count(part)
        self.resumed = self.done
        self._bar = tqdm.tqdm(
            total=images, initial=self.done, unit="image", smoothing=0.1, mininterval=0.5, disable=file is not None
        )
        self._write()

    def add(self, part: Done) -> None:
        """Count a part that was just written."""
        self._count(part)
        self._bar.update(part.images)
        self._bar.set_postfix(failed=self.failed, refresh=False)
        self._write()

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    @property
    def failed(self) -> int:
        """Images with an error."""
        return self.errors.total()

    @property
    def seconds(self) -> float:
        """Since this run has begun to classify."""
        return time.monotonic() - self._start

    def _count(self, part: Done) -> None:
        self.done += part.images
        self.errors.update(part.errors)

    def _write(self) -> None:
        if self._file is None:
            return
        pace = (self.done - self.resumed) / max(self.seconds, 1e-3)
        eta_s = round((self._images - self.done) / pace, 1) if pace else None
        content = {"total": self._images, "done": self.done, "failed": self.failed, "eta_s": eta_s}
        with whole(self._file) as path:
            path.write_text(json.dumps(content))


def main() -> None:
    """Command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        # Absolute, for the workers are elsewhere.
        source, out = (text if "://" in text else str(Path(text).absolute()) for text in (options.source, options.out))
        job = Job(
            source=source,
            out=out,
            weights=_weights(options.weights),
            engine=parse(EngineConfig, options.engine),
            top_k=options.top_k,
            limits=parse(LimitsConfig, options.limits),
            batch=options.batch or (64 if options.gpus else 8),
        )
        output = Output(out)
        with output.alone():
            summary = _run(job, output, options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BusyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(75)
    except (ServiceError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(summary))


def _run(job: Job, output: Output, options: argparse.Namespace) -> dict[str, Any]:
    card = load_card(job.weights)
    manifest = output.begin(job, card, open_source(job.source).names(), options.shard)
    progress = Progress(manifest["images"], before := output.done(), options.progress)
    missing = sorted(set(range(manifest["shards"])) - {part.shard for part in before})
    try:
        if missing:
            _classify(job, missing, options, progress)
    finally:
        progress.close()
    summary = {
        "source": job.source,
        "out": job.out,
        "version": card.version,
        "images": progress.done,
        "ok": progress.done - progress.failed,
        "failed": progress.failed,
        "errors": dict(progress.errors),
        "resumed": progress.resumed,
        "seconds": round(progress.seconds, 1),
        "images_per_s": round((progress.done - progress.resumed) / progress.seconds, 1),
    }
    output.write_json("summary.json", summary)
    return summary


def _weights(text: str) -> WeightsConfig:
    if text.endswith(".safetensors"):
        from serve_app.inference.weights import spec_of  # brings torch, which nobody else needs here

        return spec_of(text)
    return parse(WeightsConfig, json.loads(text) if text.startswith("{") else text)


def _classify(job: Job, shards: list[int], options: argparse.Namespace, progress: Progress) -> None:
    # Imported here: what is wrong with the arguments is said before Ray's seconds.
    import ray

    from serve_app.batch import dataset as pipeline

    sizes = pipeline.Sizes(options.workers, options.gpus, options.decoders, options.background)
    pipeline.connect(options.address)
    try:
        for part in pipeline.run(job, shards, sizes):
            progress.add(part)
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or error
        print(f"error: {' '.join(str(reason).split())[:1000]}; the same command goes on from here", file=sys.stderr)
        sys.exit(1)
    finally:
        ray.shutdown()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.batch.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder, pattern, zip or bucket's prefix")
    parser.add_argument("out", help="folder or prefix of the results")
    parser.add_argument("--weights", default="demo", help="demo, imagenet, a .safetensors file, or a spec as JSON")
    parser.add_argument("--engine", type=json.loads, default={}, help='such as \'{"precision": "int8"}\'')
    parser.add_argument("--limits", type=json.loads, default={}, help="of images, as in the Ingress's user_config")
    parser.add_argument("--top-k", type=int, default=10, help="classes per image")
    parser.add_argument("--address", help="a Ray cluster's, such as `auto`; by default this machine alone")
    parser.add_argument("--workers", type=int, help="workers with a model; by default one per CPU, or per GPU's share")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each of them, such as 1 or 0.5")
    parser.add_argument("--decoders", type=int, default=0, help="CPU workers that decode for them; 0: they do it")
    parser.add_argument("--batch", type=int, help="images that the model takes at a time; by default 8, or 64 on a GPU")
    parser.add_argument("--shard", type=int, default=SHARD, help="images per part: what a crash costs a worker")
    parser.add_argument("--background", action="store_true", help="take only CPU time that nobody else wants")
    parser.add_argument("--progress", type=Path, help="file that says how far it is, as JSON")
    options = parser.parse_args()
    for name, least in (("top_k", 1), ("workers", 1), ("decoders", 0), ("batch", 1), ("shard", 1), ("gpus", 0)):
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')}: {least} or more")
    return options


if __name__ == "__main__":
    main()
