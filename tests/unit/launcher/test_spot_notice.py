"""A spot instance drains its Ray node when EC2 announces its end; tests/cluster/test_two_nodes.py has a real Ray."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import httpx2
import pytest

from serve_app.launcher import spot_notice
from tests.support.instance_metadata import InstanceMetadata, instance_metadata

ADDRESS = "10.0.0.7"


class EndOfTestError(BaseException):
    """Ends the loop of ``main``."""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[InstanceMetadata]:
    with instance_metadata(ADDRESS) as service:
        monkeypatch.setenv(spot_notice.METADATA_VARIABLE, service.url)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nothing listens there
        yield service


def test_the_notice_says_when_the_instance_ends(metadata: InstanceMetadata) -> None:
    """Without a notice EC2 answers 404."""
    with httpx2.Client(base_url=metadata.url, trust_env=False) as client:
        assert spot_notice.read_notice(client) is None
        end = metadata.reclaim(120)
        assert spot_notice.read_notice(client) == end


def test_each_ray_node_of_the_instance_is_drained_once(
    metadata: InstanceMetadata, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure of Ray is reported and tried again at the next look; so is a node that Ray starts later."""
    calls: list[tuple[str, str, set[str]]] = []
    ends: list[datetime] = []
    outcomes = iter([ConnectionError("no control plane"), {"node-1"}, {"node-1"}, {"node-2"}])

    def drain(address: str, node_ip: str, end: datetime, drained: set[str]) -> set[str]:
        calls.append((address, node_ip, set(drained)))
        assert end == ends[0]
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def sleep(_seconds: float) -> None:
        if not ends:  # the first look found no notice
            assert calls == []
            ends.append(metadata.reclaim(120))
        elif len(calls) == 4:
            raise EndOfTestError

    monkeypatch.setattr(spot_notice, "drain", drain)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("sys.argv", ["spot_notice", "10.0.0.2:6379"])
    with pytest.raises(EndOfTestError):
        spot_notice.main()
    assert [drained for *_, drained in calls] == [set(), set(), {"node-1"}, {"node-1"}]
    assert {call[:2] for call in calls} == {("10.0.0.2:6379", ADDRESS)}
    assert "ConnectionError: no control plane; looking again in 5 s" in capsys.readouterr().out
