"""`serve-app publish`: weights into a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from serve_app.cli.arguments import exit_on


def publish(
    weights: Annotated[Path, Argument(metavar="WEIGHTS", exists=True, help="A .safetensors file beside its card.")],
    registry: Annotated[str, Argument(metavar="REGISTRY", help="Folder or bucket (s3://…) of published weights.")],
) -> None:
    """Copy weights and card to REGISTRY/<name>/<version>-<hash>; print the line that serves them.

    The hash is of the card, which contains the hash of the weights. A published file is never replaced.
    """
    with exit_on():
        from serve_app.training.publish import publish_to

        published = publish_to(registry, weights)
    typer.echo(f"weights: {{source: {published.source}, sha256: {published.sha256}}}")
