"""`serve-app keys`: manage API keys."""

from __future__ import annotations

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
