"""A whole service dies while it writes jobs, votes, its log and published weights, and is started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.power_cut import rounds


@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_a_kill_and_a_power_cut(tmp_path: Path) -> None:
    """Kill a service, and cut the power of the next one: jobs end, votes, rows and weights are there once."""
    killed, cut = rounds(tmp_path, [False, True])
    assert (killed.problems, cut.problems) == ([], []), cut.lost
    assert all(killed.written.values()), killed.written
    assert all(cut.written[kind] > count for kind, count in killed.written.items()), cut.written
