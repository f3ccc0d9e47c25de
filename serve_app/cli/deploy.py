"""`serve-app deploy`: bring a Serve config file to a running Ray cluster."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from serve_app.cli.arguments import exit_on


def deploy(
    config: Annotated[Path, Argument(help="Serve config file.")],
    address: Annotated[str, Option(help="URL of Ray's dashboard.")] = "http://127.0.0.1:8265",
    api: Annotated[str | None, Option(help="URL of the service; default: Serve's port on that host.")] = None,
    token_file: Annotated[Path | None, Option(help="File with Ray's token; default: RAY_AUTH_TOKEN.")] = None,
    image: Annotated[Path | None, Option(help="Image for the smoke test; default: a generated image.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the effect and change nothing.")] = False,
    force: Annotated[bool, Option("--force", help="Deploy weights even if their card shows a lower accuracy.")] = False,
    timeout_s: Annotated[float, Option(help="Longest wait in s for the rollout, and again for a rollback.")] = 600,
) -> None:
    """Deploy a Serve config file: wait until it is live, test it, and restore the previous config if that fails.

    Exit codes: 0, the config is live or --dry-run ended; 1, it is not live and the last line says what runs now;
    2, nothing was changed.
    """
    from serve_app.release.deploy import deploy as deploy_config  # heavy: imported after --help is answered
    from serve_app.release.rollout import DeployError, RefusedError
    from serve_app.release.serve_config import ConfigError

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM stops as cleanly as Ctrl-C
    with (
        exit_on(KeyboardInterrupt, note="interrupted; nothing was changed"),
        exit_on(DeployError),
        exit_on(ConfigError, RefusedError, code=2, note="; nothing was changed"),
    ):
        deploy_config(config, address, api, token_file, image, dry_run, force, timeout_s)
