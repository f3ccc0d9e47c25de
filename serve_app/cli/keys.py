"""`serve-app keys`: manage API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.arguments import exit_on

keys = typer.Typer(name="keys", help="Manage API keys.", no_args_is_help=True)


@keys.command()
def new(name: Annotated[str, typer.Argument(help="Name of the client that will use the key, without spaces.")]) -> None:
    """Make an API key for a client and print it once, with the line that the service stores."""
    from serve_app.http.auth import create_key

    with exit_on(ValueError, code=2):
        key, line = create_key(name)
    typer.echo(f"key, shown only now:  {key}\nline to store:        {line}")


@keys.command("delete-heads")
def delete_heads(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, as in its stored line.")],
    heads: Annotated[str, typer.Option(help="Folder as in `heads.folder`.")] = "heads",
) -> None:
    """Delete all heads that a key has taught, with their embeddings and photos, also while the service runs."""
    with exit_on():
        from serve_app.heads.store import HeadStore
        from serve_app.paths import data_path

        folder = Path(data_path(heads))
        deleted = HeadStore(folder).delete_all(name)
    typer.echo(f"deleted {len(deleted)} heads of {name} in {folder}")
