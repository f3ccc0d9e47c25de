"""Progress bars of tqdm, which is optional."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """The part of tqdm's bar that the client uses."""

    def show(self, done: int, total: int | None, note: str = "") -> None:
        """Show that ``done`` of ``total`` images are done."""
        ...


class _Silent:
    def show(self, done: int, total: int | None, note: str = "") -> None: ...


class _Tqdm:
    def __init__(self, total: int | None) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("progress bars need tqdm: pip install tqdm") from error
        self.bar = tqdm(total=total, unit="image", dynamic_ncols=True)

    def show(self, done: int, total: int | None, note: str = "") -> None:
        self.bar.total = total
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)


@contextmanager
def progress_bar(wanted: bool, total: int | None = None) -> Iterator[Bar]:
    """Show a bar on stderr, or in a notebook, until the block ends; nothing if it is not wanted."""
    if not wanted:
        yield _Silent()
        return
    shown = _Tqdm(total)
    try:
        yield shown
    finally:
        shown.bar.close()
