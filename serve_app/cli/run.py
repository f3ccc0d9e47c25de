"""`serve-app run`: the service and its page on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serve_app.paths import ROOT


class Host(StrEnum):
    """Address on which API and page listen."""

    LOOPBACK = "127.0.0.1"
    ANYWHERE = "0.0.0.0"


def run(
    config: Annotated[Path, typer.Option(help="Serve config file.")] = ROOT / "configs" / "local.yaml",
    weights: Annotated[
        str,
        typer.Option(
            help="imagenet, demo, config (as the config file says), or auto: imagenet if its weights are cached or "
            "download within a minute, else demo."
        ),
    ] = "auto",
    host: Annotated[
        Host, typer.Option(help="Address on which API and page listen: this machine only, or everybody's.")
    ] = Host.LOOPBACK,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    page_port: Annotated[int, typer.Option(help="Port of the page.")] = 8501,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Whether to start the page too.")] = True,
) -> None:
    """Start Ray Serve and the page on this machine; Ctrl-C stops both."""
    from serve_app.launcher import local  # imports Ray's clients, which --help does not need

    local.main(config, weights, host.value, port, page_port if page else None)
