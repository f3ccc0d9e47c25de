"""Split a multipart body into parts while it arrives: the parser and the headers that every reader of forms needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from serve_app.errors import MalformedRequestError, TooLargeError


class FormParts(ABC):
    """Collects the headers of each part, and calls the methods below as the parser finds a part.

    Args:
        boundary: From the content type.
        max_parts: Most parts, and most boundaries in the body, also of boundaries that no line end follows.

    Attributes:
        headers: Of the part that begins, by lower-case name; empty once it has begun.

    Raises:
        MalformedRequestError: The content type has no boundary, or one that is too long (400).
    """

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        if not boundary:
            raise MalformedRequestError("the multipart content type has no boundary")
        self.headers: dict[bytes, bytes] = {}
        self._is_complete = False
        self._header, self._value = bytearray(), bytearray()
        self._delimiter, self._max_parts = b"\r\n--" + boundary, max_parts
        self._delimiters = 0  # so far, without the first, which begins the body
        self._tail = b""  # last bytes of the body so far, which may begin a delimiter
        with _malformed():
            self._parser = MultipartParser(
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

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes of the body, which begins with its first boundary.

        Raises:
            MalformedRequestError: The form does not parse (400).
            TooLargeError: The form has too many parts (413).
        """
        # The parser takes 2 µs for each boundary, also for one that no line end follows: 15 s for a body of them.
        searched = self._tail + chunk
        self._delimiters += searched.count(self._delimiter)
        self._tail = searched[1 - len(self._delimiter) :]
        if self._delimiters > self._max_parts:
            raise TooLargeError(f"the form has more than {self._max_parts} parts, the limit")
        with _malformed():
            self._parser.write(chunk)

    def check_complete(self) -> None:
        """Raise MalformedRequestError (400) if the closing boundary has not arrived."""
        if not self._is_complete:
            raise MalformedRequestError("the multipart body ends before its closing boundary; send it whole")

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
        self._is_complete = True


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise MalformedRequestError(f"the multipart body does not parse: {error}") from None
