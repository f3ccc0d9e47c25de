"""The queue in which callers take turns."""

from __future__ import annotations

from serve_app.fair_queue import FairQueue


def test_callers_take_turns() -> None:
    """One item of each caller, then the next; a caller's own items stay in their order."""
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.append(item, item[0])
    assert sorted(queue) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert [queue.popleft() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not queue


def test_a_caller_who_comes_late_is_next_after_one_item_of_each() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.append(f"heavy {number}", "heavy")
    assert queue.popleft() == "heavy 0"
    queue.append("light", "light")
    assert [queue.first(), queue.popleft(), queue.popleft()] == ["heavy 1", "heavy 1", "light"]


def test_without_callers_the_first_comes_first() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.append(number)
    assert [queue.popleft() for _ in range(5)] == [0, 1, 2, 3, 4]
