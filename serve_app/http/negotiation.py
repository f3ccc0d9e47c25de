"""Choose the media type of a response from the request's ``Accept`` (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers

MAX_ACCEPT_CHARS = 4096  # the rest is ignored; browsers send 150
WEIGHT = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


def choose_media_type(headers: Headers, offers: Sequence[str]) -> str:
    """Return the offered media type that the client prefers.

    The highest weight wins; among equal weights, the type that is named more exactly; then the earlier offer. A request
    that accepts no offer gets the first one, which RFC 9110 allows instead of an error.
    """
    accepted = _parse(",".join(headers.getlist("accept"))[:MAX_ACCEPT_CHARS])

    def preference(offer: str) -> tuple[float, int]:
        ranges = ("*/*", offer.partition("/")[0] + "/*", offer)
        matches = [(exactness, accepted[each]) for exactness, each in enumerate(ranges) if each in accepted]
        exactness, weight = matches[-1] if matches else (0, 0.0)
        return (weight, exactness) if weight else (0.0, 0)

    return max(offers, key=preference)


def _parse(accept: str) -> dict[str, float]:
    """Return the weight of each media range; a weight that is not one counts as 1."""
    weights: dict[str, float] = {}
    for each in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in each.split(";"))
        texts = [text.strip() for name, _, text in (part.partition("=") for part in parameters) if name.strip() == "q"]
        weight = float(texts[0]) if texts and WEIGHT.fullmatch(texts[0]) else 1.0
        weights[media_range] = max(weight, weights.get(media_range, 0.0))
    return weights
