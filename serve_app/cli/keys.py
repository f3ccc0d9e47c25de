"""`serve-app keys`: manage API keys."""

from __future__ import annotations

from typing import Annotated

import typer

keys = typer.Typer(name="keys", help="Manage API keys.", no_args_is_help=True)


@keys.command()
def new(name: Annotated[str, typer.Argument(help="Name of the client that will use the key, without spaces.")]) -> None:
    """Make an API key for a client and print it once, with the line that the service stores."""
    from serve_app.http.auth import create_key

    try:
        key, line = create_key(name)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"key, shown only now:  {key}\nline to store:        {line}")
