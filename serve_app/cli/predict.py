"""`serve-app predict`: classify any number of images into Parquet files."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from serve_app.cli.arguments import exit_on
from serve_app.errors import ServiceError, SourceUnavailableError, WeightsUnavailableError

if TYPE_CHECKING:
    from serve_app.batch.plan import BatchJobConfig


def predict(
    source: Annotated[str, Argument(metavar="SOURCE", help="Folder, zip, quoted glob pattern or s3://… prefix.")],
    out: Annotated[str, Argument(metavar="OUT", help="Folder or s3://… prefix for the results.")],
    weights: Annotated[str, Option(help="demo, imagenet, a .safetensors file, or JSON as in `args`.")] = "demo",
    engine: Annotated[str, Option(help='Runtime, or JSON such as \'{"precision": "int8"}\'.')] = "auto",
    limits: Annotated[str, Option(help="JSON as `limits` in the Ingress's user_config.")] = "{}",
    top_k: Annotated[int, Option(min=1, help="Classes per image.")] = 10,
    embed: Annotated[bool, Option("--embed", help="Add the column embedding: 512 numbers per image.")] = False,
    head: Annotated[Path | None, Option(help="Folder of a version of a taught head; name its classes.")] = None,
    address: Annotated[str | None, Option(help="Ray cluster, such as auto. Default: this machine.")] = None,
    workers: Annotated[int | None, Option(min=1, help="Workers; default: one per CPU, or GPU share.")] = None,
    gpus: Annotated[float, Option(min=0, help="GPUs per worker, such as 1 or 0.5.")] = 0,
    decoders: Annotated[int, Option(min=0, help="CPU workers that only decode; 0: every worker decodes.")] = 0,
    batch: Annotated[int | None, Option(min=1, help="Images per batch. Default: 8, or 64 on a GPU.")] = None,
    shard: Annotated[int, Option(min=1, help="Images per Parquet part: what a crash costs a worker.")] = 128,
    background: Annotated[bool, Option("--background", help="Use only CPU time that is left over.")] = False,
    progress: Annotated[Path | None, Option(help="Write progress to this JSON file; no bar on stderr.")] = None,
    stop_file: Annotated[Path | None, Option(help="Create this file when SIGINT or SIGTERM stops the job.")] = None,
) -> None:
    """Classify every image of SOURCE into Parquet files in OUT.

    Run the same command again after it was stopped: it goes on from there.
    In the end each image has one row; a failed image has a row with its error.
    Progress goes to stderr, one JSON summary to stdout.

    Exit codes: 0 every image has its row; 1 workers failed, run it again;
    2 wrong arguments, source or weights; 69 source, weights or disk space
    are away, run it again later; 75 another run writes to OUT; 130 stopped.
    """
    from serve_app.batch.plan import WorkerPlan
    from serve_app.batch.predict import ExitCode, JobFailedError
    from serve_app.batch.predict import predict as run_job
    from serve_app.batch.results import BusyError

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stop_file:  # now, because ending Ray takes seconds, and SIGKILL may come first
            with suppress(OSError):
                stop_file.touch()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with (
        exit_on(ServiceError, OSError, ValueError, code=ExitCode.INVALID),
        exit_on(SourceUnavailableError, WeightsUnavailableError, code=ExitCode.UNAVAILABLE),
        exit_on(BusyError, code=ExitCode.BUSY),
        exit_on(JobFailedError, code=ExitCode.FAILED, note="; the same command goes on from here"),
        exit_on(KeyboardInterrupt, code=ExitCode.INTERRUPTED, note="stopped; the same command goes on from here"),
    ):
        job = _job(source, out, weights, engine, limits, top_k, embed, head, batch or (64 if gpus else 8))
        summary = run_job(job, WorkerPlan(workers, gpus, decoders, background), shard, address, progress)
    typer.echo(json.dumps(summary))


def _job(
    source: str,
    out: str,
    weights: str,
    engine: str,
    limits: str,
    top_k: int,
    embed: bool,
    head: Path | None,
    batch_size: int,
) -> BatchJobConfig:
    from serve_app.batch.plan import BatchJobConfig
    from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
    from serve_app.validation import parse

    if weights.endswith(".safetensors"):
        from serve_app.inference.weights import spec_of

        weights_config = spec_of(weights)
    else:
        weights_config = parse(WeightsConfig, _json_or_text(weights))
    return BatchJobConfig(
        source=_absolute(source),
        out=_absolute(out),
        weights=weights_config,
        engine=parse(EngineConfig, _json_or_text(engine)),
        top_k=top_k,
        embed=embed,
        head=str(head.absolute()) if head else None,
        limits=parse(LimitsConfig, _json_or_text(limits)),
        batch_size=batch_size,
    )


def _json_or_text(option: str) -> object:
    return json.loads(option) if option.startswith("{") else option


def _absolute(location: str) -> str:
    """Return a path that means the same in a worker's working folder."""
    return location if "://" in location else str(Path(location).absolute())
