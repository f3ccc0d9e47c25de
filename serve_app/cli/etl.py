"""`serve-app etl`: prediction log to days and hourly summaries."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from serve_app.cli.arguments import exit_on


def etl(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder as in `prediction_log.folder`.")],
    keep_days: Annotated[int | None, Option(min=0, help="Days of rows to keep. Default: all.")] = None,
    max_bytes: Annotated[int | None, Option(min=1, help="Bytes to keep, newest first. Default: all.")] = None,
    memory_mb: Annotated[int | None, Option(min=64, help="Memory in MB, on one core. Default: 80 %.")] = None,
) -> None:
    """Turn the prediction log into one clean file per day and hourly summaries.

    Reads FOLDER/raw, writes FOLDER/days and FOLDER/summary, prints counts as JSON.
    Running it twice, or again after a crash, gives the same rows.
    Incomplete rows, and files that are no prediction log, go to FOLDER/rejected.

    Exit codes: 0 all rows are in their days; 1 something was rejected, the rest
    is done; 2 the run failed.
    """
    import duckdb

    from serve_app.analytics import etl as analytics_etl
    from serve_app.prediction_log_format import REJECTED

    with exit_on(analytics_etl.EtlError, OSError, duckdb.Error, code=2):
        report = analytics_etl.run(folder, keep_days, max_bytes=max_bytes, memory_mb=memory_mb)
    typer.echo(json.dumps(asdict(report)))
    if report.rejected_files or report.rejected_rows:
        typer.echo(f"error: files or rows were rejected; see {folder / REJECTED}", err=True)
        raise typer.Exit(1)
