"""The kinds of hostile requests, and how often each is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz import amplifiers, requests

KINDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(requests.image_as_body,) * 8,
    *(requests.image_in_json, requests.strange_json, requests.compressed, requests.strange_headers),
    *(requests.form,) * 2,
    *(requests.tensors,) * 2,
    *(requests.cut_short, requests.cut_anywhere, requests.cut_nonsense, requests.half_closed, requests.lying_long),
    *(requests.chunks, requests.slow, requests.feedback, requests.strange_path),
    *(amplifiers.amplifier, amplifiers.packed_amplifier, amplifiers.long_header, amplifiers.many_parameters),
)


def broken(chance: random.Random, data: bytes) -> tuple[str, bytes]:
    """Return the kind and the bytes of one hostile request around an image."""
    kind = chance.choice(KINDS)
    return kind.__name__.replace("_", " "), kind(chance, data)
