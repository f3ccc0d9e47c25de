"""An update as the load balancer's clients see it: whatever fails, and whenever, nodes that serve go on serving."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, WaiterError

from cluster import __main__ as cli
from cluster import launcher, public_address
from cluster.aws import Account, Node
from cluster.settings import ClusterError, Settings
from tests.support.fake_aws import UNHEALTHY_S, FakeAws
from tests.unit.cluster.conftest import WriteSettings

OLD_CLUSTER = "classify-aaaaaaaaaaaa"
OLD, NEW, API, PAGE = "i-old", "i-new", "targetgroup/api/1", "targetgroup/page/1"
NOTICED_S = 30  # until `up` has seen that a target is unhealthy, and the former one passes a check
THROTTLED = ClientError({"Error": {"Code": "Throttling", "Message": "Rate exceeded"}}, "DescribeTargetHealth")
FAULTS = [KeyboardInterrupt(), THROTTLED, EndpointConnectionError(endpoint_url="https://elasticloadbalancing")]


@pytest.fixture
def aws() -> FakeAws:
    """The old head runs and has the clients of API and page."""
    return FakeAws({OLD}, {API: [OLD], PAGE: [OLD]})


@pytest.fixture
def update(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings, outputs: dict[str, str]
) -> Callable[..., None]:
    """Runs `python -m cluster up` with a new image against a fake AWS; nodes start and end in no time."""
    heads = {OLD: OLD_CLUSTER, NEW: settings.cluster}
    outputs |= {"ApiTargets": API, "PageTargets": PAGE}
    monkeypatch.setattr(cli, "Account", cache(Account))  # boto3 takes a tenth of a second for each client
    monkeypatch.setattr(cli, "cost_table", lambda *_: "")
    monkeypatch.setattr(launcher, "read_template", dict)
    monkeypatch.setattr(cli, "write_ray_config", lambda _, cluster: tmp_path / f"{cluster}.yaml")
    monkeypatch.setattr(launcher, "check_tools", lambda: None)
    monkeypatch.setattr(Account, "api_key", lambda account: None)
    monkeypatch.setattr(Account, "ray_token", lambda account: "token")
    monkeypatch.setattr(Account, "put_stack", lambda account: None)
    monkeypatch.setattr(Account, "outputs", lambda account: outputs)

    def run(aws: FakeAws, settings_file: Path, **options: Any) -> None:
        def run_ray(command: str, *arguments: str | Path) -> None:
            aws.step()
            ids = {name for name, cluster in heads.items() if cluster in str(arguments[-1])}
            if command == "up":
                aws.running |= ids
            elif command == "down":
                aws.running -= ids

        def nodes(_account: Account) -> list[Node]:
            details = ("head", "head"), ("m7i.xlarge", "10.0.0.2", "on-demand")
            return [Node(heads[each], *details[0], each, *details[1]) for each in sorted(aws.running)]

        monkeypatch.setattr(Account, "nodes", nodes)
        monkeypatch.setattr(launcher, "run_ray", run_ray)
        monkeypatch.setattr(launcher, "start_page", lambda *_: aws.step())
        monkeypatch.setattr(launcher, "deploy", lambda *_: aws.step())
        monkeypatch.setattr("time.sleep", aws.sleep)
        monkeypatch.setattr("botocore.client.BaseClient._make_api_call", lambda _, *call: aws.call(*call))
        cli.up(settings_file, yes=True, **options)

    return run


@pytest.fixture
def settings_file(settings: Settings, write_settings: WriteSettings) -> Path:
    return write_settings(page_image=settings.image)


def test_an_update_loses_no_request_and_ends_the_old_nodes(
    aws: FakeAws, update: Callable[..., None], settings_file: Path
) -> None:
    """The new head is healthy for API and page before the old one leaves either; the old one ends ten minutes later."""
    ended_at = []
    aws.at_step = lambda _: ended_at.append(aws.now) if aws.targets(API) == {NEW: "healthy"} else None
    update(aws, settings_file)
    assert (aws.running, aws.lost) == ({NEW}, [])
    assert aws.targets(API) == aws.targets(PAGE) == {NEW: "healthy"}
    assert aws.now - ended_at[0] >= 600


def count_steps(update: Callable[..., None], settings_file: Path) -> int:
    aws = FakeAws({OLD}, {API: [OLD], PAGE: [OLD]})
    update(aws, settings_file, watch_min=0.5)
    return aws.steps


@pytest.mark.parametrize(("fault", "apart"), [(fault, 0) for fault in FAULTS] + [(FAULTS[0], 1), (FAULTS[0], 3)])
def test_whenever_an_update_fails_the_clients_keep_a_head(
    update: Callable[..., None], settings_file: Path, fault: BaseException, apart: int
) -> None:
    """Ctrl-C, a refused call, a lost connection, at each step in turn, and Ctrl-C twice: no request is lost."""
    steps = count_steps(update, settings_file)
    assert steps > 20
    for first in range(1, steps + 1):
        aws = FakeAws({OLD}, {API: [OLD], PAGE: [OLD]})

        def fail(step: int, first: int = first) -> None:
            if step in (first, first + apart):
                raise fault

        aws.at_step = fail
        with pytest.raises((type(fault), WaiterError)):
            update(aws, settings_file, watch_min=0.5)
        aws.at_step = lambda _: None
        aws.sleep(100)
        assert aws.lost == [], f"step {first}"


@pytest.mark.parametrize("group", [API, PAGE])
def test_a_head_that_never_becomes_healthy_gets_no_clients(
    aws: FakeAws, update: Callable[..., None], settings_file: Path, group: str
) -> None:
    """If API or page fails its check, the error says which, the old head serves, and the new one ends."""
    aws.broken = {(group, NEW)}
    with pytest.raises(ClusterError, match=f"finds {NEW} unhealthy in {group.split('/')[1]} .Target.ResponseCode"):
        update(aws, settings_file)
    aws.sleep(100)
    assert (aws.running, aws.lost) == ({OLD}, [])
    assert aws.targets(API) == aws.targets(PAGE) == {OLD: "healthy"}


def test_a_head_that_becomes_unhealthy_while_it_is_watched_gives_the_clients_back(
    aws: FakeAws, update: Callable[..., None], settings_file: Path
) -> None:
    """The new head ends; the requests lost are those before the load balancer's own checks notice."""
    aws.at_step = lambda _: aws.broken.add((API, NEW)) if aws.targets(API) == {NEW: "healthy"} else None
    with pytest.raises(ClusterError, match=f"finds {NEW} unhealthy in api"):
        update(aws, settings_file)
    assert aws.targets(API) == aws.targets(PAGE) == {OLD: "healthy"}
    assert aws.running == {OLD}


def test_a_public_address_that_does_not_answer_gives_the_clients_back(
    aws: FakeAws,
    update: Callable[..., None],
    outputs: dict[str, str],
    settings: Settings,
    write_settings: WriteSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The targets are healthy, but a client's own request through the load balancer fails."""

    def fail(url: str, load_balancer: str, *_: Any) -> None:
        raise ClusterError(f"{url} through {load_balancer}: status 401")

    outputs["Address"] = "balancer.example.com"
    monkeypatch.setattr(public_address, "check", fail)
    public = {"public_url": "https://photos.example", "certificate": "arn:aws:acm:x", "client_cidr": "0.0.0.0/0"}
    with pytest.raises(ClusterError, match=r"photos\.example through balancer\.example\.com: status 401"):
        update(aws, write_settings(page_image=settings.image, **public))
    assert (aws.running, aws.lost) == ({OLD}, [])
    assert aws.targets(API) == aws.targets(PAGE) == {OLD: "healthy"}


@pytest.mark.parametrize("dies", [OLD, NEW])
def test_an_instance_that_dies_costs_no_more_than_its_own_requests(
    update: Callable[..., None], settings_file: Path, dies: str
) -> None:
    """It dies at each step in turn: the other head has the clients once the load balancer has noticed."""
    for at in range(1, count_steps(update, settings_file) + 1):
        aws, died = FakeAws({OLD}, {API: [OLD], PAGE: [OLD]}), []

        def end(step: int, aws: FakeAws = aws, at: int = at, died: list[float] = died) -> None:
            if step >= at and dies in aws.running and not died:
                died.append(aws.now)
                aws.running.discard(dies)

        aws.at_step = end
        with suppress(ClusterError, ClientError):
            update(aws, settings_file, watch_min=0.5)
        aws.at_step = lambda _: None
        aws.sleep(100)
        if died and aws.running:
            lost_s = max((at_s - died[0] for at_s, _ in aws.lost), default=0)
            assert lost_s <= UNHEALTHY_S + NOTICED_S, f"{dies} died at step {at}"


def test_the_way_back_is_a_move_and_not_a_launch(
    aws: FakeAws, update: Callable[..., None], settings_file: Path, settings: Settings
) -> None:
    """While the old nodes run, `up` with the old image gives them the clients, and ends the others."""
    update(aws, settings_file, keep_old=True)
    assert aws.running == {OLD, NEW}
    old_image = settings.image.replace("0123456789ab", "aaaaaaaaaaaa")
    update(aws, settings_file, overrides=[f"image={old_image}"], watch_min=0.5)
    assert (aws.running, aws.lost) == ({OLD}, [])


def test_kept_nodes_take_over_from_a_lost_head(
    aws: FakeAws, update: Callable[..., None], settings_file: Path, settings: Settings
) -> None:
    """The new head is lost with its clients: `up` with the old image answers them within half a minute."""
    update(aws, settings_file, keep_old=True)
    aws.running.discard(NEW)
    aws.sleep(100)
    noticed = aws.now
    old_image = settings.image.replace("0123456789ab", "aaaaaaaaaaaa")
    update(aws, settings_file, overrides=[f"image={old_image}"], watch_min=0.5)
    assert max(at for at, _ in aws.lost) - noticed <= 30
    assert aws.targets(API) == aws.targets(PAGE) == {OLD: "healthy"}


def test_a_page_that_is_no_longer_configured_loses_its_targets(
    aws: FakeAws, update: Callable[..., None], write_settings: WriteSettings
) -> None:
    """No target group keeps a head that ends."""
    update(aws, write_settings(), watch_min=0.5)
    assert (aws.targets(API), aws.targets(PAGE)) == ({NEW: "healthy"}, {})
