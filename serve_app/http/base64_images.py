"""Decode images in base64, in each form in which clients write it."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from serve_app.errors import MalformedRequestError, ServiceError

DATA_URI = re.compile(r"\s*data:[^,]{0,200},", re.IGNORECASE)  # RFC 2397
STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")  # from the URL-safe one of RFC 4648
WHITESPACE = b" \t\r\n\f\v"  # line breaks of MIME (RFC 2045)


def decode_base64(text: str) -> bytes | ServiceError:
    """Decode an image, or return the error; a data URI, line breaks and missing padding are fine."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # not the canonical form; binascii.Error is one
        pass
    if prefix := DATA_URI.match(text):
        if not prefix[0].lower().rstrip(", ").endswith(";base64"):
            return MalformedRequestError("b64: the data URI is not base64; begin it with `data:image/jpeg;base64,`")
        text = text[prefix.end() :]
        text = unquote(text) if "%" in text else text
    try:
        digits = text.encode("ascii").translate(STANDARD_ALPHABET, WHITESPACE)
        unpadded = digits.rstrip(b"=")
        if len(digits) - len(unpadded) > 2:
            raise binascii.Error("Excess padding")
        return base64.b64decode(unpadded + b"=" * (-len(unpadded) % 4), validate=True)
    except (ValueError, UnicodeEncodeError) as error:
        return MalformedRequestError(f"b64: {error!s:.100}")
