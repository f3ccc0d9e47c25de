"""`serve-app relabel`: what a taught head says about the images of the prediction log."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from serve_app.cli.arguments import exit_on

SINCE = re.compile(r"(\d{1,5})([hd])")


def _read_since(text: str) -> datetime.timedelta:
    if (match := SINCE.fullmatch(text)) is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 7d or 12h")
    hours = int(match[1]) * (24 if match[2] == "d" else 1)
    return datetime.timedelta(hours=hours)


def relabel(
    out: Annotated[Path, Argument(metavar="OUT", help="Parquet file to write.")],
    head: Annotated[str, Option(help="Name of the head.")],
    since: Annotated[datetime.timedelta, Option(parser=_read_since, help="How far back, such as 7d or 12h.")],
    owner: Annotated[str | None, Option(help="API key that owns the head, where keys are required.")] = None,
    heads: Annotated[str, Option(help="Folder as in `heads.folder`.")] = "heads",
    log: Annotated[str, Option(help="Folder as in `prediction_log.folder`.")] = "predictions",
) -> None:
    """Classify logged images again with a taught head, from their embeddings.

    Needs a log with `embeddings: true`. Writes a row per image to OUT, prints counts as JSON.
    """
    with exit_on():
        from serve_app.analytics.relabel import relabel as classify_again
        from serve_app.heads.store import HeadStore
        from serve_app.http.heads.access import stored_name
        from serve_app.paths import data_path

        store = HeadStore(Path(data_path(heads)))
        loaded = store.load(store.entry(stored_name(head, owner)))
        start = datetime.datetime.now(datetime.UTC) - since
        counts = classify_again(Path(data_path(log)), loaded.head, start, out)
    typer.echo(json.dumps(asdict(counts)))
