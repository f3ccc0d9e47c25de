"""Stage 1/3 · which variant of the model a request goes to: by name, by client or by chance. Knows no Ray."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from serve_app.config import IngressConfig

OWN = "main"  # the variant in the ingress's own application


@dataclass(frozen=True)
class Traffic:
    """Who gets what.

    Attributes:
        shares: Weight of each variant; a variant of weight 0 answers only those who ask for it by name.
        shadow: The variant that gets copies, if any.
        shadow_fraction: How many of the images are copied to it, 0-1.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: {OWN: 1.0})
    shadow: str | None = None
    shadow_fraction: float = 0.0

    @classmethod
    def of(cls, tuning: IngressConfig) -> Traffic:
        """What a configuration asks for."""
        return cls(tuning.traffic or {OWN: 1.0}, tuning.shadow, tuning.shadow_fraction if tuning.shadow else 0.0)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All variants, the one with the largest share first."""
        ranked = sorted(self.shares, key=lambda name: -self.shares[name])
        return tuple(ranked) if self.shadow is None else tuple(dict.fromkeys((*ranked, self.shadow)))

    @cached_property
    def serving(self) -> dict[str, float]:
        """The variants that get requests nobody has named one for."""
        return {name: share for name, share in self.shares.items() if share > 0}


def pick(shares: Mapping[str, float], client: str | None = None) -> str:
    """Choose a variant by its share.

    A client keeps its variant as long as the shares stay (weighted rendezvous hashing): from 5 % to
    10 % only the missing 5 % of the clients change theirs. Without one, chance decides each time.

    Args:
        shares: At least one, all above 0.
        client: Whatever names the client.
    """
    if client is None:
        return random.choices([*shares], [*shares.values()])[0]

    def score(name: str) -> float:
        digest = hashlib.blake2b(f"{name}\0{client}".encode(), digest_size=8).digest()
        uniform = ((int.from_bytes(digest) >> 12) + 0.5) / 2**52  # never 0 nor 1
        return -shares[name] / math.log(uniform)

    return max(shares, key=score)
