"""Which variant gets a request: the one that the client names, one per client, or one by chance."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from serve_app.config import IngressConfig

MAIN = "main"  # the variant in the ingress's own application


@dataclass(frozen=True)
class VariantChoice:
    """The variant chosen for a request."""

    variant: str
    named_by_client: bool = False  # then no other variant may take over


@dataclass(frozen=True)
class TrafficSplit:
    """Shares of the variants; a variant of share 0 gets only requests that name it."""

    shares: Mapping[str, float] = field(default_factory=lambda: {MAIN: 1.0})
    shadow: str | None = None  # the variant that gets copies of images
    shadow_fraction: float = 0.0  # of the images, 0-1

    @classmethod
    def from_config(cls, config: IngressConfig) -> TrafficSplit:
        """Build the split that the settings describe."""
        return cls(config.traffic or {MAIN: 1.0}, config.shadow, config.shadow_fraction if config.shadow else 0.0)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All variants, largest share first, the shadow last."""
        ranked = sorted(self.shares, key=lambda name: -self.shares[name])
        return tuple(ranked) if self.shadow is None else tuple(dict.fromkeys((*ranked, self.shadow)))

    @cached_property
    def serving(self) -> dict[str, float]:
        """Shares above 0: the variants for requests that name none."""
        return {name: share for name, share in self.shares.items() if share > 0}


def pick_variant(shares: Mapping[str, float], client: str | None = None) -> str:
    """Choose a variant by its share.

    With a client key, the same client gets the same variant as long as the shares stay: from 5 % to 10 % only the
    additional 5 % of the clients change variants. Without a key, each request is drawn at random. All shares must be
    above 0.

    Source:
        Weighted rendezvous hashing: Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates";
        the logarithmic weights after Schindelhauer and Schomaker 2005, "Weighted distributed hash tables".
    """
    if client is None:
        return random.choices([*shares], [*shares.values()])[0]

    def score(name: str) -> float:
        digest = hashlib.blake2b(f"{name}\0{client}".encode(), digest_size=8).digest()
        uniform = ((int.from_bytes(digest) >> 12) + 0.5) / 2**52  # strictly between 0 and 1
        return -shares[name] / math.log(uniform)

    return max(shares, key=score)
