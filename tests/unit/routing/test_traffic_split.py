"""Shares of the variants, and clients that keep their variant."""

from __future__ import annotations

import pytest

from serve_app.config import IngressConfig
from serve_app.routing.traffic_split import TrafficSplit, pick_variant
from serve_app.validation import parse

CLIENTS = [f"client {n}" for n in range(4000)]


def test_shares_hold_with_and_without_clients() -> None:
    """Of 4000 requests about 5 % go to the canary."""
    shares = {"blue": 95.0, "green": 5.0}
    for clients in ([None] * 4000, CLIENTS):
        assert 140 < sum(pick_variant(shares, client) == "green" for client in clients) < 260


def test_a_client_keeps_its_variant() -> None:
    """A larger canary takes over only as many clients as its share grows by; the others keep their variant."""
    five, ten = (
        {client: pick_variant({"blue": 100 - n, "green": n}, client) for client in CLIENTS} for n in (5.0, 10.0)
    )
    assert five == {client: pick_variant({"green": 5.0, "blue": 95.0}, client) for client in CLIENTS}
    moved = [client for client in CLIENTS if five[client] != ten[client]]
    assert all(five[client] == "blue" for client in moved)
    assert len(moved) == sum(v == "green" for v in ten.values()) - sum(v == "green" for v in five.values())
    assert 130 < len(moved) < 270


def test_a_third_variant_takes_only_its_share() -> None:
    """Clients that do not move to the new variant keep their variant."""
    two = {client: pick_variant({"a": 1.0, "b": 1.0}, client) for client in CLIENTS}
    three = {client: pick_variant({"a": 1.0, "b": 1.0, "c": 1.0}, client) for client in CLIENTS}
    assert {three[client] for client in CLIENTS if three[client] != two[client]} == {"c"}


def test_names_and_shares_of_a_configuration() -> None:
    """Largest share first, then shares of 0, the shadow last."""
    config = parse(IngressConfig, {"traffic": {"a": 0, "b": 1, "c": 3}, "shadow": "d"})
    split = TrafficSplit.from_config(config)
    assert split.names == ("c", "b", "a", "d")
    assert split.serving == {"b": 1, "c": 3}
    assert TrafficSplit.from_config(IngressConfig()).names == ("main",)


@pytest.mark.parametrize(
    ("user_config", "sentence"),
    [
        ({"traffic": {"blue": 0}}, "no variant has a share above 0"),
        ({"traffic": {}}, "no variant has a share above 0"),
        ({"traffic": {"blue": -1}}, "traffic.blue: .*greater than or equal to 0"),
        ({"traffic": {"blue": float("inf")}}, "traffic.blue: .*finite"),
        ({"shadow_fraction": 2}, "shadow_fraction: .*less than or equal to 1"),
    ],
)
def test_invalid_shares_are_refused(user_config: dict[str, object], sentence: str) -> None:
    """The error names the setting and the limit."""
    with pytest.raises(ValueError, match=sentence):
        parse(IngressConfig, user_config)
