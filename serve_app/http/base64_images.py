"""Read images that JSON holds as text: base64 in each form in which clients write it, and URLs."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from serve_app.errors import MalformedRequestError, ServiceError
from serve_app.image_url import ImageUrl
from serve_app.validation import short_repr

DATA_SCHEME = re.compile(r"\s*data:", re.IGNORECASE)
DATA_URI = re.compile(r"\s*data:[^,]{0,200},", re.IGNORECASE)  # RFC 2397
STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")  # from the URL-safe one of RFC 4648
URL_OF_FILE = re.compile(r"\s*(?!data:)[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE)  # base64 has no colon
WHITESPACE = b" \t\r\n\f\v"  # line breaks of MIME (RFC 2045)


def read_image(text: str) -> bytes | ImageUrl | ServiceError:
    """Read an image in base64, or the URL of one; a data URI holds the image itself."""
    return read_url(text) if URL_OF_FILE.match(text) else decode_base64(text)


def read_url(text: str) -> bytes | ImageUrl | ServiceError:
    """Read the URL of an image; return the image itself of a data URI."""
    if DATA_SCHEME.match(text):
        return decode_base64(text)
    try:
        return ImageUrl.parse(text)
    except ValueError as error:
        return MalformedRequestError(f"url {short_repr(text)}: {error}")


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
    elif URL_OF_FILE.match(text):
        return MalformedRequestError("b64: this is a URL; send it as `url`")
    try:
        digits = text.encode("ascii").translate(STANDARD_ALPHABET, WHITESPACE)
        unpadded = digits.rstrip(b"=")
        if len(digits) - len(unpadded) > 2:
            raise binascii.Error("Excess padding")
        return base64.b64decode(unpadded + b"=" * (-len(unpadded) % 4), validate=True)
    except UnicodeEncodeError as error:
        return MalformedRequestError(f"b64: {short_repr(text[error.start])} is not a digit of base64")
    except ValueError as error:
        return MalformedRequestError(f"b64: {error!s:.100}")
