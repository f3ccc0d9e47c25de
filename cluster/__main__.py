"""`python -m cluster COMMAND`: launch, update, inspect and delete the service on EC2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from cluster import launcher, public_address
from cluster.aws import Account
from cluster.costs import cost_table
from cluster.settings import ClusterError, read_settings
from serve_app.console import say
from serve_app.paths import ROOT

WORK_FOLDER = ROOT / ".cluster"  # the ssh key and one Ray config per cluster
SETTINGS_FILE = ROOT / "cluster" / "settings.yaml"
SERVE_CONFIG = ROOT / "configs" / "production.yaml"
LAUNCH_TIMEOUT_S = 1800  # replicas wait until nodes have started and pulled the image
WATCH_MIN = 10  # minutes that old nodes run on after the clients have moved
INTERRUPTED = 130  # Typer's exit code after Ctrl-C

SettingsFile = Annotated[Path, typer.Option("--settings", metavar="FILE", help="Settings of this installation.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace one setting; may be repeated.")
]
ServeConfig = Annotated[Path, typer.Option("--config", metavar="FILE", help="Serve config to deploy.")]
WatchMinutes = Annotated[
    float, typer.Option("--watch-min", help="Minutes to watch the new nodes before the old ones end.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

app = typer.Typer(
    name="python -m cluster",
    help="Launch, update, inspect and delete the service on EC2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that the arguments name; print each failure as one sentence."""
    try:
        app()
    except (ClientError, BotoCoreError) as error:
        sys.exit(f"error: AWS: {' '.join(str(error).split())}")
    except ClusterError as error:
        sys.exit(f"error: {error}")
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("error: interrupted; `python -m cluster status` shows what still runs", file=sys.stderr)
        raise


@app.command()
def cost(settings_file: SettingsFile = SETTINGS_FILE, overrides: Overrides = None) -> None:
    """Print the price per hour; makes no call to AWS."""
    print(cost_table(launcher.read_template(), read_settings(settings_file, overrides)))


@app.command()
def up(
    settings_file: SettingsFile = SETTINGS_FILE,
    overrides: Overrides = None,
    config: ServeConfig = SERVE_CONFIG,
    yes: Yes = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave new nodes running when the launch fails.")] = False,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Leave the old nodes running; see `retire`.")] = False,
    watch_min: WatchMinutes = WATCH_MIN,
) -> None:
    """Launch the image on new nodes, test them, move the clients there, watch, then end the nodes of older images.

    While the old nodes run, `up` with their image moves the clients back without a launch.
    """
    account = connect(settings_file, overrides)
    settings = account.settings
    print(cost_table(launcher.read_template(), settings))
    confirm(f"launch {settings.cluster}?", yes)
    say("creating or updating the stack")
    account.put_stack()
    running_before = account.clusters()
    ray_config = write_ray_config(account, settings.cluster)
    ray_token, api_key = account.ray_token(), account.api_key()
    former: dict[str, list[str]] = {}
    say(f"launching the nodes of {settings.cluster}")
    try:
        # --no-restart: nodes that already run keep serving; only their number changes.
        launcher.run_ray("up", "--yes", "--no-restart", "--no-config-cache", ray_config)
        if settings.page_image:
            launcher.start_page(ray_config, settings, account.key_parameter if api_key else None)
        say(f"deploying {config.name}")
        launcher.deploy(ray_config, config, ray_token, api_key, "--timeout-s", str(LAUNCH_TIMEOUT_S))
        say("moving the clients")
        former = account.move_clients_to(settings.cluster)
        address = account.outputs().get("Address")
        if address and settings.public_url:
            say(f"classifying an image as {settings.public_url}")
            public_address.check(settings.public_url, address, api_key, config)
        say(f"up; point the certificate's DNS name at {address}" if address else "up, without a load balancer")
        if not keep_old:
            watch(account, watch_min)
    except (ClusterError, ClientError, BotoCoreError, KeyboardInterrupt) as error:
        if isinstance(error, ClusterError) and any(former.values()):
            say(f"moving the clients back: {error}")
            account.balancer().move(former)
        if settings.cluster not in running_before and not keep:
            say("the update failed; ending the new nodes")
            end(account, settings.cluster)
        raise
    if not keep_old:
        end_others(account)


@app.command()
def retire(
    settings_file: SettingsFile = SETTINGS_FILE,
    overrides: Overrides = None,
    watch_min: WatchMinutes = WATCH_MIN,
) -> None:
    """Watch the health of the running image, then end the nodes of other images; for after `up --keep-old`."""
    account = connect(settings_file, overrides)
    watch(account, watch_min)
    end_others(account)


@app.command()
def deploy(
    settings_file: SettingsFile = SETTINGS_FILE,
    overrides: Overrides = None,
    config: ServeConfig = SERVE_CONFIG,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change; change nothing.")] = False,
) -> None:
    """Deploy a Serve config to the running nodes."""
    account = connect(settings_file, overrides)
    ray_config = running_config(account)
    options = ["--dry-run"] if dry_run else []
    launcher.deploy(ray_config, config, account.ray_token(), account.api_key(), *options)


@app.command()
def status(settings_file: SettingsFile = SETTINGS_FILE, overrides: Overrides = None) -> None:
    """Print the EC2 instances, then Ray's and Serve's status."""
    account = connect(settings_file, overrides)
    ray_config = running_config(account)
    for node in account.nodes():
        print(f"{node.cluster}  {node.group}  {node.instance_type}  {node.market}  {node.address}  {node.instance_id}")
    launcher.run_ray("exec", "--no-config-cache", "--run-env", "docker", ray_config, "ray status; serve status")


@app.command()
def down(settings_file: SettingsFile = SETTINGS_FILE, overrides: Overrides = None, yes: Yes = False) -> None:
    """End all nodes and delete stack, ssh key and Ray's token; the bucket stays."""
    account = connect(settings_file, overrides)
    bucket = account.outputs()["Bucket"]
    clusters = sorted(account.clusters())
    confirm(f"end {', '.join(clusters) or 'no nodes'} and delete stack {account.settings.name}?", yes)
    for cluster in clusters:
        launcher.run_ray("down", "--yes", write_ray_config(account, cluster))
    say("deleting the stack")
    account.delete_stack()
    say(f"down; the bucket {bucket} stays")


def watch(account: Account, minutes: float) -> None:
    """Wait while the old nodes still run, so that a way back needs no launch; a ClusterError ends the wait."""
    cluster = account.settings.cluster
    heads = account.heads(cluster)
    account.balancer().check_healthy(heads)
    if others := ", ".join(sorted(account.clusters() - {cluster})):
        say(f"watching {cluster} for {minutes:g} minutes; {others} still runs, Ctrl-C leaves it running")
        account.balancer().watch(heads, minutes * 60)


def end_others(account: Account) -> None:
    """End the nodes of other images than the settings'."""
    for cluster in sorted(account.clusters() - {account.settings.cluster}):
        say(f"ending {cluster}")
        end(account, cluster)


def end(account: Account, cluster: str) -> None:
    """End a cluster's nodes, unless the load balancer sends requests there."""
    if account.serves(cluster):
        say(f"{cluster} keeps running, because the load balancer sends requests there")
    else:
        launcher.run_ray("down", "--yes", write_ray_config(account, cluster))


def connect(settings_file: Path, overrides: list[str] | None) -> Account:
    """Return the AWS account of the settings, once every program that Ray's launcher calls is found."""
    settings = read_settings(settings_file, overrides)
    launcher.check_tools()
    return Account(settings)


def running_config(account: Account) -> Path:
    """Write the Ray config of the settings' image and return its path; a ClusterError says if no node of it runs."""
    cluster = account.settings.cluster
    if cluster not in (running := account.clusters()):
        others = ", ".join(sorted(running)) or "nothing"
        raise ClusterError(f"{cluster} does not run (running: {others}): launch it with `python -m cluster up`")
    return write_ray_config(account, cluster)


def write_ray_config(account: Account, cluster: str) -> Path:
    """Write the config file that `ray up` reads for one cluster, and the ssh key that it names; return its path."""
    WORK_FOLDER.mkdir(mode=0o700, exist_ok=True)
    private_key = account.write_private_key(WORK_FOLDER)
    config = launcher.render_config(account.settings, account.outputs(), private_key, cluster)
    path = WORK_FOLDER / f"{cluster}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def confirm(question: str, yes: bool) -> None:
    """Return if the operator agrees; raise a ClusterError if not, or if there is no terminal to ask on."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ClusterError(f"cannot ask {question!r} without a terminal: add --yes")
    if not typer.confirm(question):
        raise ClusterError("nothing was changed, because you did not confirm")


if __name__ == "__main__":
    main()
