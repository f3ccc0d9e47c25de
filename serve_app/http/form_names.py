"""Read a form part's field and file name from its Content-Disposition, however the client has encoded them."""

from __future__ import annotations

import re
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message

from python_multipart.multipart import parse_options_header

# Character sets that clients name; Python has codecs, such as unicode_escape, that are none.
CHARSETS = re.compile(r"utf-?8|us-ascii|iso-?8859-\d+|latin1|windows-\d+|cp\d+|shift_jis|euc-\w+|gb\w+|big5|koi8-\w")
ENCODED_WORDS = re.compile(r"(?:=\?[^?\s]+\?[bq]\?[^?]*\?=\s*)+", re.IGNORECASE)
EXTENDED = re.compile(rb"\*\d*\*?\s*=")  # `filename*=`, `filename*0=`, `filename*0*=`


def read_names(disposition: bytes, charset: str = "utf-8") -> tuple[str | None, str | None]:
    """Return the field and the file name of a form part; None for one that its Content-Disposition does not have.

    A name is plain text (RFC 7578), an extended value such as ``utf-8''caf%C3%A9.jpg`` (RFC 8187, which wins), or
    encoded words such as ``=?utf-8?B?Y2Fmw6k=?=`` (RFC 2047), as .NET writes.
    """
    _, options = parse_options_header(disposition)
    extended = _read_extended(disposition) if EXTENDED.search(disposition) else {}

    def name(key: str) -> str | None:
        if key in extended:
            return extended[key]
        plain = options.get(key.encode())
        return None if plain is None else _decode_words(decode_text(plain, charset))

    return name("name"), name("filename")


def decode_text(raw: bytes, charset: str) -> str:
    """Decode text of a form; bytes that the character set does not have are read as Latin-1."""
    try:
        return raw.decode(charset if CHARSETS.fullmatch(charset.lower()) else "utf-8")
    except (UnicodeDecodeError, LookupError):
        return raw.decode("latin-1")


def _read_extended(disposition: bytes) -> dict[str, str]:
    """Return the parameters of RFC 2231, of which RFC 8187 is a part; the standard library joins their pieces."""
    message = Message()
    message["content-disposition"] = disposition.decode("latin-1")
    names: dict[str, str] = {}
    for key, value in message.get_params(header="content-disposition") or ():
        if isinstance(value, tuple):  # charset, language, text
            names[key.lower()] = decode_text(value[2].encode("latin-1"), value[0] or "utf-8")
        else:
            names.setdefault(key.lower(), decode_text(value.encode("latin-1"), "utf-8"))
    return names


def _decode_words(text: str) -> str:
    if ENCODED_WORDS.fullmatch(text) is None:
        return text
    try:
        words = decode_header(text)
    except HeaderParseError:  # not base64
        return text
    parts = (decode_text(raw, charset or "utf-8") if isinstance(raw, bytes) else raw for raw, charset in words)
    return "".join(parts) or text
