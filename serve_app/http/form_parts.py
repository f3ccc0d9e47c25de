"""Split a multipart body into parts while it arrives: the parser and the headers that every reader of forms needs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from python_multipart.multipart import MultipartParser


class FormParts(ABC):
    """Collects the headers of each part, and calls the methods below as the parser finds a part.

    Attributes:
        parser: Takes the bytes of the body.
        headers: Of the part that begins, by lower-case name; empty once it has begun.
        is_complete: Whether the closing boundary has arrived.
    """

    def __init__(self, boundary: bytes) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.is_complete = False
        self._header, self._value = bytearray(), bytearray()
        self.parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin,
                "on_part_data": self.add_data,
                "on_part_end": self.end_part,
                "on_end": self._complete,
            },
        )

    @abstractmethod
    def begin_part(self) -> None:
        """Begin the part that has these ``headers``."""

    @abstractmethod
    def add_data(self, data: bytes, start: int, end: int) -> None:
        """Take the next bytes of the part, ``data[start:end]``."""

    @abstractmethod
    def end_part(self) -> None:
        """End the part."""

    def _end_header(self) -> None:
        self.headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin(self) -> None:
        self.begin_part()
        self.headers.clear()

    def _complete(self) -> None:
        self.is_complete = True
