"""Launch, update, look at and take down the service on EC2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from botocore.exceptions import BotoCoreError, ClientError

from cluster import launcher
from cluster.aws import Account
from cluster.costs import cost_table
from cluster.settings import ClusterError, Settings, read_settings

FOLDER = launcher.ROOT / ".cluster"
LAUNCH_TIMEOUT_S = 1800  # nodes have to start and to pull the image before replicas can


def main() -> None:
    """Command line."""
    options = parser().parse_args()
    try:
        settings = read_settings(options.settings, options.set)
        verbs: dict[str, Callable[[Settings, argparse.Namespace], None]]
        verbs = {"cost": cost, "up": up, "deploy": deploy, "status": status, "down": down}
        verbs[options.verb](settings, options)
    except (ClientError, BotoCoreError) as error:
        sys.exit(f"error: AWS: {' '.join(str(error).split())}")
    except ClusterError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; `python -m cluster status` says what runs")


def parser() -> argparse.ArgumentParser:
    """The verbs and their flags."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--settings", type=Path, default=Path(__file__).with_name("settings.yaml"), metavar="FILE")
    shared.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="instead of the file's")
    serve = argparse.ArgumentParser(add_help=False)
    serve.add_argument("--config", type=Path, default=launcher.ROOT / "configs" / "production.yaml", metavar="FILE")
    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument("--yes", action="store_true", help="do not ask")
    made = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True)
    verbs.add_parser("cost", parents=[shared], help="price per hour; asks AWS nothing")
    launch = verbs.add_parser(
        "up", parents=[shared, serve, asking], help="launch; with another image running, replace it once proven"
    )
    launch.add_argument("--keep", action="store_true", help="leave new nodes up when they fail, to look at them")
    live = verbs.add_parser("deploy", parents=[shared, serve], help="apply a Serve config to what runs")
    live.add_argument("--dry-run", action="store_true", help="say what would change")
    verbs.add_parser("status", parents=[shared], help="nodes, Ray, Serve")
    verbs.add_parser("down", parents=[shared, asking], help="end all nodes and delete the stack; the bucket stays")
    return made


def cost(settings: Settings, _options: argparse.Namespace) -> None:
    """Print what it costs."""
    print(cost_table(launcher.template(), settings.region, load_balancer=bool(settings.certificate)))


def up(settings: Settings, options: argparse.Namespace) -> None:
    """Launch the settings' image on nodes of its own, prove it, send clients there, then end older nodes.

    Raises:
        ClusterError: It failed; what served before still does, and new nodes are gone again.
    """
    launcher.check_tools()
    cost(settings, options)
    confirm(f"launch {settings.cluster}?", options.yes)
    account = Account(settings)
    say("stack")
    account.put_stack()
    before = account.clusters()
    config = ray_config(account, settings.cluster)
    say(f"nodes of {settings.cluster}")
    try:
        # What runs already is not restarted: only its capacity changes.
        launcher.ray("up", config, "--yes", "--no-restart", "--no-config-cache")
        if settings.page_image:
            launcher.start_page(config, settings.page_image)
        say(f"deploying {options.config.name}")
        launcher.deploy(config, options.config, "--timeout-s", str(LAUNCH_TIMEOUT_S))
        account.send_clients_to(settings.cluster)
    except (ClusterError, ClientError, BotoCoreError, KeyboardInterrupt):
        if settings.cluster not in before and not options.keep:
            say("that failed; ending the new nodes")
            launcher.ray("down", config, "--yes")
        raise
    for old in sorted(before - {settings.cluster}):
        say(f"ending {old}")
        launcher.ray("down", ray_config(account, old), "--yes")
    address = account.outputs().get("Address")
    say(f"up; point the certificate's name at {address}" if address else "up, without a load balancer")


def deploy(settings: Settings, options: argparse.Namespace) -> None:
    """Apply a Serve config through the tunnel.

    Raises:
        ClusterError: It was not deployed.
    """
    launcher.check_tools()
    flags = ["--dry-run"] if options.dry_run else []
    launcher.deploy(running_config(Account(settings), settings), options.config, *flags)


def status(settings: Settings, _options: argparse.Namespace) -> None:
    """Print nodes, Ray's view and Serve's view.

    Raises:
        ClusterError: Nothing runs.
    """
    launcher.check_tools()
    account = Account(settings)
    config = running_config(account, settings)
    for node in account.nodes():
        print("  ".join(node[name] for name in ("cluster", "type", "instance", "market", "address", "id")))
    launcher.execute(config, "ray status; serve status")


def down(settings: Settings, options: argparse.Namespace) -> None:
    """End every node, then delete stack and key."""
    launcher.check_tools()
    account = Account(settings)
    outputs = account.outputs()
    clusters = sorted(account.clusters())
    confirm(f"end {', '.join(clusters) or 'no nodes'} and delete stack {settings.name}?", options.yes)
    for cluster in clusters:
        launcher.ray("down", ray_config(account, cluster), "--yes")
    say("deleting the stack")
    account.delete_stack()
    say(f"down; the bucket stays: {outputs['Bucket']}")


def running_config(account: Account, settings: Settings) -> Path:
    """Ray's config of the settings' image.

    Raises:
        ClusterError: It does not run.
    """
    if settings.cluster not in (running := account.clusters()):
        raise ClusterError(
            f"{settings.cluster} does not run (running: {', '.join(sorted(running)) or 'nothing'}): "
            "`python -m cluster up` launches it"
        )
    return ray_config(account, settings.cluster)


def ray_config(account: Account, cluster: str) -> Path:
    """Write Ray's config file of one cluster, and the key that it names."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    key = account.private_key(FOLDER)
    path = FOLDER / f"{cluster}.yaml"
    path.write_text(yaml.safe_dump(launcher.render(account.settings, account.outputs(), key, cluster), sort_keys=False))
    return path


def confirm(question: str, yes: bool) -> None:
    """Go on only if the operator agrees.

    Raises:
        ClusterError: Not agreed, or nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ClusterError(f"{question} nobody to ask: add --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ClusterError("not done")


def say(what: str) -> None:
    """Tell the operator what is being done."""
    print(f"· {what}", flush=True)


if __name__ == "__main__":
    main()
