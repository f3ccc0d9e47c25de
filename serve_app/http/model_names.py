"""Find the model that a path names, for the protocols whose paths name model and version."""

from __future__ import annotations

from serve_app.errors import UnknownModelError
from serve_app.http.service import Service
from serve_app.routing.router import VariantRouter


def check_model_name(service: Service, name: str, served: str) -> None:
    """Raise UnknownModelError (404) unless this is the name of the served model, or one of ``model_aliases``."""
    if name != served and name not in service.config.model_aliases:
        raise UnknownModelError(f"there is no model {name!r}; the model is {served!r}")


def find_version(variants: VariantRouter, version: str) -> str:
    """Return the variant that serves a version of the model, or raise UnknownModelError (404)."""
    for variant, card in variants.cards().items():
        if card.version == version:
            return variant
    known = ", ".join(repr(card.version) for card in variants.cards().values())
    raise UnknownModelError(f"{variants.first_card().name!r} has no version {version!r}; known versions: {known}")
