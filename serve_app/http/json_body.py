"""Parse JSON bodies whose number of values is bounded before any object is made.

Measured with pydantic 2.14: `{"inputs": [0, 0, …]}` of 1 MiB took 10 s and 879 MiB, nearly all of it for half a million
errors. Its parser holds the GIL, so that a thread alone would not keep the event loop running.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
from pydantic import ValidationError

from serve_app.config import LimitsConfig
from serve_app.errors import MalformedRequestError, TooLargeError
from serve_app.validation import Model, describe

P = ParamSpec("P")
R = TypeVar("R")
MAX_VALUES = 10_000  # in a body, besides its images
VALUES_PER_IMAGE = 20
SCAN_BYTES = 256 * 1024  # per step, so that the comparison stays in the processor's cache
INLINE_BYTES = 256 * 1024  # smaller bodies are parsed within 1 ms; a thread would take 0.1 ms
LOOKS_LIKE_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")


def is_json(content_type: str) -> bool:
    """Return whether a media type is JSON (RFC 6839 for `+json`)."""
    return content_type in ("application/json", "text/json") or content_type.endswith("+json")


def looks_like_json(body: bytes) -> bool:
    """Return whether a body without a telling content type is a JSON object; no image begins like one."""
    return LOOKS_LIKE_JSON.match(body) is not None


def max_values(limits: LimitsConfig) -> int:
    """Return the most values of a JSON body with images."""
    return MAX_VALUES + VALUES_PER_IMAGE * limits.max_images


async def off_loop(size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function on a body of ``size`` bytes, in a thread if that is faster for the other requests."""
    if size <= INLINE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


def check_json(body: bytes, most: int = MAX_VALUES) -> bytes:
    """Return a JSON text without its byte order mark, which RFC 8259 lets a parser ignore.

    Raises:
        MalformedRequestError: The text is UTF-16 or UTF-32 (400).
        TooLargeError: It may have more than ``most`` values (413). Each follows a comma, a colon or an opening bracket;
            those in strings count too.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 0 in body[:2]:
        raise MalformedRequestError("the JSON body is UTF-16 or UTF-32; send it as UTF-8")
    data, values = np.frombuffer(body, np.uint8), 0
    for start in range(0, len(data), SCAN_BYTES):
        piece = data[start : start + SCAN_BYTES]
        values += sum(int(np.count_nonzero(piece == mark)) for mark in b",:[{")
        if values > most:
            raise TooLargeError(
                f"the JSON body has more than {most:,} values; send each image as one string, its file in base64"
            )
    return body.removeprefix(codecs.BOM_UTF8)


def parse_json(body: bytes, model: type[Model], most: int = MAX_VALUES) -> Model:
    """Parse a JSON body; unknown members become ``model_extra``.

    Raises:
        MalformedRequestError: The body is not JSON or does not fit the model (400).
        TooLargeError: See check_json (413).
    """
    try:
        return model.model_validate_json(check_json(body, most), extra="allow")
    except ValidationError as error:
        raise MalformedRequestError(f"the JSON body: {describe(error, model)}") from None
