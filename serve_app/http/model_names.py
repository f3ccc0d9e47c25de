"""Find the model or the head that a path names, for the protocols whose paths name model and version."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from serve_app.errors import HeadsOffError, InvalidParameterError, UnknownHeadError, UnknownModelError
from serve_app.http.heads.use import HeadUse, HeadUses
from serve_app.http.schemas import ImageResult
from serve_app.http.service import Service
from serve_app.model_card import ModelRef
from serve_app.routing.router import VariantRouter
from serve_app.routing.traffic_split import VariantChoice


@dataclass(frozen=True)
class NamedModel:
    """The served model, or a head on top of it."""

    name: str
    versions: list[str]
    variant: str | None = None  # that the path's version names
    use: HeadUse | None = None  # of a head

    def apply(self, result: ImageResult) -> ImageResult:
        """Return a result whose predictions are those of this model."""
        if self.use is None or result.heads is None:
            return result
        return result.model_copy(update={"predictions": result.heads[self.name].predictions})

    def ref(self, model: ModelRef) -> ModelRef:
        """Return how a response names this model; ``model`` are the weights that answered."""
        return model if self.use is None else model.model_copy(update={"name": self.name, "version": self.versions[0]})


SERVED = NamedModel("", [])  # a path that names no model means the served one


class NamedModels:
    """Looks up what the paths of requests name."""

    def __init__(self, service: Service, heads: HeadUses) -> None:
        self._service, self._heads = service, heads

    async def find(self, request: Request, name: str) -> NamedModel:
        """Return what a path's ``name`` names, also as ``request.state.named``.

        Raises:
            UnknownModelError: The caller may use no model or head of that name and version (404).
            HeadDamagedError: No version of the head can be read (409).
        """
        return await self._find(request, name, None)

    async def find_version(self, request: Request, name: str, version: str) -> NamedModel:
        """Return what a path's ``name`` and ``version`` name; see ``find``."""
        return await self._find(request, name, version)

    async def _find(self, request: Request, name: str, version: str | None) -> NamedModel:
        variants, served = self._service.router, self._service.router.first_card().name
        if name == served or name in self._service.config.model_aliases:
            versions = list(dict.fromkeys(card.version for card in variants.cards().values()))
            variant = version and find_version(variants, version)
            named = NamedModel(served, versions, variant)
        else:
            named = await self._head(name, version, request.state.caller)
        request.state.named = named
        return named

    def choose(self, request: Request, named: NamedModel) -> VariantChoice:
        """Return the variant for a request: that of the path's version or of ``X-Model``, else one that fits the head.

        Raises:
            UnknownModelError: ``X-Model`` names no variant (404).
        """
        headers = request.headers
        choice = self._service.router.choose(named.variant or headers.get("x-model"), headers.get("x-sticky"))
        return self._heads.variant(named.use, choice) if named.use else choice

    async def _head(self, name: str, version: str | None, caller: str | None) -> NamedModel:
        try:
            use = await self._heads.of(name, caller)
        except (HeadsOffError, UnknownHeadError, InvalidParameterError):
            use = None
        if use is None or list(use.heads) != [name]:
            raise _unknown(name, self._service.router.first_card().name)
        versions = [use.heads[name].entry.version]
        if version not in (None, *versions):
            raise UnknownModelError(f"head {name!r} has no version {version!r} that serves; it is {versions[0]!r}")
        return NamedModel(name, versions, use=use)


def check_model_name(service: Service, name: str, served: str) -> None:
    """Raise UnknownModelError (404) unless this is the name of the served model, or one of ``model_aliases``."""
    if name != served and name not in service.config.model_aliases:
        raise _unknown(name, served)


def find_version(variants: VariantRouter, version: str) -> str:
    """Return the variant that serves a version of the model, or raise UnknownModelError (404)."""
    for variant, card in variants.cards().items():
        if card.version == version:
            return variant
    known = ", ".join(repr(card.version) for card in variants.cards().values())
    raise UnknownModelError(f"{variants.first_card().name!r} has no version {version!r}; known versions: {known}")


def _unknown(name: str, served: str) -> UnknownModelError:
    return UnknownModelError(f"there is no model {name!r}; the model is {served!r}")
