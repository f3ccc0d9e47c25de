"""The soak's verdict: what it lets pass, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.soak import Event, Watch, slope, verdict

SENT = 250.0  # when each request that fails was


def loads(**outcomes: dict[str, int]) -> dict[str, Any]:
    each = {"single": {"200": 9}, "many": {"200": 9}, "broken": {"415": 4, "422": 5}} | outcomes
    return {
        name: {
            "requests": 9,
            "outcomes": counts,
            "failed": [
                (SENT, outcome, "a reason") for outcome, n in counts.items() if outcome != "200" for _ in range(n)
            ],
            "latency_ms": {},
        }
        for name, counts in each.items()
    }


def watch(memory_mb: list[float]) -> Watch:
    at = [10.0 * i for i in range(len(memory_mb))]
    return Watch(tree=None, at_s=at, memory_mb=memory_mb, descriptors=[100.0] * len(at))  # type: ignore[arg-type] # not asked


FLAT = [1000.0, 1010.0, 990.0, 1005.0, 995.0] * 4


def test_a_quiet_day_passes() -> None:
    assert verdict(loads(), [Event("update", 0), Event("kill Ingress", 20)], watch(FLAT))["failures"] == []


@pytest.mark.parametrize(
    ("found", "events", "memory", "reason"),
    [
        (
            loads(single={"200": 8, "500": 1}),
            [Event("update", SENT - 9), Event("restart", SENT - 3), Event("update", SENT + 3)],
            FLAT,
            "single: {'500': 1} of 9 requests, sent since {'restart': 1}",
        ),
        (loads(broken={"200": 9}), [], FLAT, "broken: {'200': 9} of 9 requests"),
        (loads(), [Event("kill Ingress", 0, "waited")], FLAT, "kill Ingress: waited"),
        (loads(), [], [1000.0 + 10 * i for i in range(20)], "memory_mb grew by 150 from about 1115"),
    ],
    ids=("an error", "a broken file with an answer", "a replica that stays away", "a leak"),
)
def test_a_bad_day_does_not(found: dict[str, Any], events: list[Event], memory: list[float], reason: str) -> None:
    assert any(reason in failure for failure in verdict(found, events, watch(memory))["failures"])


def test_the_first_samples_do_not_count() -> None:
    """A service that has just started grows; that is no leak."""
    assert slope([float(i) for i in range(10)], [0.0, 50.0] + [100.0] * 8)["in_all"] == 0
