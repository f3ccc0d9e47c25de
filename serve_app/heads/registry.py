"""The heads that one replica holds in memory: follows the store, loads a head when it is first used."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Event, Lock, Thread

from serve_app.errors import HeadDamagedError, NotReadyError, ServiceError, UnknownHeadError
from serve_app.heads.pointers import Mark, unknown
from serve_app.heads.reader import HeadReader
from serve_app.heads.stored import HeadEntry, LoadedHead

POLL_S = 1.0  # a new version serves on every replica within 5 s
MAX_BYTES = 64 * 2**20  # of loaded heads; those that were not used for longest leave first
SWEEP_S = 3600.0  # between two looks for expired suggestions and what killed processes left
STAMP_RESOLUTION_S = 2.0  # two changes within it may leave the same time on the folder of pointers
log = logging.getLogger("serve_app")


class HeadRegistry:
    """Follows the pointers of a store in a thread of its own.

    A head that is in use changes between two requests, whole: ``get`` returns an object that never changes. A look at
    an unchanged store costs one ``stat``, whatever the number of heads.

    Args:
        store: The folder that all replicas share.
        max_bytes: Memory for loaded heads.
        poll_s: Seconds between two looks at the store.
        clock: Seconds since 1970, as the file system counts them.
    """

    def __init__(
        self,
        store: HeadReader,
        max_bytes: int = MAX_BYTES,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._max_bytes, self._poll_s, self._clock = max_bytes, poll_s, clock
        self._entries: dict[str, HeadEntry] = {}
        self._loaded: OrderedDict[str, LoadedHead] = OrderedDict()  # the head that was used last is the last one
        self._marks: dict[str, Mark] = {}
        self._seen_stamp = -1
        self._lock = Lock()  # guards the fields above; held for microseconds
        self._looking = Lock()  # one look at a time
        self._loading = Lock()  # one load at a time, so that no older version replaces a newer one; takes milliseconds
        self._stopped, self._thread = Event(), Thread(target=self._follow, name="heads", daemon=True)

    def start(self) -> None:
        """Read the pointers and start the thread; a folder that cannot be read is logged and tried again."""
        self._refresh_or_log()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Look at the store now; the replica that wrote a version so serves it at once. Blocks on the disk.

        Raises:
            OSError: The folder cannot be read; the heads stay as they are.
        """
        with self._looking:
            now_ns, stamp = int(self._clock() * 1e9), self.store.stamp()
            if stamp == self._seen_stamp:
                return
            marks = self.store.marks()
            failed = {name for name, mark in marks.items() if self._marks.get(name) != mark and not self._update(name)}
            with self._lock:
                for name in [name for name in self._entries if name not in marks]:
                    del self._entries[name]
                    self._loaded.pop(name, None)
            self._marks = {name: mark for name, mark in marks.items() if name not in failed}
            is_old = now_ns - stamp > STAMP_RESOLUTION_S * 1e9
            self._seen_stamp = stamp if is_old and not failed else -1

    def entries(self) -> list[HeadEntry]:
        """Return all heads that the last look found, sorted by name."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.name)

    def entry(self, name: str) -> HeadEntry:
        """Return one of them.

        Raises:
            UnknownHeadError: There is no head of that name (404).
        """
        try:
            return self._entries[name]
        except KeyError:
            raise unknown(name) from None

    def peek(self, name: str) -> LoadedHead | None:
        """Return a head if it is in memory; never blocks.

        Raises:
            UnknownHeadError: There is no head of that name (404).
        """
        with self._lock:
            self.entry(name)
            if loaded := self._loaded.get(name):
                self._loaded.move_to_end(name)
            return loaded

    def get(self, name: str) -> LoadedHead:
        """Return a head, read from the disk if need be: call it in a thread.

        Raises:
            UnknownHeadError: There is no head of that name (404).
            HeadDamagedError: All its versions are damaged (409).
            NotReadyError: The folder cannot be read now (503).
        """
        if loaded := self.peek(name):
            return loaded
        with self._loading:
            if loaded := self.peek(name):  # another thread has loaded it meanwhile
                return loaded
            try:
                return self._hold(self._load(self.entry(name)))
            except OSError as error:
                log.error("head %s: cannot be read: %s", name, error)
                raise NotReadyError(f"head {name!r} cannot be read now; retry later") from error

    def _update(self, name: str) -> bool:
        """Take the new entry of a head, and its new version if the head is in use; return False to try again."""
        try:
            with self._loading:
                entry = self.store.entry(name)
                with self._lock:
                    if (loaded := self._loaded.get(name)) is None:
                        self._entries[name] = entry
                        return True
                is_same = loaded.entry.version == entry.version
                self._hold(LoadedHead(entry, loaded.head) if is_same else self._load(entry))
        except UnknownHeadError:  # deleted a moment ago: the next look sees that
            return False
        except HeadDamagedError as error:
            log.error("%s", error)
        except (OSError, ServiceError) as error:
            log.error("head %s: a new version cannot be read, the one before serves on: %s", name, error)
            return False
        return True

    def _load(self, entry: HeadEntry) -> LoadedHead:
        """Read a version; if it is damaged, the one before it, and if it is gone, the one that replaced it."""
        try:
            return self.store.load(entry)
        except (UnknownHeadError, HeadDamagedError):
            return self.store.load(self.store.repair(entry.name))

    def _hold(self, loaded: LoadedHead) -> LoadedHead:
        name = loaded.entry.name
        with self._lock:
            self._entries[name] = loaded.entry
            self._loaded[name] = loaded
            self._loaded.move_to_end(name)
            used = sum(other.head.bytes for other in self._loaded.values())
            while used > self._max_bytes and len(self._loaded) > 1:
                used -= self._loaded.popitem(last=False)[1].head.bytes
        return loaded

    def _follow(self) -> None:
        next_sweep_s = time.monotonic()
        while True:
            if time.monotonic() >= next_sweep_s:
                self._sweep_or_log()
                next_sweep_s = time.monotonic() + SWEEP_S
            if self._stopped.wait(self._poll_s):
                return
            self._refresh_or_log()

    def _sweep_or_log(self) -> None:
        try:
            self.store.sweep()
        except (OSError, ServiceError) as error:
            log.warning("the folder of heads %s cannot be tidied up now: %s", self.store.folder, error)

    def _refresh_or_log(self) -> None:
        try:
            self.refresh()
        except OSError as error:
            log.error("the folder of heads %s cannot be read; the heads stay as they are: %s", self.store.folder, error)
