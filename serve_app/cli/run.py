"""`serve-app run`: the service and its page on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from serve_app.paths import CONFIGS

WEIGHTS_HELP = "auto (imagenet if it can be downloaded within a minute, else demo), imagenet, demo, or config."


def run(
    config: Annotated[Path, Option(help="Serve config file.")] = CONFIGS / "local.yaml",
    weights: Annotated[str, Option(help=WEIGHTS_HELP)] = "auto",
    host: Annotated[Literal["127.0.0.1", "0.0.0.0"], Option(help="Address of API and page.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port of the API.")] = 8000,
    page_port: Annotated[int, Option(help="Port of the page.")] = 8501,
    is_open: Annotated[bool, Option("--open", help="Let everybody call who reaches the API, without a key.")] = False,
    log: Annotated[bool, Option("--log/--no-log", help="Keep prediction log and votes as the config says.")] = True,
    page: Annotated[bool, Option("--page/--no-page", help="Start the page too.")] = True,
) -> None:
    """Start Ray Serve and the page on this machine; Ctrl-C stops both."""
    from serve_app.launcher import local  # imports Ray's clients, which --help does not need

    local.main(config, weights, host, port, page_port if page else None, is_open, log)
