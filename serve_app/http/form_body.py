"""Read a multipart form while it arrives, within limits on its parts and their bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header

from serve_app.errors import MalformedRequestError, TooLargeError
from serve_app.http.form_names import decode_text, read_names
from serve_app.http.form_parts import FormParts

FORM = "multipart/form-data"
MAX_FIELDS = 64  # parts that are no files
MAX_FIELD_BYTES = 4096  # of a field whose value is read
MAX_PREAMBLE_BYTES = 8192  # text before the first boundary (RFC 2046, 5.1.1)
CHARSET_FIELD = "_charset_"  # browsers fill it in by themselves (RFC 7578, 4.6)


@dataclass(frozen=True)
class FormSchema:
    """What a form may contain; other fields are skipped and named in ``Form.unknown``.

    Attributes:
        files: Names of file fields; a part with such a name is a file even if it has no file name. None takes files
            in fields of any name, and only a part with a file name is a file.
        fields: Names of text fields.
        max_files: Most files.
        max_file_bytes: Largest file; a larger one is skipped and reported as its error.
        too_many: Error for more files.
    """

    files: Collection[str] | None
    fields: Collection[str]
    max_files: int
    max_file_bytes: int
    too_many: type[TooLargeError] = TooLargeError


@dataclass(frozen=True)
class FormFile:
    """A file of a form."""

    name: str | None  # that the client gave
    content: bytes | TooLargeError
    field_name: str


@dataclass
class Form:
    """A form that has arrived."""

    files: list[FormFile] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # names of fields that were skipped


async def read_form(chunks: AsyncIterator[bytes], content_type: str, schema: FormSchema) -> Form:
    """Read a form.

    Args:
        chunks: The request's body.
        content_type: The header, which names the boundary.
        schema: What the form may contain.

    Raises:
        MalformedRequestError: The form does not parse, ends before its closing boundary, or has a file in another
            field (400).
        TooLargeError: The form has too many parts (413).
    """
    _, options = parse_options_header(content_type)
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    reader = _FormReader(options.get(b"boundary", b""), charset, schema)
    async for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()


class _FormReader(FormParts):
    """Collects the parts that the parser finds."""

    def __init__(self, boundary: bytes, charset: str, schema: FormSchema) -> None:
        self._schema, self._charset, self._form = schema, charset, Form()
        self._first_boundary = b"--" + boundary
        self._preamble: bytearray | None = bytearray()  # None once the first boundary has arrived
        self._field = ""  # of the current part, and so are all below
        self._file_name: str | None = None
        self._is_file = self._is_kept = False
        self._chunks: list[bytes] = []
        self._size = 0
        super().__init__(boundary, schema.max_files + MAX_FIELDS)

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body."""
        if self._preamble is not None:
            chunk = self._skip_preamble(self._preamble, chunk)
        self.write(chunk)

    def finish(self) -> Form:
        """Return the form, or raise MalformedRequestError (400) if its end is missing."""
        if self._preamble is not None:
            raise MalformedRequestError(f"the multipart body has no line `{self._first_boundary.decode('latin-1')}`")
        self.check_complete()
        return self._form

    def _skip_preamble(self, preamble: bytearray, chunk: bytes) -> bytes:
        """Return the bytes from the first boundary on; empty if it has not arrived."""
        preamble += chunk
        start = 0 if preamble.startswith(self._first_boundary) else preamble.find(b"\n" + self._first_boundary) + 1
        if start or preamble.startswith(self._first_boundary):
            self._preamble = None
            return bytes(preamble[start:])
        if len(preamble) > MAX_PREAMBLE_BYTES:
            raise MalformedRequestError(
                f"the first {MAX_PREAMBLE_BYTES} bytes of the multipart body have no boundary line"
            )
        return b""

    def begin_part(self) -> None:
        field_name, self._file_name = read_names(self.headers.get(b"content-disposition", b""), self._charset)
        if field_name is None:
            raise MalformedRequestError("a part of the form has no field name in its Content-Disposition")
        self._field = field_name
        files = self._schema.files
        self._is_file = self._file_name is not None if files is None else field_name in files
        self._is_kept = self._is_file or field_name in self._schema.fields
        if self._file_name and not self._is_file:
            raise MalformedRequestError(
                f"file field {field_name!r:.60}: send files in the field {next(iter(files or ()))!r}"
            )
        self._chunks, self._size = [], 0

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if not self._is_kept:
            return
        if self._is_file:
            self._check_count()
        elif self._size > MAX_FIELD_BYTES:
            raise MalformedRequestError(f"form field {self._field!r}: longer than {MAX_FIELD_BYTES} bytes")
        if self._size <= self._schema.max_file_bytes:
            self._chunks.append(data[start:end])
        else:
            self._chunks.clear()

    def end_part(self) -> None:
        if self._is_file:
            if self._file_name or self._size:  # else a browser's file input without a choice
                self._check_count()
                limit = self._schema.max_file_bytes
                content = (
                    TooLargeError.over("the image", self._size, limit) if self._size > limit else b"".join(self._chunks)
                )
                self._form.files.append(FormFile(self._file_name or None, content, self._field))
        elif self._is_kept:
            self._form.fields[self._field] = decode_text(b"".join(self._chunks), self._charset)
        elif self._field != CHARSET_FIELD:
            self._form.unknown.append(self._field)

    def _check_count(self) -> None:
        if len(self._form.files) >= self._schema.max_files:
            raise self._schema.too_many(f"the form has more than {self._schema.max_files} files, the limit")
