"""`python -m cluster`: the order of an update, and what is left after a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import __main__ as cli
from cluster import launcher
from cluster.load_balancer import LoadBalancer
from cluster.settings import ClusterError, Settings
from tests.unit.cluster.conftest import WriteSettings

OLD = "classify-aaaaaaaaaaaa"


class FakeAccount:
    """AWS with one older cluster, which serves the clients."""

    settings: Settings

    def __init__(self, outputs: dict[str, str]) -> None:
        self.running = {OLD}
        self.target = OLD
        self.outputs = lambda: outputs

    def put_stack(self) -> None:
        """The stack exists already."""

    def api_key(self) -> str | None:
        return None

    def ray_token(self) -> str:
        return "token"

    def clusters(self) -> set[str]:
        return set(self.running)

    def write_private_key(self, folder: Path) -> Path:
        return folder / "key.pem"

    def move_clients_to(self, cluster: str) -> dict[str, list[str]]:
        self.target = cluster
        return {}

    def heads(self, cluster: str) -> dict[str, list[str]]:
        return {}

    def balancer(self) -> LoadBalancer:
        return LoadBalancer(None, [])

    def serves(self, cluster: str) -> bool:
        return self.target == cluster


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: dict[str, str]) -> FakeAccount:
    """`ray up` and `ray down` start and end clusters of this account; a deployment succeeds."""
    fake = FakeAccount(outputs)

    def open_account(settings: Settings) -> FakeAccount:
        fake.settings = settings
        return fake

    def run_ray(command: str, *arguments: str | Path) -> None:
        config = Path(arguments[-1])
        (fake.running.add if command == "up" else fake.running.discard)(config.stem)

    monkeypatch.setattr(cli, "Account", open_account)
    monkeypatch.setattr(cli, "WORK_FOLDER", tmp_path / "work")
    monkeypatch.setattr(launcher, "run_ray", run_ray)
    monkeypatch.setattr(launcher, "check_tools", lambda: None)
    monkeypatch.setattr(launcher, "deploy", lambda *_: None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return fake


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run the command line in this process."""
    monkeypatch.setattr("sys.argv", ["cluster", *map(str, arguments)])
    cli.main()


def test_an_update_ends_older_nodes_after_clients_have_moved(
    monkeypatch: pytest.MonkeyPatch, account: FakeAccount, settings: Settings, write_settings: WriteSettings
) -> None:
    """While the new nodes are deployed and tested, the old ones run and have the clients."""
    seen = []
    monkeypatch.setattr(launcher, "deploy", lambda *_: seen.append((account.target, set(account.running))))
    cli.up(write_settings(), yes=True)
    assert seen == [(OLD, {OLD, settings.cluster})]
    assert (account.target, account.running) == (settings.cluster, {settings.cluster})


@pytest.mark.parametrize("keep", [False, True])
def test_a_failed_update_leaves_the_older_nodes_serving(
    monkeypatch: pytest.MonkeyPatch,
    account: FakeAccount,
    settings: Settings,
    write_settings: WriteSettings,
    keep: bool,
) -> None:
    """The new nodes are ended, unless --keep asks for them; the clients never move."""

    def fail(*_: Any) -> None:
        raise ClusterError("not deployed")

    monkeypatch.setattr(launcher, "deploy", fail)
    with pytest.raises(ClusterError, match="not deployed"):
        cli.up(write_settings(), yes=True, keep=keep)
    assert account.target == OLD
    assert account.running == {OLD} | ({settings.cluster} if keep else set())


def test_retire_ends_only_nodes_without_clients(
    account: FakeAccount, settings: Settings, write_settings: WriteSettings
) -> None:
    """`up --keep-old` leaves the old nodes running; `retire` ends them, unless they have the clients again."""
    cli.up(write_settings(), yes=True, keep_old=True)
    assert account.running == {OLD, settings.cluster}
    account.target = OLD
    cli.retire(write_settings())
    assert account.running == {OLD, settings.cluster}
    account.target = settings.cluster
    cli.retire(write_settings())
    assert account.running == {settings.cluster}


def test_nothing_is_launched_without_consent(account: FakeAccount, write_settings: WriteSettings) -> None:
    """Without a terminal and without --yes, `up` changes nothing and names the option."""
    with pytest.raises(ClusterError, match="add --yes"):
        cli.up(write_settings())
    assert account.running == {OLD}


def test_deploy_requires_the_image_to_run(
    account: FakeAccount, settings: Settings, write_settings: WriteSettings
) -> None:
    """The error names the image's cluster, what runs instead, and the command to launch it."""
    with pytest.raises(ClusterError, match=f"{settings.cluster} does not run .running: {OLD}.*python -m cluster up"):
        cli.deploy(write_settings())


def test_the_command_line_reaches_the_command(
    monkeypatch: pytest.MonkeyPatch, account: FakeAccount, settings: Settings, write_settings: WriteSettings
) -> None:
    """The deploy workflow's arguments launch the image that they name."""
    image = settings.image.replace("0123", "ffff")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "up", "--settings", write_settings(), "--yes", "--set", f"image={image}")
    assert stop.value.code == 0
    assert account.running == {"classify-ffff456789ab"}


def test_a_wrong_option_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence on stderr names the option."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "up", "--yse")
    assert stop.value.code == 2
    assert "--yse" in capsys.readouterr().err


def test_an_interrupted_launch_ends_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
    account: FakeAccount,
    write_settings: WriteSettings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C ends the new nodes too, and stderr names the command that shows what runs."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "deploy", interrupt)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "up", "--settings", write_settings(), "--yes")
    assert stop.value.code == 130
    assert account.running == {OLD}
    assert "python -m cluster status" in capsys.readouterr().err
