"""A queue whose callers take turns, so that one with many items delays nobody who has few."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out for each caller; callers take turns, one item each (Nagle 1987, RFC 970)."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # the first caller is next; none is empty
        self._length = 0

    def append(self, item: Item, caller: Hashable = None) -> None:
        """Add an item behind the others of its caller."""
        self._queues.setdefault(caller, deque()).append(item)
        self._length += 1

    def first(self) -> Item:
        """Return the item that ``popleft`` takes next."""
        return next(iter(self._queues.values()))[0]

    def popleft(self) -> Item:
        """Take an item from the caller that is next, and let the others go first afterwards."""
        caller, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        self._length -= 1
        if queue:
            self._queues.move_to_end(caller)
        else:
            del self._queues[caller]
        return item

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        for queue in self._queues.values():
            yield from queue
