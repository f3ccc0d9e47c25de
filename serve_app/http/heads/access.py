"""Who may see and change which head.

A name belongs to its API key: two keys may each have a head of the same name. So nothing that a key does tells it
whether another key has a private head of some name. The store knows a head by its name and a hash of its owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from serve_app.config import IngressConfig
from serve_app.errors import HeadsOffError, InvalidParameterError, UnknownHeadError
from serve_app.heads.names import check_head_name
from serve_app.heads.stored import HeadEntry
from serve_app.http.service import Heads, Service

SEPARATOR = "."  # in no head's name


def stored_name(name: str, owner: str | None) -> str:
    """Return the name under which the store has a head; that of a service without API keys is the name itself."""
    return name if owner is None else f"{name}{SEPARATOR}{hashlib.sha256(owner.encode()).hexdigest()[:16]}"


def shown_name(entry: HeadEntry) -> str:
    """Return the name that clients use."""
    return entry.name.partition(SEPARATOR)[0]


class HeadAccess:
    """The heads of a service as one caller may use them."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def heads(self) -> Heads:
        """All heads and their settings; raises HeadsOffError (404)."""
        if self._service.heads is None:
            raise HeadsOffError("this service has no heads: set `heads: {folder: …}` in the Ingress's user_config")
        return self._service.heads

    def own(self, name: str, caller: str | None) -> HeadEntry:
        """Return a head that the caller may change, or raise UnknownHeadError (404)."""
        try:
            return self.heads.registry.entry(stored_name(check_head_name(name), caller))
        except UnknownHeadError:
            raise _unknown(name) from None

    def visible(self, name: str, caller: str | None) -> HeadEntry:
        """Return a head that the caller may use: its own, or the public one of that name.

        Raises:
            UnknownHeadError: There is none (404).
        """
        try:
            return self.own(name, caller)
        except UnknownHeadError:
            for entry in self.heads.registry.entries():
                if entry.public and shown_name(entry) == name:
                    return entry
            raise

    def all_visible(self, caller: str | None) -> list[HeadEntry]:
        """Return the caller's heads and the public ones, sorted by name; none if heads are switched off."""
        if self._service.heads is None:
            return []
        return [entry for entry in self._service.heads.registry.entries() if entry.public or entry.owner == caller]


def check_free(name: str, config: IngressConfig, models: Collection[str]) -> None:
    """Raise InvalidParameterError (422) if paths name the served model so: the head could not be reached there."""
    if name in (*models, *config.model_aliases):
        raise InvalidParameterError(f"head {name!r}: the served model has this name; choose another one")


def _unknown(name: str) -> UnknownHeadError:
    return UnknownHeadError(f"there is no head {name!r:.80} that you may use; GET /v1/heads lists yours")
