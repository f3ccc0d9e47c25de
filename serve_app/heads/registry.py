"""The heads that one replica holds in memory: follows the store, loads a head when it is first used."""

from __future__ import annotations

from serve_app.heads.store import HeadStore
from serve_app.heads.stored import HeadEntry, LoadedHead

POLL_S = 1.0  # a new version serves on every replica within 5 s
MAX_BYTES = 64 * 2**20  # of loaded heads; those that were not used for longest leave first


class HeadRegistry:
    """Follows the pointers of a store in a thread of its own.

    A head that is in use changes between two requests, whole: ``get`` returns an object that never changes.

    Args:
        store: The folder that all replicas share.
        max_bytes: Memory for loaded heads.
        poll_s: Seconds between two looks at the store.
    """

    def __init__(self, store: HeadStore, max_bytes: int = MAX_BYTES, poll_s: float = POLL_S) -> None:
        self.store = store

    def start(self) -> None:
        """Read the pointers and start the thread; a folder that cannot be read is logged and tried again."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Look at the store now; the replica that wrote a version so serves it at once. Blocks on the disk."""
        raise NotImplementedError

    def entries(self) -> list[HeadEntry]:
        """Return all heads that the last look found, sorted by name."""
        raise NotImplementedError

    def entry(self, name: str) -> HeadEntry:
        """Return one of them.

        Raises:
            UnknownHeadError: There is no head of that name (404).
        """
        raise NotImplementedError

    def peek(self, name: str) -> LoadedHead | None:
        """Return a head if it is in memory; never blocks.

        Raises:
            UnknownHeadError: There is no head of that name (404).
        """
        raise NotImplementedError

    def get(self, name: str) -> LoadedHead:
        """Return a head, read from the disk if need be: call it in a thread.

        Raises:
            UnknownHeadError: There is no head of that name (404).
            HeadDamagedError: All its versions are damaged (409).
            NotReadyError: The folder cannot be read now (503).
        """
        raise NotImplementedError
