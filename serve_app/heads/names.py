"""Names of heads and of their classes: alphabet and length."""

from __future__ import annotations

import re
import unicodedata

from serve_app.errors import InvalidParameterError

HEAD_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"  # a part of URLs and the name of a folder
MAX_CLASS_NAME = 80  # characters

_HEAD_NAME = re.compile(HEAD_NAME)
_STORED_NAME = re.compile(HEAD_NAME + r"(\.[0-9a-f]{16})?")


def is_head_name(name: str) -> bool:
    """Return whether a head may have this name."""
    return _HEAD_NAME.fullmatch(name) is not None


def is_stored_name(name: str) -> bool:
    """Return whether the store may have a head under this name: a head's name, and maybe a hash of its owner."""
    return _STORED_NAME.fullmatch(name) is not None


def check_head_name(name: str) -> str:
    """Return the name of a head.

    Raises:
        InvalidParameterError: The name has another alphabet or length (422).
    """
    if not is_head_name(name):
        raise InvalidParameterError(
            f"head {name!r:.80}: a name has 1 to 63 characters of a-z, 0-9, - and _, and starts with a letter or digit"
        )
    return name


def clean_class_name(text: str) -> str:
    """Return the name of a class as it is stored: without spaces around it, in Unicode's NFC.

    Two texts that look the same so become one class.

    Raises:
        InvalidParameterError: The name is empty, too long, or holds a character that cannot be printed (422).
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not 1 <= len(name) <= MAX_CLASS_NAME:
        raise InvalidParameterError(f"class {text!r:.60}: a class name has 1 to {MAX_CLASS_NAME} characters")
    if not name.isprintable():
        raise InvalidParameterError(f"class {name!r:.90}: a class name consists of printable characters")
    return name
